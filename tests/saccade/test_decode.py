"""Every ordinary picture comes out as upright RGB; everything else is refused with one sentence, and nothing else.

The reference is Pillow's own writer, tifffile, or bytes put together here.
"""

import base64
import io
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from saccade.decode import FORMATS, decode, decode_base64, plain_pixels
from saccade.errors import ImageTooLarge, InvalidImage
from tests.conftest import ROOT

WHITE = (255, 255, 255)
BACKGROUND = (10, 200, 90)
LOSSLESS = ("PNG", "BMP", "TIFF")
MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"),
    *("I", "I;16", "I;16B", "I;16L", "F"),
)

# Pillow warns of oddities that it reads past; a service runs on through warnings, so these tests do too.
as_in_service = pytest.mark.filterwarnings("ignore")


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Hard to compress, so that a cut file lacks pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def quadrants(width: int = 48, height: int = 32) -> NDArray[np.uint8]:
    """Red and green above, blue and white below: no two orientations look the same."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = (255, 0, 0), (0, 255, 0)
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = (0, 0, 255), (255, 255, 255)
    return picture


def corners(picture: Image.Image) -> NDArray[np.int64]:
    pixels = np.asarray(picture).astype(np.int64)
    return pixels[[4, 4, -5, -5], [4, -5, 4, -5]]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size: tuple[int, int], depth: int, colour: int, rows: list[bytes], transparent: bytes | None = None) -> bytes:
    """A PNG of the specification, for what Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    key = b"" if transparent is None else chunk(b"tRNS", transparent)
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) if rows else b""
    return b"\x89PNG\r\n\x1a\n" + header + key + data + chunk(b"IEND", b"")


def written() -> list[tuple[str, str]]:
    """(format, mode) of everything that Pillow writes."""
    pairs = []
    for kind in FORMATS:
        for mode in MODES:
            try:
                saved(Image.new(mode, (2, 2)), kind)
            except (OSError, ValueError, KeyError):
                continue
            pairs.append((kind, mode))
    return pairs


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_lossless_picture_keeps_every_pixel(kind: str) -> None:
    """PNG, BMP and TIFF: what was drawn is what the model gets."""
    picture = noise(37, 23)
    decoded = decode(saved(picture, kind), WHITE)
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), np.asarray(picture))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("JPEG", {"quality": 95, "subsampling": 0, "optimize": True}),
        ("WEBP", {"quality": 95}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("GIF", {"interlace": 1}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("TIFF", {"compression": "jpeg", "quality": 95}),
        ("TIFF", {"compression": "tiff_lzw", "big_tiff": True}),
        ("MPO", {"quality": 95}),
        ("MPO", {"quality": 95, "save_all": True, "append_images": [Image.new("RGB", (48, 32))]}),
    ],
)
def test_every_ordinary_way_to_store_a_picture_just_works(kind: str, options: dict[str, Any]) -> None:
    """Four flat colours come back within what lossy compression does to them; phones' MPO files count as JPEG."""
    decoded = decode(saved(Image.fromarray(quadrants()), kind, **options), WHITE)
    assert (decoded.mode, decoded.size) == ("RGB", (48, 32))
    assert np.abs(corners(decoded) - corners(Image.fromarray(quadrants()))).max() <= 12


@pytest.mark.parametrize(("kind", "mode"), written())
def test_every_mode_that_pillow_writes_becomes_rgb_of_the_same_size(kind: str, mode: str) -> None:
    """Greyscale, palette, CMYK, 16 bits, transparency: just works; floats are refused with a sentence."""
    data = saved(Image.new(mode, (6, 4)), kind)
    if kind == "TIFF" and mode == "F":
        with pytest.raises(InvalidImage, match="8 or 16 bits"):
            decode(data, WHITE)
        return
    decoded = decode(data, WHITE)
    assert (type(decoded), decoded.mode, decoded.size) == (Image.Image, "RGB", (6, 4))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_grey_levels_stay_what_they_are(kind: str, mode: str) -> None:
    """Black is black and white is white in every one-channel format."""
    levels = np.array([[0, 255, 255, 0, 0, 255, 0, 255]], np.uint8)
    decoded = np.asarray(decode(saved(Image.fromarray(levels).convert(mode), kind), BACKGROUND))
    assert np.array_equal(decoded, np.repeat(levels[..., None], 3, 2))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_only_the_first_frame_of_an_animation_counts(kind: str) -> None:
    """An animated picture is answered as its first frame."""
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    decoded = decode(saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50), WHITE)
    assert np.abs(np.asarray(decoded).astype(int) - (255, 0, 0)).max() <= 4


def test_only_the_first_page_of_a_tiff_counts() -> None:
    """A scan of many pages is answered as its first."""
    pages = [Image.new("RGB", size, "red") for size in ((20, 10), (4, 4))]
    assert decode(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]), WHITE).size == (20, 10)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_transparency_is_laid_onto_the_stated_background(kind: str, options: dict[str, Any]) -> None:
    """Every alpha from 0 to 255: (alpha * colour + (255 - alpha) * background) / 255, within one level."""
    alpha = np.arange(256)
    pixels = np.empty((1, 256, 4), np.uint8)
    pixels[0, :, :3], pixels[0, :, 3] = (250, 30, 120), alpha
    decoded = np.asarray(decode(saved(Image.fromarray(pixels), kind, **options), BACKGROUND))[0]
    expected = (alpha[:, None] * np.array([250, 30, 120]) + (255 - alpha[:, None]) * np.array(BACKGROUND)) / 255
    assert np.abs(decoded - expected).max() <= 1
    assert tuple(decoded[0]) == BACKGROUND
    assert tuple(decoded[255]) == (250, 30, 120)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_with_alpha_is_laid_onto_the_background(kind: str) -> None:
    """LA: fully transparent shows the background, opaque the level."""
    picture = Image.fromarray(np.array([[[80, 0], [80, 255]]], np.uint8), "LA")
    assert np.asarray(decode(saved(picture, kind), BACKGROUND)).tolist() == [[list(BACKGROUND), [80, 80, 80]]]


@pytest.mark.parametrize(
    ("transparency", "expected"),
    [
        (None, [[255, 0, 0], [0, 0, 255]]),
        (0, [list(BACKGROUND), [0, 0, 255]]),
        (1, [[255, 0, 0], list(BACKGROUND)]),
        (b"\x00\xff", [list(BACKGROUND), [0, 0, 255]]),
        (b"\xff\x00", [[255, 0, 0], list(BACKGROUND)]),
    ],
)
def test_a_palette_may_have_transparent_entries(transparency: int | bytes | None, expected: list[list[int]]) -> None:
    """By index or by a table of alphas."""
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    options = {} if transparency is None else {"transparency": transparency}
    assert np.asarray(decode(saved(picture, "PNG", **options), BACKGROUND)).tolist() == [expected]


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_may_have_a_transparent_level(mode: str) -> None:
    picture = Image.fromarray(np.array([[255, 0]], np.uint8)).convert(mode)
    decoded = decode(saved(picture, "PNG", transparency=255), BACKGROUND)
    assert np.asarray(decoded).tolist() == [[list(BACKGROUND), [0, 0, 0]]]


@pytest.mark.parametrize(("depth", "row"), [(1, b"\x40"), (2, b"\x10"), (4, b"\x01"), (8, b"\0\1"), (16, b"\0\0\0\1")])
def test_the_transparent_level_counts_in_levels_of_the_file(depth: int, row: bytes) -> None:
    """Of 0 and 1, in whatever number of bits, 1 is the one that is transparent (PNG, 11.3.2.1)."""
    decoded = decode(png((2, 1), depth, 0, [row], transparent=b"\0\1"), BACKGROUND)
    assert np.asarray(decoded).tolist() == [[[0, 0, 0], list(BACKGROUND)]]


def test_rgb_may_have_a_transparent_colour() -> None:
    """A colour key shows the background where it stands, and nowhere else."""
    picture = Image.fromarray(np.array([[[9, 8, 7], [9, 8, 6]]], np.uint8))
    decoded = decode(saved(picture, "PNG", transparency=(9, 8, 7)), BACKGROUND)
    assert np.asarray(decoded).tolist() == [[list(BACKGROUND), [9, 8, 6]]]


def test_a_gif_may_have_a_transparent_colour() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    decoded = decode(saved(picture, "GIF", transparency=0), BACKGROUND)
    assert np.asarray(decoded).tolist() == [[list(BACKGROUND), [0, 0, 255]]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("ink", "colour"),
    [
        ((0, 255, 255, 0), (255, 0, 0)),
        ((255, 0, 255, 0), (0, 255, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_cmyk_is_not_a_negative(kind: str, ink: tuple[int, ...], colour: tuple[int, ...]) -> None:
    """No ink is white; magenta and yellow make red."""
    decoded = np.asarray(decode(saved(Image.new("CMYK", (16, 16), ink), kind), WHITE)).astype(int)
    assert np.abs(decoded - colour).max() <= 10


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "tifffile"])
def test_sixteen_bits_of_grey_are_rounded_and_not_clipped(kind: str) -> None:
    """x becomes round(x / 257), so that 65,535 is white and 257 k is k."""
    levels = np.concatenate(
        [np.arange(256) * 257, np.random.default_rng(0).integers(0, 65536, 2000), [128, 129, 385, 386, 65535]]
    ).astype(np.uint16)[None]
    if kind == "tifffile":
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, levels, byteorder=">")
        data = buffer.getvalue()
    else:
        data = saved(Image.fromarray(levels), kind)
    decoded = np.asarray(decode(data, WHITE))
    assert np.array_equal(decoded, np.repeat(np.rint(levels / 257).astype(np.uint8)[..., None], 3, 2))


def test_sixteen_bits_of_grey_may_have_a_transparent_level() -> None:
    """The level is compared before it is narrowed: its neighbour stays opaque."""
    row = struct.pack(">3H", 0x8080, 0x8081, 65535)
    decoded = decode(png((3, 1), 16, 0, [row], struct.pack(">H", 0x8080)), BACKGROUND)
    assert np.asarray(decoded).tolist() == [[list(BACKGROUND), [128] * 3, [255] * 3]]


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_a_channel_are_narrowed(colour: int, channels: int) -> None:
    """RGB, grey with alpha and RGBA of 16 bits, each within one level."""
    values = np.random.default_rng(colour).integers(0, 65536, (4, 8, channels)).astype(">u2")
    if channels in (2, 4):
        values[..., -1] = 65535
    decoded = np.asarray(decode(png((8, 4), 16, colour, [row.tobytes() for row in values]), WHITE)).astype(int)
    wanted = values[..., :3] if channels > 2 else np.repeat(values[..., :1], 3, 2)
    assert np.abs(decoded - wanted / 257).max() <= 1


@pytest.mark.parametrize("values", [[[0, 70_000]], [[-5, 3]]])
def test_levels_without_an_agreed_range_are_refused(values: list[list[int]]) -> None:
    """32-bit counts are not silently shown as white; the sentence names what was seen."""
    with pytest.raises(InvalidImage, match=f"65535, not {min(values[0])} to {max(values[0])}"):
        decode(saved(Image.fromarray(np.array(values, np.int32)), "TIFF"), WHITE)


def stored(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """How a camera stores rows for an EXIF orientation: CIPA DC-008, tag 274, "0th row, 0th column"."""
    flipped = {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.swapaxes(0, 1),  # left, top
        6: upright[:, ::-1].swapaxes(0, 1),  # right, top
        7: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: upright[::-1].swapaxes(0, 1),  # left, bottom
    }[orientation]
    return np.ascontiguousarray(flipped)


def exif(orientation: object) -> Image.Exif:
    block = Image.Exif()
    block[274] = orientation
    return block


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_turned_upright(kind: str, orientation: int) -> None:
    """A photograph taken with the phone on its side shows what the photographer saw."""
    picture = Image.fromarray(stored(quadrants(), orientation))
    decoded = decode(saved(picture, kind, exif=exif(orientation), quality=95), WHITE)
    assert decoded.size == (48, 32)
    assert np.abs(corners(decoded) - corners(Image.fromarray(quadrants()))).max() <= 12


@pytest.mark.parametrize("orientation", [5, 6, 8])
@pytest.mark.parametrize("mode", ["I;16", "L", "LA", "RGBA", "1"])
def test_every_mode_can_be_turned(mode: str, orientation: int) -> None:
    upright = np.zeros((4, 6), np.uint8)
    upright[0, 5] = 255
    flat = Image.fromarray(stored(upright, orientation))
    wide = Image.fromarray(np.asarray(flat).astype(np.uint16) * 257) if mode == "I;16" else flat.convert(mode)
    decoded = np.asarray(decode(saved(wide, "PNG", exif=exif(orientation)), WHITE))
    assert np.array_equal(decoded, np.repeat(upright[..., None], 3, 2))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_means_nothing_is_ignored(orientation: int) -> None:
    data = saved(Image.fromarray(quadrants()), "PNG", exif=exif(orientation))
    assert np.array_equal(np.asarray(decode(data, WHITE)), quadrants())


@as_in_service
@pytest.mark.parametrize(
    "block", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 40]
)
def test_a_broken_exif_block_beside_whole_pixels_is_shown_as_stored(block: bytes) -> None:
    """Every viewer shows such a picture, so the service does."""
    for kind in ("JPEG", "PNG", "WEBP"):
        decoded = decode(saved(Image.fromarray(quadrants()), kind, exif=block, quality=95), WHITE)
        assert np.abs(corners(decoded) - corners(Image.fromarray(quadrants()))).max() <= 12


@as_in_service
def test_damage_elsewhere_in_exif_does_not_hide_the_orientation() -> None:
    """A resolution tag of the wrong type is no reason to show a portrait lying down."""
    entries = struct.pack("<HHII", 274, 3, 1, 6) + struct.pack("<HHI4s", 282, 2, 3, b"ab\0\0")
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    picture = Image.fromarray(stored(quadrants(), 6))
    assert decode(saved(picture, "JPEG", exif=block), WHITE).size == (48, 32)


def test_only_exif_says_how_a_picture_lies() -> None:
    """As browsers do it: not what an editor noted of the orientation in XMP."""
    note = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for kind in ("JPEG", "WEBP"):
        assert decode(saved(Image.fromarray(quadrants()), kind, xmp=note), WHITE).size == (48, 32)


def test_damage_in_what_a_tiff_says_of_the_camera_does_not_matter() -> None:
    """Its EXIF directory lies outside of the file; the pixels are whole."""
    plain = saved(Image.fromarray(quadrants()), "TIFF", tiffinfo={34665: 1})
    entry = plain.index(struct.pack("<HHII", 34665, 4, 1, 1)) if plain.count(struct.pack("<H", 34665)) else 0
    assert entry
    data = plain[:entry] + struct.pack("<HHII", 34665, 4, 1, 2**31) + plain[entry + 12 :]
    assert np.array_equal(np.asarray(decode(data, WHITE)), quadrants())


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("PNG", {"exif": exif(6)}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ],
)
@as_in_service
def test_a_picture_that_was_cut_short_is_refused(kind: str, options: dict[str, Any], share: float) -> None:
    """Half an upload never gets a label; the sentence says how many bytes came."""
    data = saved(noise(64, 48), kind, **options)
    cut = data[: int(len(data) * share)]
    with pytest.raises(InvalidImage, match=rf"\b{len(cut)} bytes") as refusal:
        decode(cut, WHITE)
    assert "\n" not in str(refusal.value)


def test_a_png_with_damaged_pixels_is_refused_though_it_has_exif() -> None:
    """Reading EXIF decodes a PNG; a checksum that fails there must not pass the picture as whole."""
    data = bytearray(saved(noise(64, 48), "PNG", exif=exif(6)))
    data[data.index(b"IDAT") + 3000] ^= 0xFF
    with pytest.raises(InvalidImage, match="damaged"):
        decode(bytes(data), WHITE)


@as_in_service
@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
def test_flipped_bits_give_a_picture_or_a_refusal_and_nothing_else(kind: str) -> None:
    """400 damaged files of each format; Pillow itself raises a dozen kinds of exception on them."""
    whole = saved(noise(24, 16), kind, exif=exif(6)) if kind not in ("GIF", "BMP") else saved(noise(24, 16), kind)
    generator = np.random.default_rng(3)
    modes: set[str] = set()
    sentences: list[str] = []
    for _ in range(400):
        data = bytearray(whole)
        for place in generator.integers(0, min(len(data), generator.choice([64, 400, len(data)])), 3):
            data[place] ^= 1 << int(generator.integers(8))
        try:
            modes.add(decode(bytes(data), WHITE, max_pixels=1_000_000).mode)
        except (InvalidImage, ImageTooLarge) as refusal:
            sentences.append(str(refusal))
    assert modes <= {"RGB"}
    assert sentences
    assert not any("\n" in sentence or len(sentence) > 250 for sentence in sentences)


@pytest.mark.parametrize("kind", FORMATS)
def test_over_the_pixel_limit_is_refused_before_any_pixel_is_decoded(kind: str) -> None:
    """Half of the file is missing, and the size is what is refused: pixels were not touched."""
    data = saved(noise(64, 48), kind)
    with pytest.raises(ImageTooLarge, match="64 x 48 = 3072 pixels; the limit is 3071"):
        decode(data[: len(data) // 2] if kind != "WEBP" else data, WHITE, max_pixels=3071)


@pytest.mark.parametrize("size", [(1, 1), (300, 200), (7, 2000)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("PNG", {"bits": 8}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"exif": exif(6)})],
)
def test_the_size_of_a_plain_picture_is_known_without_decoding_it(
    kind: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    """As Pillow's own writer wrote it."""
    assert plain_pixels(saved(noise(*size), kind, **options)) == size[0] * size[1]


def test_what_may_grow_when_it_is_unpacked_is_not_plain() -> None:
    """Compressed text, a compressed profile, a second header, another format: their cost is not that of the pixels."""
    plain = saved(noise(8, 8), "PNG")
    after_header = 8 + 12 + 13
    for kind in (b"zTXt", b"iTXt", b"iCCP", b"IHDR", b"acTL", b"quAl"):
        assert plain_pixels(plain[:after_header] + chunk(kind, b"x" * 13) + plain[after_header:]) is None
    assert plain_pixels(plain[:after_header] + chunk(b"tEXt", b"a\0b") + plain[after_header:]) == 64
    jpeg = saved(noise(8, 8), "JPEG")
    assert plain_pixels(jpeg.replace(b"\xff\xc0", b"\xff\xc9")) is None  # arithmetic codes
    assert plain_pixels(jpeg[:2] + b"\xff" + jpeg[2:]) is None  # filling
    for other in FORMATS:
        if other not in ("PNG", "JPEG"):
            assert plain_pixels(saved(noise(8, 8), other)) is None


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xc0\0\0", b"nothing"])
def test_a_stub_is_not_plain(data: bytes) -> None:
    """Nothing is read past the end."""
    assert plain_pixels(data) is None


def test_a_tile_larger_than_the_limit_is_refused_before_it_is_decoded() -> None:
    """A TIFF of 100 x 100 pixels may say that they are the corner of a tile of 8192 x 8192."""
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, np.zeros((100, 100, 3), np.uint8), tile=(8192, 8192), compression="zlib", photometric="rgb"
    )
    with pytest.raises(ImageTooLarge, match="a tile of the picture has 8192 x 8192 = 67108864 pixels"):
        decode(buffer.getvalue(), WHITE)


def test_a_picture_at_the_limit_is_welcome() -> None:
    assert decode(saved(noise(64, 48), "PNG"), WHITE, max_pixels=3072).size == (64, 48)


@pytest.mark.parametrize("side", [7072, 12_000, 20_000, 2**31 - 1])
@as_in_service
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    """There are no pixel data at all, so nothing was decoded; the sentence has the limit and the value seen."""
    with pytest.raises(ImageTooLarge, match=rf"\b{side**2} pixels; the limit is 50000000$"):
        decode(png((side, side), 8, 2, []), WHITE)


def test_a_bomb_in_its_metadata_is_never_unpacked() -> None:
    """A compressed text of 100 MB in a PNG of a few kB: no pixel depends on it."""
    text = b"bomb\0\0" + zlib.compress(bytes(100_000_000), 1)
    data = saved(Image.new("RGB", (2, 2), "red"), "PNG")
    at = data.index(b"IDAT") - 4
    decoded = decode(data[:at] + chunk(b"zTXt", text) + data[at:], WHITE)
    assert np.asarray(decoded).tolist() == [[[255, 0, 0]] * 2] * 2


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"\0" * 1000,
        b"<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>",
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"RIFF\x10\0\0\0WEBP",
        b"BM",
        b"II*\0",
    ],
)
@as_in_service
def test_what_is_no_picture_is_told_which_formats_there_are(data: bytes) -> None:
    with pytest.raises(InvalidImage, match=rf"^the {len(data)} bytes are not .* JPEG, PNG, WEBP, GIF, BMP, TIFF$"):
        decode(data, WHITE)


def test_an_empty_upload_is_told_so() -> None:
    with pytest.raises(InvalidImage, match="empty"):
        decode(b"", WHITE)


@pytest.mark.parametrize("kind", ["ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "AVIF", "PDF", "EPS", "ICNS"])
def test_a_format_outside_of_the_list_is_refused(kind: str) -> None:
    """Pillow reads sixty formats, some by starting other programs; the service reads six."""
    with pytest.raises(InvalidImage, match=", ".join(FORMATS)):
        decode(saved(Image.new("RGB", (32, 32)), kind), WHITE)


@pytest.mark.parametrize("kind", FORMATS)
def test_one_pixel_is_a_picture(kind: str) -> None:
    assert decode(saved(Image.new("RGB", (1, 1), "red"), kind), WHITE).size == (1, 1)


@pytest.mark.parametrize("size", [(1, 65500), (65500, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
def test_a_very_long_picture_is_a_picture(kind: str, size: tuple[int, int]) -> None:
    assert decode(saved(Image.new("RGB", size), kind), WHITE).size == size


@pytest.mark.parametrize("data", [b"", b"a", b"ab", b"abc", bytes(range(256))])
def test_base64_is_read(data: bytes) -> None:
    assert decode_base64(base64.b64encode(data).decode()) == data


@pytest.mark.parametrize("text", ["====", "abc", "ab$=", "aGk=\n!", "data:image/png;base64,aGk=", "é" * 4])
def test_what_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidImage, match="not valid base64"):
        decode_base64(text)


def test_no_other_plugin_of_pillow_is_even_loaded() -> None:
    """Whatever comes, in whichever order; some of Pillow's plugins start other programs."""
    code = """
import io, sys, warnings
warnings.simplefilter("ignore")
from saccade.decode import decode
from saccade.errors import InvalidImage
for data in (b"nothing", b"%!PS-Adobe-3.0 EPSF-3.0", b"8BPS", b"P6 1 1 255 aaa", b"II*\\0\\x08\\0\\0\\0", b"\\0\\0\\1"):
    try:
        decode(data + bytes(99), (0, 0, 0))
    except InvalidImage:
        continue
    raise SystemExit("decoded")
print(*(name for name in sys.modules if name.startswith("PIL.") and name.endswith("Plugin")))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = {f"PIL.{name}ImagePlugin" for name in ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Tiff")}
    assert set(run.stdout.split()) == ours | {"PIL.PpmImagePlugin"}  # loaded by the first Image.open, and never asked

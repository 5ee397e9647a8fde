"""What no pixel depends on costs nothing, however much of it there is."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from saccade.decode import decode
from saccade.errors import InvalidImage
from saccade.lean import MOST_SCANS, MOST_VALUES, lean
from tests.saccade.test_decode import WHITE, as_in_service, chunk, exif, noise, saved

PICTURE = noise(40, 30)


def segment(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(payload) + 2) + payload


def same(data: bytes, plain: bytes) -> bool:
    return np.array_equal(np.asarray(decode(data, WHITE)), np.asarray(decode(plain, WHITE)))


@pytest.mark.parametrize(
    "part",
    [
        segment(0xE1, b"Exif\0\0" + bytes(10)),  # Pillow joins them one by one: minutes for 20 MB
        segment(0xE2, b"ICC_PROFILE\0\1\1"),
        segment(0xE2, b"MPF\0II*\0"),
        segment(0xE3, b""),
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 5),
        segment(0xFE, b"a comment"),
        b"\xff\xff",
        b"between two segments",
    ],
)
def test_a_jpeg_with_a_hundred_thousand_notes_is_the_jpeg_without(part: bytes) -> None:
    """They reach no decoder, and the pixels, and how they lie, are what they were."""
    plain = saved(PICTURE, "JPEG", exif=exif(6))
    at = plain.index(b"\xff\xdb")  # behind JFIF and EXIF
    assert lean(plain[:at] + part * 100_000 + plain[at:]) == lean(plain)
    assert same(plain[:at] + part * 3 + plain[at:], plain)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt", b"iCCP", b"acTL", b"prVt"])
def test_a_png_with_a_hundred_thousand_notes_is_the_png_without(kind: bytes) -> None:
    plain = saved(PICTURE, "PNG", exif=exif(6))
    at = plain.index(b"IDAT") - 4
    part = chunk(kind, b"note\0\0" + zlib.compress(bytes(100)))
    assert lean(plain[:at] + part * 100_000 + plain[at:]) == plain
    assert same(plain[:at] + part * 3 + plain[at:], plain)


@pytest.mark.parametrize(
    "part", [b"!\xfe\1x\0", b"!\xfe" + b"\1x" * 9 + b"\0", b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0", b"junk"]
)
@pytest.mark.parametrize("before", [b"!", b","])
def test_a_gif_with_a_hundred_thousand_notes_is_the_gif_without(part: bytes, before: bytes) -> None:
    """Its transparent colour is known all the same, wherever the notes stand."""
    plain = saved(Image.fromarray(np.array([[0, 1]], np.uint8)), "GIF", transparency=0)
    screen = 13 + 3 * 2 ** (plain[10] % 8 + 1)
    assert plain[screen : screen + 2] == b"!\xf9"
    at = screen if before == b"!" else screen + 8
    assert lean(plain[:at] + part * 100_000 + plain[at:]) == plain
    assert same(plain[:at] + part * 3 + plain[at:], plain)


def test_of_several_marks_of_adobe_the_last_says_what_the_channels_are() -> None:
    """RGB or YCbCr: as libjpeg takes it. One cut short is no mark."""
    plain = saved(PICTURE, "JPEG", keep_rgb=True)
    rgb, ycc = (segment(0xEE, b"Adobe\0\x64\0\0\0\0" + transform) for transform in (b"\0", b"\1"))
    bare = plain[:2] + plain[plain.index(b"\xff\xdb") :]
    for marks in (rgb + ycc, ycc + rgb, rgb + segment(0xEE, b"Adobe\0\x64"), segment(0xEE, b"Adobe\0\x64") + ycc):
        data = bare[:2] + marks + bare[2:]
        assert np.array_equal(np.asarray(decode(data, WHITE)), np.asarray(Image.open(io.BytesIO(data)))), marks


def test_of_several_controls_of_a_gif_the_last_that_names_a_colour_counts() -> None:
    """The same pixels as Pillow reads from the whole file."""
    plain = saved(Image.fromarray(np.array([[0, 1]], np.uint8)), "GIF", transparency=0)
    at = plain.index(b"!\xf9")
    named, other, none = plain[at : at + 8], b"!\xf9\4\1\0\0\1\0", b"!\xf9\4\0\0\0\0\0"
    seen = set()
    for controls in (named + none * 200, named + other, other + named, none):
        data = plain[:at] + controls + plain[at + 8 :]
        whole = Image.open(io.BytesIO(data)).convert("RGBA")
        expected = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
        assert np.array_equal(np.asarray(decode(data, WHITE)), np.asarray(expected)), controls
        seen.add(expected.tobytes())
    assert len(seen) == 3  # one colour, the other, none


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_pillow_writes_keeps_all_that_its_pixels_need(kind: str) -> None:
    """CMYK with Adobe's mark, palettes, transparency: the same pixels as Pillow reads from the whole file."""
    for mode in ("L", "RGB", "CMYK") if kind == "JPEG" else ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        data = saved(PICTURE.convert("L").convert(mode) if mode == "I;16" else PICTURE.convert(mode), kind)
        seen, whole = Image.open(io.BytesIO(lean(data))), Image.open(io.BytesIO(data))
        assert seen.mode == whole.mode
        assert np.array_equal(np.asarray(seen), np.asarray(whole))


def test_what_stands_behind_a_png_is_left_out() -> None:
    """A file that is a picture and an archive at once is a picture here."""
    plain = saved(PICTURE, "PNG")
    assert lean(plain + b"PK\3\4" + bytes(1000)) == plain


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_very_many_scans_is_refused(progressive: bool) -> None:
    """An empty scan of ten bytes makes the decoder walk over fifty million pixels."""
    plain = saved(PICTURE.convert("L"), "JPEG", progressive=progressive)
    at = plain.rindex(b"\xff\xda")
    scan = plain[at : at + 2 + struct.unpack(">H", plain[at + 2 : at + 4])[0]]
    for between in (b"\0", b"\0" + segment(0xFE, b"\xff\xd9")):  # an end within a comment is none
        with pytest.raises(InvalidImage, match=f"more than {MOST_SCANS} scans"):
            decode(plain[:-2] + (scan + between) * MOST_SCANS + plain[-2:], WHITE)
    assert same(plain + scan * MOST_SCANS, plain)  # behind the end they are no scans


def test_a_jpeg_of_very_many_tables_is_refused() -> None:
    plain = saved(PICTURE, "JPEG")
    at = plain.index(b"\xff\xdb")
    table = plain[at : at + 2 + struct.unpack(">H", plain[at + 2 : at + 4])[0]]
    with pytest.raises(InvalidImage, match="more than 1000 tables"):
        decode(plain[:at] + table * 1000 + plain[at:], WHITE)


def tiff(order: str, tags: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    """A TIFF with one directory of (tag, type, count, value or place)."""
    entries = b"".join(struct.pack(f"{order}HHII", *tag) for tag in tags)
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return start + entries + bytes(4) + tail


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "size"), [(3, 2), (4, 4), (5, 8), (12, 8)])
def test_a_tiff_of_very_many_numbers_is_refused(order: str, kind: int, size: int) -> None:
    """Each would be an object: gigabytes and half a minute from 20 MB of them."""
    count = MOST_VALUES + 1
    with pytest.raises(InvalidImage, match=f"more than {MOST_VALUES} numbers"):
        decode(tiff(order, [(282, kind, count, 26)], bytes(count * size)), WHITE)


@as_in_service
def test_directories_that_lead_to_each_other_come_to_an_end() -> None:
    """EXIF's directory is the picture's own, and its own again."""
    with pytest.raises(InvalidImage):
        decode(tiff("<", [(34665, 4, 1, 8), (34853, 4, 1, 8), (40965, 4, 1, 8)]), WHITE)


def test_numbers_in_a_directory_that_a_tag_leads_to_count_too() -> None:
    inner = struct.pack("<HHHII", 1, 282, 5, MOST_VALUES + 1, 8) + bytes(4)
    data = tiff("<", [(34665, 4, 1, 26)], inner + bytes(8 * MOST_VALUES))
    with pytest.raises(InvalidImage, match="numbers in its tags"):
        decode(data, WHITE)


@pytest.mark.parametrize(
    "options", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"rowsperstrip": 1}, {"tile": (16, 16)}]
)
def test_an_ordinary_tiff_is_none_of_these(options: dict[str, object]) -> None:
    """Strips of one row, tiles, both byte orders, BigTIFF: as tifffile writes them."""
    pixels, buffer = np.asarray(PICTURE), io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric="rgb", compression="zlib", **options)
    assert np.array_equal(np.asarray(decode(buffer.getvalue(), WHITE)), pixels)

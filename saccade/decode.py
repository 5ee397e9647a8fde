"""Bytes that somebody sent -> an upright RGB picture. The only decoder; limits hold before pixels are decoded.

Of a file Pillow sees what its pixels depend on (`saccade.lean`); it opens the six formats and nothing else.

Embedded colour profiles are not applied: training pictures are read the same way.
"""

import base64
import functools
import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from PIL.TiffTags import TAGS_V2_GROUPS

from saccade.errors import ImageTooLarge, InvalidImage
from saccade.lean import JPEG, PNG, chunks, lean

# JPEG, PNG, WEBP, GIF, BMP, TIFF; imported by name: for a format that it does not know yet Pillow loads all its plugins
_PLUGINS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
    BmpImagePlugin.BmpImageFile,
    TiffImagePlugin.TiffImageFile,
)
FORMATS = tuple(plugin.format for plugin in _PLUGINS)
MAX_PIXELS = 50_000_000

_PLAIN_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD",
                           b"pHYs", b"tIME", b"tEXt", b"eXIf"))  # fmt: skip
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_PNG_DEPTH = 24  # where the first header says how many bits a level has

_EXIF_BYTES = 6 + 2**16
"""What a JPEG can hold. Tags are read one number at a time, and orientation stands in the first directory."""

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_WITHOUT_RANGE = ("F",)

# EXIF orientation -> what turns the stored rows upright (CIPA DC-008, tag 274)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, background: tuple[int, int, int], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes the first frame, turns it upright by its EXIF orientation, and lays transparency onto `background`.

    Raises InvalidImage for bytes that are no whole picture of `FORMATS`, ImageTooLarge for more than `max_pixels`.
    """
    if not data:
        raise InvalidImage("the picture is empty (0 bytes)")
    try:
        return _upright_rgb(_load(data, max_pixels), background)
    except (InvalidImage, ImageTooLarge):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        seen = re.search(r"\d+", str(error))  # Pillow's own limit, met before ours; it says "(N pixels)"
        raise ImageTooLarge(f"the picture has {seen and seen[0]} pixels; the limit is {max_pixels}") from error
    except UnidentifiedImageError as error:
        raise InvalidImage(
            f"the {len(data)} bytes are not a picture in one of the formats {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files, struct.error included
        raise InvalidImage(f"the picture is damaged or cut short ({len(data)} bytes): {_reason(error)}") from error


def plain_pixels(data: bytes) -> int | None:
    """How many pixels a plain PNG or JPEG says it has, without Pillow; None for whatever is less plain than that.

    What is in such a file decides what decoding it costs: nothing that grows when it is unpacked but the pixels.
    """
    if data.startswith(PNG):
        return _plain_png(data)
    return _plain_jpeg(data) if data.startswith(JPEG) else None


def decode_base64(text: str) -> bytes:
    """Bytes of a picture that came as base64 (RFC 4648, padded). Raises InvalidImage."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidImage(f"the picture is not valid base64: {error}") from error


def orientation(picture: Image.Image) -> int:
    """EXIF orientation of a loaded picture, 1 to 8; 1 where it says none. Of a TIFF Pillow has turned the pixels."""
    exif = Image.Exif()  # not getexif(): where EXIF says nothing, that looks for another answer in XMP and texts
    try:
        exif.load(picture.info.get("exif", b"")[:_EXIF_BYTES])
        stated = exif.get(ExifTags.Base.Orientation)
        return int(stated) if stated in _TURNS else 1
    except Exception:  # a damaged EXIF block beside whole pixels: every viewer shows such a picture as it is stored
        return 1


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _plain_png(data: bytes) -> int | None:
    """Of a PNG (ISO/IEC 15948) that begins with its one header and has no compressed text or profile."""
    kinds = [kind for kind, _, _ in chunks(data)]
    if kinds[:1] != [b"IHDR"] or kinds.count(b"IHDR") != 1 or not _PLAIN_CHUNKS.issuperset(kinds):
        return None
    return int.from_bytes(data[16:20]) * int.from_bytes(data[20:24]) or None


def _plain_jpeg(data: bytes) -> int | None:
    """Of a JPEG (ITU-T T.81, annex B) whose segments follow each other without filling, up to its frame header."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if kind in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive; all with Huffman codes
            return int.from_bytes(data[at + 5 : at + 7]) * int.from_bytes(data[at + 7 : at + 9]) or None
        if not (0xE0 <= kind <= 0xEF or kind in (0xDB, 0xC4, 0xDD, 0xFE)):  # APPn, DQT, DHT, DRI, COM
            return None
        at += 2 + length
    return None


def _load(data: bytes, max_pixels: int) -> Image.Image:
    data = lean(data)
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size("the picture", picture.width, picture.height, max_pixels)
    if picture.format == "TIFF":  # a tile is decoded as a whole, however little of it the picture shows
        tags = picture.tag_v2  # type: ignore[attr-defined]
        _check_size("a tile of the picture", tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0), max_pixels)
        exif = picture.getexif()
        for directory in TAGS_V2_GROUPS:  # load() would read them all, and refuse the picture for damage in one
            if directory in exif:
                del exif[directory]
    if picture.format == "PNG" and picture.mode == "L" and "transparency" in picture.info:
        # Pillow spreads 2 and 4 bits over 0 to 255, but not the level that is transparent
        picture.info["transparency"] *= 255 // (2 ** data[_PNG_DEPTH] - 1)
    # Before EXIF is read: on a damaged PNG getexif() decodes too, and an error swallowed there would make a later
    # load() pass the damaged picture as whole.
    picture.load()
    return picture


def _check_size(what: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageTooLarge(f"{what} has {width} x {height} = {width * height} pixels; the limit is {max_pixels}")


def _upright_rgb(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    upright = _upright(picture)
    if upright.mode in _WITHOUT_RANGE:
        raise InvalidImage(f"pixels of mode {upright.mode} (float) have no agreed range: send 8 or 16 bits a channel")
    if upright.mode in _SIXTEEN_BITS:
        upright = _eight_bits(upright)
    if upright.has_transparency_data:
        # not alpha_composite: it wants three pictures of four channels more
        layer = upright if upright.mode == "RGBA" else upright.convert("RGBA")
        upright = Image.new("RGB", layer.size, background)
        upright.paste(layer, mask=layer)
    return upright if upright.mode == "RGB" and type(upright) is Image.Image else upright.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes the EXIF block anew, and fails on damage in tags that do not matter here.
    turn = _TURNS.get(orientation(picture))
    return picture if turn is None else picture.transpose(turn)


@functools.cache
def _narrowing() -> NDArray[np.uint8]:
    """(65536,): 16 bits -> 8, rounded."""
    return ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit greyscale -> L, rounded; Pillow's own conversion clips everything above 255 to white."""
    wide = np.asarray(picture)
    if wide.dtype != np.uint16:
        low, high = int(wide.min()), int(wide.max())
        if low < 0 or high > 65535:
            raise InvalidImage(f"greyscale levels must be within 0 and 65535, not {low} to {high}")
    narrow = Image.fromarray(_narrowing()[wide])
    if "transparency" in picture.info:
        narrow.putalpha(Image.fromarray(np.where(wide == picture.info["transparency"], np.uint8(0), np.uint8(255))))
    return narrow

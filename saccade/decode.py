"""Bytes that somebody sent -> an upright RGB picture. The only decoder; limits hold before pixels are decoded.

Embedded colour profiles are not applied: training pictures are read the same way.
"""

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from saccade.errors import ImageTooLarge, InvalidImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 50_000_000

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
    return Opened(data, max_pixels).decode(background)


class Opened:
    """A picture of which only the header is read: what it will cost is known."""

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> None:
        """Raises InvalidImage for bytes that are no picture of `FORMATS`, ImageTooLarge for more than `max_pixels`."""
        self._bytes = len(data)
        self._max_pixels = max_pixels
        if not data:
            raise InvalidImage("the picture is empty (0 bytes)")
        with _told(len(data), max_pixels):
            self._picture = _open(data, max_pixels)

    @property
    def pixels(self) -> int:
        return self._picture.width * self._picture.height

    def decode(self, background: tuple[int, int, int]) -> Image.Image:
        """Once. As `decode`; raises InvalidImage, ImageTooLarge."""
        with _told(self._bytes, self._max_pixels):
            # Before EXIF is read: on a damaged PNG getexif() decodes too, and an error swallowed there would make a
            # later load() pass the damaged picture as whole.
            self._picture.load()
            return _upright_rgb(self._picture, background)


@contextmanager
def _told(size: int, max_pixels: int) -> Iterator[None]:
    """Whatever Pillow raises, in words for who sent `size` bytes."""
    try:
        yield
    except (InvalidImage, ImageTooLarge):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        seen = re.search(r"\d+", str(error))  # Pillow's own limit, met before ours; it says "(N pixels)"
        raise ImageTooLarge(f"the picture has {seen and seen[0]} pixels; the limit is {max_pixels}") from error
    except UnidentifiedImageError as error:
        raise InvalidImage(f"the {size} bytes are not a picture in one of the formats {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files, struct.error included
        raise InvalidImage(f"the picture is damaged or cut short ({size} bytes): {_reason(error)}") from error


def decode_base64(text: str) -> bytes:
    """Bytes of a picture that came as base64 (RFC 4648, padded). Raises InvalidImage."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidImage(f"the picture is not valid base64: {error}") from error


def orientation(picture: Image.Image) -> int:
    """EXIF orientation of a loaded picture, 1 to 8; 1 where it says none."""
    try:
        stated = picture.getexif().get(ExifTags.Base.Orientation)
        return int(stated) if stated in _TURNS else 1
    except Exception:  # a damaged EXIF block beside whole pixels: every viewer shows such a picture as it is stored
        return 1


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _open(data: bytes, max_pixels: int) -> Image.Image:
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    pixels = picture.width * picture.height
    if pixels > max_pixels:
        raise ImageTooLarge(
            f"the picture has {picture.width} x {picture.height} = {pixels} pixels; the limit is {max_pixels}"
        )
    return picture


def _upright_rgb(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    upright = _upright(picture)
    if upright.mode in _WITHOUT_RANGE:
        raise InvalidImage(f"pixels of mode {upright.mode} (float) have no agreed range: send 8 or 16 bits a channel")
    if upright.mode in _SIXTEEN_BITS:
        upright = _eight_bits(upright)
    if upright.has_transparency_data:
        backdrop = Image.new("RGBA", upright.size, (*background, 255))
        upright = Image.alpha_composite(backdrop, upright.convert("RGBA"))
    return upright if upright.mode == "RGB" and type(upright) is Image.Image else upright.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes the EXIF block anew, and fails on damage in tags that do not matter here.
    turn = _TURNS.get(orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit greyscale -> L, rounded; Pillow's own conversion clips everything above 255 to white."""
    wide = np.asarray(picture)
    if wide.dtype != np.uint16:
        low, high = int(wide.min()), int(wide.max())
        if low < 0 or high > 65535:
            raise InvalidImage(f"greyscale levels must be within 0 and 65535, not {low} to {high}")
    table = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)
    narrow = Image.fromarray(table[wide])
    if "transparency" in picture.info:
        narrow.putalpha(Image.fromarray(np.where(wide == picture.info["transparency"], np.uint8(0), np.uint8(255))))
    return narrow

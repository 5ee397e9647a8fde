"""Whatever somebody has of a picture -> a file's bytes."""

import io
import os
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from saccade.decode import orientation
from saccade.errors import DataError, InvalidImage

Picture = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[np.uint8]
"""A path, the bytes of a file, an open file, a PIL image, or an array (H, W), (H, W, 3) or (H, W, 4)."""


def picture_bytes(picture: Picture) -> bytes:
    """The picture as a file: what has one is taken as it is, arrays and PIL images become PNG or TIFF, without loss.

    Raises DataError for a path or an open file that cannot be read, InvalidImage for what no file can hold and for what
    is none of these.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, np.ndarray):
        picture = _as_image(picture)
    if isinstance(picture, Image.Image):
        return _as_file(picture)
    if isinstance(picture, str | os.PathLike):
        try:
            with open(picture, "rb") as file:
                return file.read()
        except OSError as error:
            raise DataError(f"could not read {os.fspath(picture)}: {error.strerror}") from error
        except ValueError as error:  # a NUL in the name
            raise DataError(f"could not read {os.fspath(picture)!r}: {error}") from error
    if not hasattr(picture, "read"):
        raise InvalidImage(f"a picture is a path, bytes, an open file, an array or a PIL image, not {type(picture)}")
    try:
        content = picture.read()
    except OSError as error:
        raise DataError(f"could not read {getattr(picture, 'name', 'the open file')}: {error.strerror}") from error
    if not isinstance(content, bytes):
        raise InvalidImage("an open file must be opened for bytes, as by open(path, 'rb')")
    return content


def _as_image(pixels: NDArray[np.uint8]) -> Image.Image:
    shape = pixels.shape
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and shape[2] in (3, 4))) or 0 in shape:
        raise InvalidImage(
            f"an array must be uint8 (H, W), (H, W, 3) or (H, W, 4) to be a picture, not {pixels.dtype} {shape}"
        )
    return Image.fromarray(pixels)


def _as_file(picture: Image.Image) -> bytes:
    """PNG where it has the mode, else TIFF; with the orientation, so that the service turns it as it would the file."""
    buffer, exif = io.BytesIO(), Image.Exif()
    try:
        picture.load()
        exif[ExifTags.Base.Orientation] = orientation(picture)
        kind = "PNG" if picture.mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA") else "TIFF"
        picture.save(buffer, kind, exif=exif)
    except Exception as error:  # a file that Pillow has opened and not read yet may be damaged in every way
        raise InvalidImage(f"the picture of mode {picture.mode} cannot be sent: {error}") from error
    return buffer.getvalue()

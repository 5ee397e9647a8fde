"""A map drawn over the photograph that it belongs to, where the model saw it."""

import functools
import io
import os
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from saccade.errors import DataError, InvalidImage
from saccade.geometry import Region

# Turbo's polynomial of degree 5, red, green, blue, constant term first (Mikhailov 2019, https://ai.googleblog.com)
_TURBO = np.array(
    [
        [0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943],
        [0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604],
        [0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973],
    ]
)
_STRENGTH = 0.65
_UNSEEN = 0.35
_ALPHA = [round(255 * _STRENGTH * (level / 255) ** 0.5) for level in range(256)]


def overlay(picture: Image.Image, values: NDArray[np.float32], seen: Region) -> Image.Image:
    """Lays a map (rows, columns) over the `seen` part of an upright RGB picture; what was cropped away is darkened.

    Only evidence for something is drawn: negative values count as 0, and the largest value is red. In bytes throughout:
    eleven to fifteen for each pixel of a photograph.
    """
    box = (round(seen.left), round(seen.top), round(seen.left + seen.width), round(seen.top + seen.height))
    size = (max(1, box[2] - box[0]), max(1, box[3] - box[1]))
    heat = Image.fromarray(_heat(values)).resize(size, Image.Resampling.BICUBIC)
    coloured = heat.copy()
    coloured.putpalette(_palette())
    under = picture.crop((box[0], box[1], box[0] + size[0], box[1] + size[1]))
    blended = Image.composite(coloured.convert("RGB"), under, heat.point(_ALPHA))
    result = picture.point([round(level * _UNSEEN) for level in range(256)] * 3)
    result.paste(blended, box[:2])
    if (seen.width, seen.height) != (picture.width, picture.height):
        frame = (box[0], box[1], box[0] + size[0] - 1, box[1] + size[1] - 1)
        ImageDraw.Draw(result).rectangle(frame, outline=(255, 255, 255))
    return result


def colours(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values from 0 to 1, any shape -> RGB from 0 to 255, one axis more."""
    powers = heat[..., None] ** np.arange(6)
    rgb: NDArray[np.float32] = ((powers @ _TURBO.T).clip(0, 1) * 255).astype(np.float32)
    return rgb


@functools.cache
def _palette() -> bytes:
    return colours((np.arange(256) / 255).astype(np.float32)).round().astype(np.uint8).tobytes()


def _heat(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    positive = np.maximum(np.asarray(values, np.float32), np.float32(0))
    largest = float(positive.max())
    return (positive / (largest or 1.0) * 255).round().astype(np.uint8)


def picture_file(picture: Image.Image, kind: str) -> bytes:
    """As PNG, JPEG or WEBP. Raises InvalidImage for more pixels than the format holds."""
    buffer = io.BytesIO()
    try:
        picture.save(buffer, kind, quality=90)
    except (OSError, ValueError) as error:  # JPEG ends at 65,500 pixels a side, WebP at 16,383
        raise InvalidImage(f"{kind} cannot hold {picture.width} x {picture.height} pixels: {error}") from error
    return buffer.getvalue()


def write_whole(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all. Raises DataError."""
    part = path.with_name(f".{os.getpid()}-{threading.get_ident()}.part")  # one's own, and never too long
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        if part.is_file():
            part.unlink()
        raise DataError(f"could not write {path}: {error.strerror}") from error

"""What the manifest's preprocessing means: RGB picture -> float32 (3, height, width). The only implementation.

Training, evaluation, verification, the service and the command line all come through here.
"""

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade.geometry import Region, region
from saccade.manifest import Preprocessing

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


def resize(picture: Image.Image, spec: Preprocessing) -> NDArray[np.uint8]:
    """The region that the model sees, resampled with antialiasing, as uint8 (height, width, 3)."""
    if picture.mode != "RGB":
        raise ValueError(f"preprocessing takes an RGB picture, not mode {picture.mode}: decode it first")
    if is_as_seen(picture.width, picture.height, spec):
        return np.asarray(picture)
    return resample(picture, region(picture.width, picture.height, spec), spec)


def is_as_seen(width: int, height: int, spec: Preprocessing) -> bool:
    """Whether the model sees every pixel of a picture of this size as it is."""
    return (width, height) == (spec.width, spec.height) and region(width, height, spec) == (0.0, 0.0, width, height)


def resample(picture: Image.Image, seen: Region, spec: Preprocessing) -> NDArray[np.uint8]:
    """A region of an RGB picture at the size of the net, with antialiasing, as uint8 (height, width, 3)."""
    # Pillow's box resampling reads past the box's edge where there are pixels, so this equals resize, then crop.
    box = (seen.left, seen.top, seen.left + seen.width, seen.top + seen.height)
    return np.asarray(picture.resize((spec.width, spec.height), _RESAMPLING[spec.interpolation], box=box))


@functools.lru_cache(64)
def normalization(spec: Preprocessing) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(scale, offset), each (3,), such that (x / 255 - mean) / std = x * scale + offset."""
    mean, std = np.asarray(spec.mean, np.float64), np.asarray(spec.std, np.float64)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def normalize(
    pixels: NDArray[np.uint8], spec: Preprocessing, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """uint8 RGB (..., height, width, 3) -> float32 (..., 3, height, width), contiguous; into `out` where it is given.

    The channels of the result stand in the net's order.
    """
    scale, offset = normalization(spec)
    channels_first = np.moveaxis(pixels if spec.channels == "RGB" else pixels[..., ::-1], -1, -3)
    result = np.multiply(channels_first, scale[:, None, None], out=out, dtype=np.float32, order="C")
    result += offset[:, None, None]
    return result


def preprocess(picture: Image.Image, spec: Preprocessing) -> NDArray[np.float32]:
    """RGB picture of any size -> float32 (3, height, width)."""
    return normalize(resize(picture, spec), spec)

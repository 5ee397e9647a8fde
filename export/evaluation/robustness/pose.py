"""Rotation, zoom and translation of a picture that keeps its size.

What comes in from outside mirrors the picture at its edge, the edge itself not repeated, as in the shifts of training:
a border of one colour would be something that no training picture has, and the curve would be of that.
"""

import math

import numpy as np
from PIL import Image
from scipy.ndimage import affine_transform

from export.evaluation.robustness.levels import Pixels, Random

STEPS = ((0, 1), (0, -1), (1, 0), (-1, 0))
"""(down, right) of the four directions of a translation."""


def rotate(pixels: Pixels, degrees: float) -> Pixels:
    """About the middle, anticlockwise; bilinear. (H, W, 3) -> the same."""
    # quarter turns are exact: the cosine of a right angle is not 0 in floating point
    cosine, sine = (round(value, 15) for value in (math.cos(math.radians(degrees)), math.sin(math.radians(degrees))))
    turn = np.array([[cosine, sine], [-sine, cosine]])  # (row, column) of the result -> of the picture
    middle = (np.array(pixels.shape[:2]) - 1) / 2
    planes = [
        affine_transform(pixels[..., channel].astype(np.float64), turn, middle - turn @ middle, order=1, mode="mirror")
        for channel in range(3)
    ]
    return np.rint(np.stack(planes, -1)).astype(np.uint8)


def zoom(pixels: Pixels, factor: float) -> Pixels:
    """About the middle: above 1 the object is larger and its edges are lost; bilinear, with antialiasing where smaller.

    (H, W, 3) -> the same.
    """
    height, width = pixels.shape[:2]
    seen = (height / factor, width / factor)
    # as much as is seen outside, and as far as the kernel of a reduction reaches beyond
    margin = [max(math.ceil((part - side) / 2), 0) + (math.ceil(1 / factor) if factor < 1 else 0)
              for part, side in zip(seen, (height, width), strict=True)]  # fmt: skip
    wide = np.pad(pixels, ((margin[0], margin[0]), (margin[1], margin[1]), (0, 0)), mode="reflect")
    top, left = (wide.shape[0] - seen[0]) / 2, (wide.shape[1] - seen[1]) / 2
    box = (left, top, left + seen[1], top + seen[0])
    return np.asarray(Image.fromarray(wide).resize((width, height), Image.Resampling.BILINEAR, box=box))


def translate(pixels: Pixels, share: float, random: Random) -> Pixels:
    """By that share of the side, in whole pixels, in one of four directions. (H, W, 3) -> the same."""
    height, width = pixels.shape[:2]
    down, right = STEPS[random.integers(len(STEPS))]
    down, right = down * round(share * height), right * round(share * width)
    wide = np.pad(pixels, ((abs(down), abs(down)), (abs(right), abs(right)), (0, 0)), mode="reflect")
    top, left = abs(down) - down, abs(right) - right
    return wide[top : top + height, left : left + width]

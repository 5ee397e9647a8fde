"""The random resized crop (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842), of a picture at its full size."""

import math

import numpy as np
from numpy.typing import NDArray

from saccade.geometry import Region

ASPECT = 4 / 3
"""Width to height of a crop: evenly in the logarithm, from the inverse to this."""

DRAWS = 4


def crop_region(draws: NDArray[np.float64], width: int, height: int, least_area: float) -> Region:
    """The part of a picture that `DRAWS` numbers of [0, 1) stand for: area, aspect, how far right and how far down.

    What would be wider or higher than the picture is cut off there; torchvision draws again instead, up to ten times.
    """
    area = width * height * (least_area + draws[0] * (1 - least_area))
    aspect = math.exp((2 * draws[1] - 1) * math.log(ASPECT))
    wide, high = min(math.sqrt(area * aspect), width), min(math.sqrt(area / aspect), height)
    return Region(float(draws[2] * (width - wide)), float(draws[3] * (height - high)), wide, high)

"""Weather: of float64 (H, W, 3) from 0 to 1, to the same, which may leave 0 to 1.

Flakes and drops are enlarged to the picture, as `fields` says; fog, a fractal, gets finer with it.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    convolve,
    distance_transform_edt,
    gaussian_filter,
    morphological_gradient,
    uniform_filter,
)

from export.evaluation.robustness.blur import smear
from export.evaluation.robustness.fields import grid_of, resample
from export.evaluation.robustness.levels import Floats, Random

WATER = np.array([175, 238, 238]) / 255
MUD = np.array([63, 42, 20]) / 255
GREY = np.array([0.299, 0.587, 0.114])
"""Luma of RGB (ITU-R BT.601)."""
RELIEF = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
"""Light on a drop, from its upper left."""
DEEPEST = 20.0
"""Points from a drop's edge beyond which it is no deeper."""


def fog(x: Floats, random: Random, amount: float, decay: float) -> Floats:
    """(x + amount · plasma) · m / (m + amount), m being the largest value of x."""
    size = 1 << (max(x.shape[:2]) - 1).bit_length()
    cloud = plasma(size, decay, random)[: x.shape[0], : x.shape[1], None]
    return (x + amount * cloud) * x.max() / (x.max() + amount)


def plasma(size: int, decay: float, random: Random) -> Floats:
    """(size, size), a power of two: a fractal from 0 to 1 by the diamond-square algorithm, its edges joined.

    Each point is the mean of its four neighbours and a number from the even distribution on ± 10000; each time the
    points stand twice as close, the range is divided by decay².
    """
    field = np.zeros((size, size))
    step, reach = size, 1e4

    def middle(four: Floats) -> Floats:
        return four / 4 + random.uniform(-reach, reach, four.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        right = corners + np.roll(corners, -1, 1)
        field[half::step, half::step] = middle(right + np.roll(right, -1, 0))
        centres = field[half::step, half::step]
        field[::step, half::step] = middle(centres + np.roll(centres, 1, 0) + right)
        down = corners + np.roll(corners, -1, 0)
        field[half::step, ::step] = middle(centres + np.roll(centres, 1, 1) + down)
        step, reach = half, reach / decay**2
    low, high = field.min(), field.max()
    return (field - low) / (high - low)


def snow(
    x: Floats,
    random: Random,
    mean: float,
    deviation: float,
    size: float,
    threshold: float,
    radius: float,
    blur: float,
    keep: float,
) -> Floats:
    """A whitened picture, and flakes that fall at -135 to -45 degrees: N(mean, deviation) enlarged by `size`, what is
    below the threshold 0, smeared; and the same turned by 180 degrees.
    """
    flakes = random.normal(mean, deviation, grid_of(x))
    flakes = resample(flakes, flakes.shape, size)
    flakes = np.where(flakes < threshold, 0, flakes.clip(0, 1))
    layer = resample(smear(flakes, radius, blur, random.uniform(-135, -45)), x.shape)[..., None]
    white = keep * x + (1 - keep) * np.maximum(x, (x @ GREY)[..., None] * 1.5 + 0.5)
    return white + layer + layer[::-1, ::-1]


def spatter(
    x: Floats, random: Random, mean: float, deviation: float, blur: float, threshold: float, strength: float, mud: bool
) -> Floats:
    """Drops are where N(mean, deviation), smoothed, is above the threshold. Water lights the picture up, by `strength`
    at most; mud hides it where the drops, smoothed by `strength`, are above 0.8.
    """
    liquid = gaussian_filter(random.normal(mean, deviation, grid_of(x)), blur, mode="nearest", truncate=4.0)
    liquid[liquid < threshold] = 0
    if mud:
        cover = gaussian_filter((liquid > 0).astype(np.float64), strength, mode="nearest", truncate=4.0)
        cover = resample(np.where(cover < 0.8, 0, cover), x.shape)[..., None]
        return x * (1 - cover) + MUD * cover
    light = liquid * _relief(liquid > 0)
    light *= strength / max(light.max(), 1e-12)
    return x + WATER * resample(light, x.shape)[..., None]


def brightness(x: Floats, _: Random, amount: float) -> Floats:
    """The value of HSV + amount, hue and saturation as they were."""
    value = x.max(-1, keepdims=True)
    brighter = (value + amount).clip(0, 1)
    return np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)


def _relief(drops: NDArray[np.bool_]) -> Floats:
    """Distance from the drops' edges, lit from one side, smoothed before and after."""
    edge = morphological_gradient(drops.astype(np.uint8), size=3) > 0
    depth = np.minimum(distance_transform_edt(~edge), DEEPEST) if edge.any() else np.full(drops.shape, DEEPEST)
    lit = convolve(uniform_filter(depth, 3, mode="mirror"), RELIEF, mode="mirror")
    return uniform_filter(lit.clip(0), 3, mode="mirror")

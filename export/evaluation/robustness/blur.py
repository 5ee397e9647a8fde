"""Blur: of float64 (H, W, 3) from 0 to 1, to the same.

Lengths are given in pixels of a picture whose shorter side has 32.
"""

import math

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

from export.evaluation.robustness.fields import scale
from export.evaluation.robustness.levels import Floats, Random, to_levels
from export.evaluation.robustness.pose import zoom


def gaussian_blur(x: Floats, _: Random, deviation: float) -> Floats:
    """Convolution with a Gaussian, cut off at four deviations; beyond the edge its colour goes on."""
    return _smooth(x, deviation * scale(x))


def defocus_blur(x: Floats, _: Random, radius: float, deviation: float) -> Floats:
    """Convolution with a disk whose steps a Gaussian smooths; mirrored at the edge."""
    return _convolve(x, _disk(radius * scale(x), deviation * scale(x), math.ceil(scale(x))))


def glass_blur(x: Floats, random: Random, deviation: float, reach: int, rounds: int) -> Floats:
    """Gaussian blur, pixels that take the colour of a neighbour, Gaussian blur again: frosted glass.

    In each round every pixel from `reach` + 1 to the edge takes the colour of the one that lies from `reach` before to
    `reach` - 1 behind it, down and to the right each, as they were before the round.
    """
    smooth = _smooth(x, deviation * scale(x))
    reach = max(round(reach * scale(x)), 1)
    rows, columns = (np.arange(reach + 1, size - reach + 1) for size in x.shape[:2])
    for _ in range(rounds):
        down, right = random.integers(-reach, reach, (2, len(rows), len(columns)))
        smooth[np.ix_(rows, columns)] = smooth[rows[:, None] + down, columns + right]
    return _smooth(smooth, deviation * scale(x))


def motion_blur(x: Floats, random: Random, radius: float, deviation: float) -> Floats:
    """Mean along a line of -45 to 45 degrees, from the pixel onwards, weighted by half a Gaussian."""
    return smear(x, radius * scale(x), deviation * scale(x), random.uniform(-45, 45))


def smear(x: Floats, radius: float, deviation: float, degrees: float) -> Floats:
    """ImageMagick's motion blur, (H, W, ...): the mean of 2 ceil(radius) + 1 pixels along a line, which goes to the
    right and, by the angle, down; the i-th weighs exp(-i² / 2 deviation²). Beyond the edge its colour goes on.
    """
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    steps, weights = steps[weights > 1e-9], weights[weights > 1e-9]
    angle = math.radians(degrees)
    down = np.ceil(steps * math.sin(angle) - 0.5).astype(int)
    right = np.ceil(steps * math.cos(angle) - 0.5).astype(int)
    margin = int(max(np.abs(down).max(), np.abs(right).max()))
    wide = np.pad(x, ((margin, margin), (margin, margin), *[(0, 0)] * (x.ndim - 2)), mode="edge")
    height, width = x.shape[:2]
    result = np.zeros_like(x)
    for weight, row, column in zip(weights / weights.sum(), down + margin, right + margin, strict=True):
        result += weight * wide[row : row + height, column : column + width]
    return result


def zoom_blur(x: Floats, _: Random, steps: int) -> Floats:
    """Mean of the picture and of its enlargements by 0, 1, … `steps` hundredths: a camera that comes nearer."""
    pixels = to_levels(x)
    total = sum((zoom(pixels, 1 + step / 100).astype(np.float64) for step in range(steps + 1)), x * 255)
    return total / (255 * (steps + 2))


def _smooth(x: Floats, deviation: float) -> Floats:
    return gaussian_filter(x, (deviation, deviation, 0), mode="nearest", truncate=4.0)


def _disk(radius: float, deviation: float, reach: int) -> Floats:
    half = math.ceil(radius) + reach
    along = np.arange(-half, half + 1)
    disk = (along[:, None] ** 2 + along**2 <= radius**2).astype(np.float64)
    return gaussian_filter(disk / disk.sum(), deviation, mode="constant", radius=reach)


def _convolve(x: Floats, kernel: Floats) -> Floats:
    half = len(kernel) // 2
    wide = np.pad(x, ((half, half), (half, half), (0, 0)), mode="reflect")
    return fftconvolve(wide, kernel[..., None], mode="valid", axes=(0, 1))

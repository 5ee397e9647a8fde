"""Noise of single pixels: of float64 (H, W, 3) from 0 to 1, to the same, which may leave 0 to 1.

A sensor's noise is one of pixels, so the constants do not change with the size of the picture.
"""

import numpy as np

from export.evaluation.robustness.levels import Floats, Random


def gaussian_noise(x: Floats, random: Random, deviation: float) -> Floats:
    """To each value is added deviation · N(0, 1), as in low light."""
    return x + random.normal(scale=deviation, size=x.shape)


def shot_noise(x: Floats, random: Random, photons: float) -> Floats:
    """Poisson(x · photons) / photons: what counting photons gives."""
    return random.poisson(x * photons) / photons


def impulse_noise(x: Floats, random: Random, share: float) -> Floats:
    """That share of the values is lost: half of them 0, half of them 1."""
    place = random.random(x.shape)
    return np.where(place < share / 2, 0.0, np.where(place < share, 1.0, x))


def speckle_noise(x: Floats, random: Random, deviation: float) -> Floats:
    """To each value x is added x · deviation · N(0, 1)."""
    return x + x * random.normal(scale=deviation, size=x.shape)

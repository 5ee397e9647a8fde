"""Sizes: the published constants are for pictures of 32 pixels, and what they are for pictures of another size.

Lengths grow with the picture. What is drawn at random and has a shape (flakes, drops, displacements) is drawn on a grid
whose shorter side has 32 points and enlarged, so that it looks alike at every size.
"""

import math

import numpy as np
from scipy.ndimage import map_coordinates

from export.evaluation.robustness.levels import Floats

SIDE = 32
"""Of the pictures that the published constants are for."""


def scale(x: Floats) -> float:
    """How many pixels of x (H, W, ...) stand for one of a picture whose shorter side has 32."""
    return min(x.shape[:2]) / SIDE


def grid_of(x: Floats) -> tuple[int, int]:
    """Rows and columns, in the form of x (H, W, ...), the shorter side having 32."""
    return round(x.shape[0] / scale(x)), round(x.shape[1] / scale(x))


def resample(field: Floats, shape: tuple[int, ...], factor: float = 1.0) -> Floats:
    """(rows, columns) -> the first two of `shape`, linear, about the middle; `factor` enlarges it further."""
    if field.shape == shape[:2] and math.isclose(factor, 1):
        return field
    axes = [
        (np.arange(size) - (size - 1) / 2) * points / (size * factor) + (points - 1) / 2
        for points, size in zip(field.shape, shape, strict=False)
    ]
    return map_coordinates(field, np.meshgrid(*axes, indexing="ij"), order=1, mode="nearest")

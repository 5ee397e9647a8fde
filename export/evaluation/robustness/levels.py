"""The two forms of a picture: bytes, and numbers from 0 to 1."""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""RGB, (height, width, 3), at the size of the net's input."""
Floats = NDArray[np.float64]
Random = np.random.Generator


def to_levels(x: Floats) -> Pixels:
    """0 to 1 -> 0 to 255, rounded; what is beyond is cut off."""
    return np.rint(x.clip(0, 1) * 255).astype(np.uint8)

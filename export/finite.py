"""Weights that were read are numbers: none is NaN, and only masks are infinite."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.errors import DataError


def check_finite(source: object, tensors: Iterable[tuple[str, NDArray[Any]]]) -> None:
    """Raises DataError naming what has NaN or infinite numbers. A mask, which is 0 and -infinity alone, may."""
    problems = []
    for name, array in tensors:
        count = 0 if array.dtype.kind not in "fc" else int(array.size - np.isfinite(array).sum())
        if count and not ((array == 0) | (array == -np.inf)).all():
            problems.append(f"{name} has {count} numbers that are NaN or infinite")
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise DataError(f"{source} has weights that are no numbers: {shown}")

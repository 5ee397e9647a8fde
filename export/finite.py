"""Weights that were read are numbers: none is NaN, and only masks are infinite. So are logits."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.errors import BundleError, DataError


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


def check_logits(model: str, logits: NDArray[np.floating[Any]]) -> None:
    """(n, labels). No figure can be made of others. Raises BundleError naming the model."""
    count = int(logits.size - np.isfinite(logits).sum())
    if count:
        raise BundleError(f"{model} gives logits that are NaN or infinite: {count:,} of {logits.size:,}")

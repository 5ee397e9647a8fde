"""Weights must be numbers; masks may be minus infinity."""

import numpy as np
import pytest

from export.finite import check_finite
from saccade.errors import DataError


def test_masks_may_be_infinite_and_weights_may_not() -> None:
    """A mask that is added to scores is 0 and minus infinity alone; whole numbers are never asked."""
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    check_finite("it", [("mask", mask), ("index", np.arange(3)), ("weight", np.ones(3, np.float32))])
    for wrong in (mask + 1, -mask, np.where(mask < 0, np.nan, mask)):
        with pytest.raises(
            DataError, match=r"^it has weights that are no numbers: w has 6 numbers that are NaN or inf"
        ):
            check_finite("it", [("w", wrong)])

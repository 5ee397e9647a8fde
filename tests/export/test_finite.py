"""Weights and logits must be numbers; masks may be minus infinity."""

import numpy as np
import pytest

from export.finite import check_finite, check_logits
from saccade.errors import BundleError, DataError


def test_masks_may_be_infinite_and_weights_may_not() -> None:
    """A mask that is added to scores is 0 and minus infinity alone; whole numbers are never asked."""
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    check_finite("it", [("mask", mask), ("index", np.arange(3)), ("weight", np.ones(3, np.float32))])
    for wrong in (mask + 1, -mask, np.where(np.isinf(mask), np.float32(np.nan), mask)):
        with pytest.raises(
            DataError, match=r"^it has weights that are no numbers: w has 6 numbers that are NaN or inf"
        ):
            check_finite("it", [("w", wrong)])


def test_logits_are_numbers() -> None:
    """Neither NaN nor infinite, of any picture; the sentence names the model and how many."""
    logits = np.zeros((300, 4), np.float32)
    check_logits("it", logits)
    logits[7, 2], logits[9, 0] = np.nan, -np.inf
    with pytest.raises(BundleError, match=r"^it gives logits that are NaN or infinite: 2 of 1,200$"):
        check_logits("it", logits)

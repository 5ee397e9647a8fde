"""From logits to scores: what `scores` and `temperature` of a manifest mean. The only implementation."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.manifest import Scores


def to_scores(logits: NDArray[np.floating[Any]], scores: Scores, temperature: float) -> NDArray[np.float64]:
    """(..., labels) -> the same shape, in float64; written so that no power overflows."""
    scaled = logits.astype(np.float64) / temperature
    if scores == "sigmoid":
        return 0.5 * (1 + np.tanh(0.5 * scaled))
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(-1, keepdims=True)
    return probabilities

"""The pooled row: how the classifier reads the tokens of the last attention layer, as far as the manifest fixes it."""

import numpy as np
from numpy.typing import NDArray

from saccade.manifest import AttentionLayer, Pooling


def pooled_row(pooling: Pooling, layer: AttentionLayer) -> NDArray[np.float32]:
    """(tokens,), which sums to 1. Raises ValueError for learned pooling, whose row is an output of the graph."""
    row = np.zeros(layer.tokens, np.float64)
    mean = np.zeros(layer.tokens, np.float64)
    mean[layer.patch_slice] = 1 / layer.patches
    match pooling.kind:
        case "class_token":
            row[pooling.index] = 1
        case "mean":
            row = mean
        case "class_and_distillation":
            row[pooling.index : pooling.index + 2] = 0.5
        case "class_and_mean":
            row = mean / 2
            row[pooling.index] += 0.5
        case "learned":
            raise ValueError("the row of learned pooling is an output of the graph")
    return row.astype(np.float32)

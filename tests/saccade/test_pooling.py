"""The pooled row: where the classifier reads the tokens, by the words of the manifest."""

from typing import Any

import numpy as np
import pytest

from saccade.manifest import AttentionLayer, Pooling
from saccade.pooling import pooled_row


def layer(count: int, place: str = "first") -> AttentionLayer:
    """Two by two patches, and special tokens."""
    special = {"count": count, "place": place}
    return AttentionLayer.model_validate({"output": "a", "grid": (2, 2), "heads": 1, "special_tokens": special})


@pytest.mark.parametrize(
    ("pooling", "special", "place", "expected"),
    [
        ({"kind": "class_token"}, 1, "first", [1, 0, 0, 0, 0]),
        ({"kind": "class_token", "index": 4}, 1, "last", [0, 0, 0, 0, 1]),
        ({"kind": "mean"}, 0, "first", [0.25] * 4),
        ({"kind": "mean"}, 2, "first", [0, 0, 0.25, 0.25, 0.25, 0.25]),
        ({"kind": "mean"}, 1, "last", [0.25, 0.25, 0.25, 0.25, 0]),
        ({"kind": "class_and_distillation"}, 2, "first", [0.5, 0.5, 0, 0, 0, 0]),
        ({"kind": "class_and_mean"}, 2, "first", [0.5, 0, 0.125, 0.125, 0.125, 0.125]),
    ],
)
def test_the_row_is_what_the_manifest_says(
    pooling: dict[str, Any], special: int, place: str, expected: list[float]
) -> None:
    """A mean is over patches alone: registers and class tokens are not pooled."""
    row = pooled_row(Pooling(**pooling), layer(special, place))
    assert row.dtype == np.float32
    assert row.tolist() == expected


def test_the_row_of_learned_pooling_is_no_constant() -> None:
    """It is an output of the graph, another one for each picture."""
    with pytest.raises(ValueError, match="output of the graph"):
        pooled_row(Pooling(kind="learned"), layer(0))

"""Scores are the softmax, or the sigmoid, of logits over the temperature: as torch has them, in float64."""

import numpy as np
import pytest
import torch

from saccade.manifest import Scores
from saccade.scores import to_scores

LOGITS = np.concatenate(
    [
        4 * np.random.default_rng(0).standard_normal((40, 7)),
        [[0] * 7, [1e4, -1e4, 0, 5, 5, 5, 1e4], [-3e38, 3e38, 0, 0, 0, 0, 0], [88.8] * 7, [-800] * 6 + [-799]],
    ]
).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.05, 0.7875, 1.0, 20.0])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_scores_are_those_of_torch(kind: Scores, temperature: float) -> None:
    """Whatever is too large for a power included."""
    scaled = torch.from_numpy(LOGITS).double() / temperature
    expected = (scaled.softmax(-1) if kind == "softmax" else scaled.sigmoid()).numpy()
    scores = to_scores(LOGITS, kind, temperature)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(to_scores(LOGITS[3], kind, temperature), scores[3])


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_temperature_changes_no_order(kind: Scores) -> None:
    """The first label is the same; of those that differ in float64 the order is."""
    plain, warm = to_scores(LOGITS[:40], kind, 1.0), to_scores(LOGITS[:40], kind, 3.0)
    np.testing.assert_array_equal(np.argsort(plain, -1), np.argsort(warm, -1))

"""What answers to labelled pictures are worth. Pure functions of logits (n, classes) or scores and labels (n,)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from saccade.card import ScoreQuality
from saccade.manifest import TEMPERATURES

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]

BINS = 15
_NUMBERS = 2**15
"""Scores that are in memory at a time, unless one picture has more: they stay in a CPU's cache."""


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927)."""
    z = 1.959963984540054
    share = correct / count
    middle = share + z * z / (2 * count)
    spread = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return float((middle - spread) / scale), float((middle + spread) / scale)


def top_k(logits: Floats, labels: Labels, k: int) -> float:
    """Share of the pictures whose label is among the k highest; of equals the lower index counts as the higher."""
    hits = 0
    for some, true in _parts(logits, labels):
        own = some[np.arange(len(true)), true][:, None]
        before = np.arange(some.shape[1]) < true[:, None]
        rank = ((some > own) | ((some == own) & before)).sum(1)
        hits += int((rank < k).sum())
    return hits / len(labels)


def confusion(predicted: Labels, labels: Labels, classes: int) -> NDArray[np.int64]:
    """(classes, classes): how many pictures of the label of a row were given the label of a column."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes).astype(np.int64)


class Scored(NamedTuple):
    """What is needed of the scores of n pictures, float64 (n,) each: a small part of what all scores would take."""

    log_of_label: NDArray[np.float64]
    """Logarithm of the true label's score."""
    highest: NDArray[np.float64]
    squares: NDArray[np.float64]
    """Sum over labels of the squared error."""
    right: NDArray[np.bool_]
    """Whether the first of the highest logits is the true label's."""


def scored(logits: Floats, labels: Labels, temperature: float) -> Scored:
    """Of softmax(logits / temperature), in float64, some pictures at a time."""
    found = []
    for some, own in _parts(logits, labels):
        log_scores = _log_softmax(some.astype(np.float64) / temperature)
        scores, rows = np.exp(log_scores), np.arange(len(own))
        squares = (scores**2).sum(1) - 2 * scores[rows, own] + 1
        found.append(Scored(log_scores[rows, own], scores.max(1), squares, some.argmax(1) == own))
    return Scored(*(np.concatenate(values) for values in zip(*found, strict=True)))


def score_quality(logits: Floats, labels: Labels, temperature: float) -> ScoreQuality:
    """Of softmax(logits / temperature), in float64."""
    return quality(scored(logits, labels, temperature))


def quality(it: Scored) -> ScoreQuality:
    """Means over pictures."""
    return ScoreQuality(
        nll=float(-it.log_of_label.mean()),
        brier=float(it.squares.mean()),
        ece=expected_calibration_error(it.highest, it.right),
    )


def expected_calibration_error(confidence: Floats, right: NDArray[np.bool_], bins: int = BINS) -> float:
    """Mean over pictures of |accuracy - mean confidence| of their bin (Guo et al. 2017, equation 3).

    Bins are (0, 1/bins], (1/bins, 2/bins], … of the highest score.
    """
    counts, confidences, rights = reliability(confidence, right, bins)
    return float(np.abs(rights - confidences).sum() / counts.sum())


def reliability(
    confidence: Floats, right: NDArray[np.bool_], bins: int = BINS
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Of each bin: pictures, sum of their highest scores, and how many of them are right."""
    place = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = np.bincount(place, confidence, bins), np.bincount(place, right, bins)
    return counts.astype(np.int64), sums[0].astype(np.float64), sums[1].astype(np.float64)


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """The temperature of least NLL (Guo et al. 2017, section 4.2); the accuracy does not change.

    Raises ValueError where there is no least one between 1/20 and 20, as when every picture is right.
    """

    def nll(log_temperature: float) -> float:
        total = 0.0
        for some, own in _parts(logits, labels):
            log_scores = _log_softmax(some.astype(np.float64) / np.exp(log_temperature))
            total -= float(log_scores[np.arange(len(own)), own].sum())
        return total / len(labels)

    bounds = np.log(TEMPERATURES)
    found = minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    if np.abs(found.x - bounds).min() < 1e-3:
        raise ValueError(f"no temperature between 1/20 and 20 is best: {np.exp(found.x):.3g} is at the edge")
    return float(np.exp(found.x))


def _parts(logits: Floats, labels: Labels) -> Iterator[tuple[Floats, Labels]]:
    """The same, some pictures at a time."""
    size = max(1, _NUMBERS // logits.shape[1])
    return ((logits[start : start + size], labels[start : start + size]) for start in range(0, len(labels), size))


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = values - logsumexp(values, axis=1, keepdims=True)
    return result

"""Figures of answers, held to scikit-learn, scipy, torch, and loops that are typed anew; ties included."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score
from torch.nn import functional as F

from export.evaluation.figures import (
    confusion,
    expected_calibration_error,
    fit_temperature,
    reliability,
    score_quality,
    top_k,
    wilson_interval,
)

CLASSES = 12


@pytest.fixture
def logits() -> np.ndarray:
    """(300, 12), float32; of the true label a little higher than the others."""
    generator = np.random.default_rng(4)
    values = 2.5 * generator.standard_normal((300, CLASSES))
    values[np.arange(300), generator.integers(0, CLASSES, 300)] += 2
    return values.astype(np.float32)


@pytest.fixture
def labels(logits: np.ndarray) -> np.ndarray:
    """Half of them the label of the highest logit."""
    generator = np.random.default_rng(5)
    return np.where(generator.random(300) < 0.5, logits.argmax(1), generator.integers(0, CLASSES, 300))


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (1, 10), (10, 10), (8_912, 10_000), (1, 1), (499, 500)])
def test_the_interval_is_wilsons(correct: int, count: int) -> None:
    """As scipy has it, at the edges too."""
    reference = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, count) == pytest.approx((reference.low, reference.high), abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5, 11])
def test_top_k_is_scikit_learns(logits: np.ndarray, labels: np.ndarray, k: int) -> None:
    assert top_k(logits, labels, k) == top_k_accuracy_score(labels, logits, k=k, labels=range(CLASSES))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_of_equal_logits_the_lower_index_comes_first(k: int) -> None:
    """As in an answer of the service; a net that gives the same for all is right by chance only."""
    logits = np.array([[1, 1, 1, 1], [0, 2, 2, 1], [3, 3, 0, 3]], np.float32)
    for label in range(4):
        labels = np.full(3, label)
        ranks = [sorted(range(4), key=lambda place, row=row: (-row[place], place)).index(label) for row in logits]
        assert top_k(logits, labels, k) == sum(rank < k for rank in ranks) / 3


def test_the_confusion_matrix_is_scikit_learns(logits: np.ndarray, labels: np.ndarray) -> None:
    """Rows are true labels, columns given ones; labels that do not occur have their row and column."""
    labels = np.minimum(labels, 9)
    expected = confusion_matrix(labels, logits.argmax(1), labels=range(CLASSES))
    np.testing.assert_array_equal(confusion(logits.argmax(1), labels, CLASSES), expected)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_nll_and_brier_are_those_of_the_softmax(logits: np.ndarray, labels: np.ndarray, temperature: float) -> None:
    """NLL as scikit-learn and torch have it, Brier by its definition, both in float64."""
    quality = score_quality(logits, labels, temperature)
    scaled = torch.from_numpy(logits).double() / temperature
    assert quality.nll == pytest.approx(F.cross_entropy(scaled, torch.from_numpy(labels)).item(), rel=1e-12)
    scores = scaled.softmax(1).numpy()
    assert quality.nll == pytest.approx(log_loss(labels, scores, labels=range(CLASSES)), rel=1e-9)
    squares = [
        sum((score - (place == label)) ** 2 for place, score in enumerate(row))
        for row, label in zip(scores.tolist(), labels.tolist(), strict=True)
    ]
    assert quality.brier == pytest.approx(sum(squares) / 300, rel=1e-12)


def test_any_number_of_pictures_is_taken_some_at_a_time() -> None:
    """Figures of more pictures than are in memory at once are those of all of them."""
    generator = np.random.default_rng(6)
    logits = torch.from_numpy(generator.standard_normal((9_001, 7)))
    labels = torch.from_numpy(generator.integers(0, 7, 9_001))
    scores = logits.softmax(1)
    found = score_quality(logits.numpy(), labels.numpy(), 1.0)
    assert found.nll == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-12)
    assert found.brier == pytest.approx((scores - F.one_hot(labels, 7)).square().sum(1).mean().item(), rel=1e-12)
    right = (logits.argmax(1) == labels).tolist()
    assert found.ece == pytest.approx(ece_by_a_loop(scores.max(1).values.tolist(), right, 15), abs=1e-12)
    assert top_k(logits.numpy(), labels.numpy(), 3) == top_k_accuracy_score(labels, logits, k=3)


def test_scores_that_round_to_nought_have_a_finite_nll() -> None:
    """A wrong answer 2,000 above the true one costs 2,000 nats and not infinity."""
    quality = score_quality(np.array([[2000.0, 0.0], [-1e30, 0.0]], np.float32), np.array([1, 1]), 1.0)
    assert quality.nll == pytest.approx(1000)
    assert quality.brier == pytest.approx(1)


def ece_by_a_loop(confidence: list[float], right: list[bool], bins: int) -> float:
    """Guo et al. 2017, equations 2 and 3, as they stand."""
    total = 0.0
    for m in range(bins):
        members = [i for i, value in enumerate(confidence) if m / bins < value <= (m + 1) / bins]
        if members:
            accuracy = sum(right[i] for i in members) / len(members)
            mean = sum(confidence[i] for i in members) / len(members)
            total += len(members) / len(confidence) * abs(accuracy - mean)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_calibration_error_is_that_of_the_paper(logits: np.ndarray, labels: np.ndarray, bins: int) -> None:
    """Scores at the edge of a bin included, of which 1 is one."""
    scores = torch.from_numpy(logits).double().softmax(1).numpy()
    confidence = np.concatenate([scores.max(1), np.arange(1, bins + 1) / bins])
    right = np.concatenate([scores.argmax(1) == labels, np.arange(bins) % 2 == 0])
    expected = ece_by_a_loop(confidence.tolist(), right.tolist(), bins)
    assert expected_calibration_error(confidence, right, bins) == pytest.approx(expected, abs=1e-12)
    counts, sums, rights = reliability(confidence, right, bins)
    assert (counts.sum(), rights.sum()) == (len(right), right.sum())
    assert sums.sum() == pytest.approx(confidence.sum())
    if bins == 15:
        quality = score_quality(logits, labels, 1.0)
        expected = ece_by_a_loop(scores.max(1).tolist(), (scores.argmax(1) == labels).tolist(), 15)
        assert quality.ece == pytest.approx(expected, abs=1e-12)


def temperature_by_lbfgs(logits: np.ndarray, labels: np.ndarray) -> float:
    """As the paper's own code looks for it, in float64."""
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    wide, targets = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    optimizer = torch.optim.LBFGS([log_temperature], lr=0.5, max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(wide / log_temperature.exp(), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    return math.exp(log_temperature.item())


@pytest.mark.parametrize("scale", [0.2, 1.0, 6.0])
def test_the_temperature_is_the_one_of_least_nll(logits: np.ndarray, labels: np.ndarray, scale: float) -> None:
    """Found by another optimizer too, whether scores were too sure or too modest; nothing near it is better."""
    scaled = (scale * logits).astype(np.float32)
    found = fit_temperature(scaled, labels)
    assert found == pytest.approx(temperature_by_lbfgs(scaled, labels), rel=1e-4)
    best = score_quality(scaled, labels, found).nll
    assert all(best <= score_quality(scaled, labels, found * near).nll for near in (0.5, 0.99, 1.01, 2))


def test_fitting_takes_little_memory_beside_the_logits() -> None:
    """A part of them at a time: all in float64 would take twice what they take. It finds the same."""
    generator = np.random.default_rng(7)
    logits = generator.standard_normal((100_000, 20)).astype(np.float32)
    labels = generator.integers(0, 20, 100_000)
    labels[:50_000] = logits[:50_000].argmax(1)
    tracemalloc.start()
    found = fit_temperature(logits, labels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < logits.nbytes / 2
    assert found == pytest.approx(temperature_by_lbfgs(logits, labels), rel=1e-4)


def test_no_temperature_is_best_where_every_picture_is_right(logits: np.ndarray) -> None:
    """Surer would always be better, or, where all are wrong, less sure."""
    for labels in (logits.argmax(1), logits.argmin(1)):
        with pytest.raises(ValueError, match="no temperature between 1/20 and 20 is best"):
            fit_temperature(logits, labels)

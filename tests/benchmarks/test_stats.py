"""What the benchmarks say of a handful of runs."""

import math
import random

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.stats import median_interval, paired_ratio, percentile


@pytest.mark.parametrize("size", range(1, 61))
def test_an_interval_covers_what_it_says_and_is_the_narrowest_that_reaches_90_percent(size: int) -> None:
    """Nobody has to trust a constant: coverage and ranks are those of the binomial distribution."""
    ranks = range(1, (size + 1) // 2 + 1)
    coverage = {rank: 1 - 2 * binom.cdf(rank - 1, size, 0.5) for rank in ranks}
    rank = max((rank for rank in ranks if coverage[rank] >= 0.9), default=1)
    shuffled = random.Random(size).sample(range(1, size + 1), size)
    interval = median_interval(shuffled)
    assert (interval.low, interval.high) == (rank, size + 1 - rank)
    assert interval.coverage == pytest.approx(coverage[rank], abs=1e-12)
    assert interval.median == np.median(shuffled)
    assert interval.size == size


def test_nine_runs_give_the_second_to_the_eighth() -> None:
    """The figure that the tables print: 502/512, less the outer two at each end, is 96.1 %."""
    interval = median_interval([5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 8.0, 4.0, 6.0])
    assert interval[:4] == (5.0, 2.0, 8.0, 9)
    assert interval.coverage == pytest.approx((512 - 2 * (1 + 9)) / 512)


def test_too_few_runs_say_so() -> None:
    """Four runs reach no 90 %: the interval is all of them, and its coverage is the true one."""
    interval = median_interval([4.0, 1.0, 3.0, 2.0])
    assert interval == (2.5, 1.0, 4.0, 4, 0.875)


def test_a_ratio_is_taken_pair_by_pair() -> None:
    """A machine that slows down fourfold half-way changes no ratio."""
    theirs = [10.0, 11.0, 12.0, 40.0, 44.0, 48.0]
    ratio = paired_ratio([2 * figure for figure in theirs], theirs)
    assert (ratio.median, ratio.low, ratio.high, ratio.pairs) == (2.0, 2.0, 2.0, 6)
    assert ratio.coverage == pytest.approx(1 - 2 * binom.cdf(0, 6, 0.5))


@pytest.mark.parametrize(
    ("ours", "theirs"), [([1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0, 0.0]), ([0.0], [1.0]), ([], []), ([math.nan], [1.0])]
)
def test_runs_without_a_ratio_are_refused(ours: list[float], theirs: list[float]) -> None:
    """A run that answered nothing cannot look like a figure."""
    with pytest.raises(ValueError, match=r"pairs|above 0|at least one"):
        paired_ratio(ours, theirs)


@pytest.mark.parametrize("percent", [1, 25, 50, 99, 100])
@pytest.mark.parametrize("size", [1, 2, 99, 100, 101, 1001])
def test_a_percentile_is_a_value_that_was_seen(size: int, percent: float) -> None:
    """The nearest rank, as numpy's inverted distribution function has it."""
    values = np.random.default_rng(size).normal(size=size)
    assert percentile(list(values), percent) == np.percentile(values, percent, method="inverted_cdf")


def test_nothing_has_no_percentile() -> None:
    """Where nobody was refused, refusals have no latency, not a latency of 0."""
    assert percentile([], 50) is None

"""What may be said of a handful of noisy runs: the median, and an interval that assumes no distribution.

Runs of two servers are compared in pairs taken side by side, so that whatever slowed the machine slowed both.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

LEVEL = 0.90
"""The least coverage of an interval, where there are values enough (five) for it."""


class Interval(NamedTuple):
    """A median with the interval that holds the true one with the probability `coverage`."""

    median: float
    low: float
    high: float
    size: int
    coverage: float


class Ratio(NamedTuple):
    """An `Interval` over ratios: above 1 where ours is the larger figure."""

    median: float
    low: float
    high: float
    pairs: int
    coverage: float


def median_interval(values: Sequence[float]) -> Interval:
    """The median of independent values, between two of them.

    The k-th smallest and the k-th largest of n values hold the median of their distribution, whatever that is, with
    probability 1 - 2 P(B <= k - 1), B binomial with n trials of 1/2 (David and Nagaraja, Order Statistics, 3rd edition,
    section 7.1). k is the largest that reaches LEVEL; where none does, low and high are the extremes.

    Raises ValueError where there is no value, or one is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"a median needs finite values, at least one: {list(values)}")
    ordered = sorted(values)
    count = len(ordered)
    rank, coverage, below = 1, 1 - 2 / 2**count, 1
    for candidate in range(2, (count + 1) // 2 + 1):
        below += math.comb(count, candidate - 1)
        if 1 - 2 * below / 2**count < LEVEL:
            break
        rank, coverage = candidate, 1 - 2 * below / 2**count
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return Interval(middle, ordered[rank - 1], ordered[count - rank], count, coverage)


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """`median_interval` of ours / theirs, pair by pair.

    Raises ValueError where the lengths differ or a figure is not above 0: a run without an answer has no ratio.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} runs of ours against {len(theirs)} of theirs are not pairs")
    if not all(figure > 0 for figure in (*ours, *theirs)):
        raise ValueError(f"a ratio needs figures above 0: ours {list(ours)}, theirs {list(theirs)}")
    return Ratio(*median_interval([our / their for our, their in zip(ours, theirs, strict=True)]))


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Nearest rank: the smallest value that no less than `percent` of all reach or stay under; None of none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1] if ordered else None

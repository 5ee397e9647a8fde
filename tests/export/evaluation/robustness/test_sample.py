"""A sample of a split is fair: as many of each class as there can be, whatever the classes are called."""

import numpy as np

from export.evaluation.robustness.sample import halves, spread

LABELS = np.repeat([3, 0, 2], [50, 5, 200])


def test_classes_are_sampled_evenly() -> None:
    """A class that has fewer pictures gives all of them."""
    counts = np.bincount(LABELS[spread(LABELS, 65, seed=0)], minlength=4)
    assert counts.tolist() == [5, 0, 30, 30]


def test_a_split_is_taken_whole_where_it_has_no_more() -> None:
    """In its own order."""
    assert spread(LABELS, 1000, seed=0).tolist() == list(range(255))


def test_a_seed_fixes_the_sample_and_a_smaller_one_is_part_of_it() -> None:
    """Another seed takes others."""
    assert spread(LABELS, 40, seed=1).tolist() == spread(LABELS, 40, seed=1).tolist()
    assert spread(LABELS, 40, seed=1).tolist() != spread(LABELS, 40, seed=2).tolist()
    assert set(spread(LABELS, 20, seed=1)) < set(spread(LABELS, 40, seed=1))


def test_the_order_of_a_bundles_labels_changes_nothing() -> None:
    """Bundles side by side see the same pictures."""
    renamed = np.array([1, 9, 0, 5])[LABELS]
    assert spread(renamed, 40, seed=1).tolist() == spread(LABELS, 40, seed=1).tolist()
    assert [half.tolist() for half in halves(renamed, 3)] == [half.tolist() for half in halves(LABELS, 3)]


def test_halves_share_no_picture_and_every_class() -> None:
    """What a probe is fitted on is never what it is asked about."""
    first, second = halves(LABELS, seed=0)
    assert sorted([*first, *second]) == list(range(255))
    difference = np.bincount(LABELS[first], minlength=4) - np.bincount(LABELS[second], minlength=4)
    assert np.abs(difference).max() <= 1

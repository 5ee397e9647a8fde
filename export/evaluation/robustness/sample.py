"""Which pictures of a large split are measured. What is drawn depends on which pictures are of one class, and not on
how the classes are numbered, so that bundles with other orders of labels are given the same pictures.
"""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def members(labels: Labels) -> list[Labels]:
    """The places of each class's pictures, in the order in which the classes come first."""
    _, first, classes = np.unique(labels, return_index=True, return_inverse=True)
    return [np.flatnonzero(classes == place) for place in np.argsort(first)]


def turns(labels: Labels, random: np.random.Generator) -> Labels:
    """(n,): the place of each picture in a random order of its class's."""
    turn = np.zeros(len(labels), np.int64)
    for found in members(labels):
        turn[random.permutation(found)] = np.arange(len(found))
    return turn


def spread(labels: Labels, count: int, seed: int) -> Labels:
    """Places of `count` pictures, or of all if there are no more, rising: as many of each class as there can be.

    A smaller sample of one seed is part of a larger one.
    """
    random = np.random.default_rng(seed)
    order = np.lexsort((random.random(len(labels)), turns(labels, random)))
    return np.sort(order[:count])


def halves(labels: Labels, seed: int) -> tuple[Labels, Labels]:
    """Places of two halves of the pictures, and of each class."""
    turn = turns(labels, np.random.default_rng(seed))
    return np.flatnonzero(turn % 2 == 0), np.flatnonzero(turn % 2 == 1)

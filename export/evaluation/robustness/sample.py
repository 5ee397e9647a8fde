"""Which pictures of a large split are measured."""

import numpy as np
from numpy.typing import NDArray


def spread(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Indices of `count` pictures, or of all if there are no more, rising: as many of each class as there can be.

    A smaller sample of one seed is part of a larger one.
    """
    random = np.random.default_rng(seed)
    turn = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[random.permutation(members)] = np.arange(len(members))
    order = np.lexsort((random.random(len(labels)), turn))
    return np.sort(order[:count])

"""PatchDrop (Naseer et al. 2021, https://arxiv.org/abs/2105.10497): patches of a model's own grid are hidden.

In three orders: at random; the most salient first; the least salient first. There one model from outside says what is
salient for all; here each model's own map does.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from export.evaluation.robustness.levels import Pixels, Random

Order = Literal["random", "salient", "non-salient"]
ORDERS: tuple[Order, ...] = ("random", "salient", "non-salient")


def drop(pixels: Pixels, grid: tuple[int, int], dropped: NDArray[np.int64], colour: Pixels) -> Pixels:
    """(H, W, 3) -> the same, with `colour` (3,) in the patches of these numbers, counted row by row from 0."""
    hidden = np.zeros(grid, bool)
    hidden.flat[dropped] = True
    rows, columns = (np.arange(size) * cells // size for size, cells in zip(pixels.shape, grid, strict=False))
    return np.where(hidden[rows[:, None], columns][..., None], colour, pixels)


def chosen(order: Order, share: float, salience: NDArray[np.floating], random: Random) -> NDArray[np.int64]:
    """Numbers of the patches to drop: that share of all, rounded, of `salience` (patches,).

    Of equally salient patches the first stands before the others. What is dropped of a small share is dropped of a
    large one as well.
    """
    ranked = {
        "random": lambda: random.permutation(len(salience)),
        "salient": lambda: np.argsort(-salience, kind="stable"),
        "non-salient": lambda: np.argsort(salience, kind="stable"),
    }[order]()
    return ranked[: round(share * len(salience))]

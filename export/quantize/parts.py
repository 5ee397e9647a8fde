"""Held-out pictures, split once more: to calibrate on, to choose by, and to judge with. Never the test split."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from export.evaluation.pictures import choose_pictures
from export.examples import Examples, load
from export.quantize.agreement import BATCH, Batch
from saccade.errors import DataError
from saccade.manifest import Manifest, Preprocessing
from saccade.preprocess import normalize

SEED = 8
CHOOSE = 1000
"""Pictures to choose by, at least, where there are four times as many: of 256, one label is nearly 0.4 points."""


class Parts(NamedTuple):
    """Pictures that have none in common."""

    name: str
    """Of the split, as it stands on a card."""
    calibrate: Examples
    choose: Examples
    judge: Examples


def held_out_parts(manifest: Manifest, data: Path | None, count: int | None) -> Parts:
    """As `sizes` has it, drawn by a fixed seed; the rest judge. Raises DataError."""
    chosen = choose_pictures(manifest, data, "held-out")
    examples = chosen.examples
    if len(examples) < 4:
        raise DataError(f"{chosen.name} has {len(examples)} pictures; at least 4 are needed")
    first, second = sizes(len(examples), count)
    order = np.random.default_rng(SEED).permutation(len(examples))
    calibrate, choose, judge = np.split(order, [first, first + second])
    return Parts(chosen.name, examples.choose(calibrate), examples.choose(choose), examples.choose(judge))


def sizes(total: int, count: int | None) -> tuple[int, int]:
    """(`count` to calibrate on, as many or CHOOSE to choose by), each at most a quarter; none where it is None."""
    if count is None:
        return 0, 0
    return min(count, total // 4), min(max(count, CHOOSE), total // 4)


def batches(examples: Examples, spec: Preprocessing) -> Iterator[Batch]:
    """Through the one preprocessing."""
    for start in range(0, len(examples), BATCH):
        pictures = load(examples.choose(np.arange(start, min(start + BATCH, len(examples)))), spec)
        yield normalize(pictures.pixels, spec), pictures.labels

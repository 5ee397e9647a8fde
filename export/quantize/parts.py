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


class Parts(NamedTuple):
    """Pictures that have none in common."""

    name: str
    """Of the split, as it stands on a card."""
    calibrate: Examples
    choose: Examples
    judge: Examples


def held_out_parts(manifest: Manifest, data: Path | None, count: int) -> Parts:
    """`count` to calibrate on, as many to choose by, at most a quarter each; the rest to judge with.

    Raises DataError.
    """
    chosen = choose_pictures(manifest, data, "held-out")
    examples, count = chosen.examples, min(count, len(chosen.examples) // 4)
    if len(examples) < 4:
        raise DataError(f"{chosen.name} has {len(examples)} pictures; at least 4 are needed")
    order = np.random.default_rng(SEED).permutation(len(examples))
    return Parts(
        chosen.name,
        examples.choose(order[:count]),
        examples.choose(order[count : 2 * count]),
        examples.choose(order[2 * count :]),
    )


def batches(examples: Examples, spec: Preprocessing) -> Iterator[Batch]:
    """Through the one preprocessing."""
    for start in range(0, len(examples), BATCH):
        pictures = load(examples.choose(np.arange(start, min(start + BATCH, len(examples)))), spec)
        yield normalize(pictures.pixels, spec), pictures.labels

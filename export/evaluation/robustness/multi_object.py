"""Several objects at once: what a bundle says of mosaics that it was never trained on.

Which classes occur is read from the order of the scores. Whether opposite corners share a class is read in two ways:

- by a linear probe on the sorted logits (logistic regression), which every bundle can be asked. It learns how the first
  labels stand out, and cannot know where;
- where there is an exact class map, by what it says itself: each corner's label is the one of the highest sum over the
  patches of the corner's tile, and the two are equal or not. Nothing is fitted, and the place counts.

The probe is fitted on mosaics of one half of the pictures and asked about those of the other half, both ways.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from export.evaluation.predict import predict
from export.evaluation.robustness.looks import Looks
from export.evaluation.robustness.mosaics import Mosaics, whole
from export.evaluation.robustness.results import Corners, Mean, MosaicResult, Occurrence, share
from export.evaluation.robustness.sample import halves, members
from export.examples import Examples
from saccade.errors import DataError
from saccade.manifest import Preprocessing
from saccade.progress import Progress

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

SIDES = (2, 3)
PROBED = 16
"""Logits that the probe sees, the highest first."""


class _Seen(NamedTuple):
    """Of the mosaics of one half of the pictures."""

    logits: Floats
    """(n, labels)"""
    corners: Floats | None
    """(n, 2, labels): sums of the class map over the upper left and the lower right tile."""
    same: Labels
    """(n,): 1 where the corners share a class."""
    tile_labels: Labels
    """(n, side²)"""


def mosaics_of(pictures: int) -> int:
    """How many mosaics go with so many pictures: as many, to be halved, and enough to fit a probe on."""
    return 2 * max(pictures // 2, 4)


def check_pictures(labels: Labels, name: str) -> None:
    """Of a split, before anything long is begun. Raises DataError where a half would have fewer than two classes."""
    enough = sum(len(places) >= 4 for places in members(labels))
    if enough < 2:
        raise DataError(
            f"mosaics need two classes of at least four pictures each, two for each half, and {name} has {enough}: "
            "leave mosaics out by --only"
        )


def judge(
    looks: Looks, examples: Examples, spec: Preprocessing, side: int, count: int, seed: int, progress: Progress
) -> MosaicResult:
    """`count` mosaics, an even number, of the pictures of a split; `progress` counts them."""
    seen = []
    for number, half in enumerate(halves(examples.labels, seed)):
        mosaics = Mosaics(examples.choose(half), spec, side, count // 2, 2 * seed + number)
        seen.append(_look(looks, mosaics, spec, progress))
    together = occurrence(
        np.concatenate([one.logits for one in seen]), np.concatenate([one.tile_labels for one in seen])
    )
    return MosaicResult(side=side, mosaics=count, occurrence=together, corners=_corners(seen, count))


def occurrence(logits: Floats, tile_labels: Labels) -> Occurrence:
    """Of the labels' order by their logits, the lower index first among equals: (n, labels) and (n, tiles)."""
    count, labels = logits.shape
    occurs = np.zeros(logits.shape, bool)
    occurs[np.arange(count)[:, None], tile_labels] = True
    hits = np.take_along_axis(occurs, np.argsort(-logits, axis=1, kind="stable"), 1)  # best label first
    classes = occurs.sum(1)
    precision = hits.cumsum(1) / np.arange(1, labels + 1)
    found = np.take_along_axis(precision, classes[:, None] - 1, 1)[:, 0]
    harmonic = (1 / np.arange(1, labels + 1)).sum()
    expected = (harmonic + (classes - 1) / max(labels - 1, 1) * (labels - harmonic)) / labels
    return Occurrence(
        classes=float(classes.mean()),
        first=share(int(hits[:, 0].sum()), count),
        first_chance=float(classes.mean() / labels),
        found=_mean(found),
        average_precision=_mean((precision * hits).sum(1) / classes),
        average_precision_chance=float(expected.mean()),
    )


def tile_patches(grid: tuple[int, int], side: int) -> tuple[Labels, Labels] | None:
    """Numbers of the patches whose middles lie in the upper left and in the lower right tile; None for no patch."""
    first = [np.flatnonzero((np.arange(cells) + 0.5) * side < cells) for cells in grid]
    if not all(map(len, first)):
        return None
    numbers = np.arange(grid[0] * grid[1]).reshape(grid)
    return numbers[np.ix_(*first)].ravel(), numbers[::-1, ::-1][np.ix_(*first)].ravel()


def _look(looks: Looks, mosaics: Mosaics, spec: Preprocessing, progress: Progress) -> _Seen:
    patches = tile_patches(looks.class_map.grid, mosaics.side) if looks.class_map else None

    def answer(inputs: Floats) -> dict[str, Floats]:
        if patches is None:
            return {"logits": looks.logits(inputs)}
        logits, maps = looks.class_maps(inputs)
        return {"logits": logits, "corners": np.stack([maps[:, tile].sum(1) for tile in patches], 1)}

    outputs = predict(answer, mosaics, whole(spec), progress=progress)
    return _Seen(outputs["logits"], outputs.get("corners"), mosaics.labels, mosaics.tile_labels)


def _corners(seen: list[_Seen], count: int) -> Corners:
    right = sum(int((_probe(fit, asked) == asked.same).sum()) for fit, asked in (seen, seen[::-1]))
    probe, given = share(right, count), [one.corners.argmax(-1) for one in seen if one.corners is not None]
    if not given:
        return Corners(probe=probe, class_map=None, tile_labels=None)
    labels, same = np.concatenate(given), np.concatenate([one.same for one in seen])
    ends = np.concatenate([one.tile_labels[:, [0, -1]] for one in seen])
    return Corners(
        probe=probe,
        class_map=share(int(((labels[:, 0] == labels[:, 1]) == same).sum()), count),
        tile_labels=share(int((labels == ends).sum()), 2 * count),
    )


def _probe(fit: _Seen, asked: _Seen) -> Labels:
    """(n,): whether the corners of those asked about share a class, 1 or 0."""
    features = [-np.sort(-one.logits.astype(np.float64), axis=1)[:, :PROBED] for one in (fit, asked)]
    middle, spread = features[0].mean(0), features[0].std(0) + 1e-12
    probe = LogisticRegression(max_iter=1000).fit((features[0] - middle) / spread, fit.same)
    judged: Labels = probe.predict((features[1] - middle) / spread)
    return judged


def _mean(values: NDArray[np.floating]) -> Mean:
    middle, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    return Mean(mean=middle, interval95=(max(0.0, middle - 1.96 * error), min(1.0, middle + 1.96 * error)))

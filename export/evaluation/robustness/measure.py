"""Robustness of bundles, side by side: the same pictures, changed in the same ways, through each of them."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.environment import cpus, training_versions
from export.evaluation.pictures import Split, choose_pictures
from export.evaluation.predict import batch_size
from export.evaluation.robustness import corruptions
from export.evaluation.robustness.conditions import FAMILIES, Condition, Family, conditions
from export.evaluation.robustness.looks import Looks
from export.evaluation.robustness.multi_object import SIDES, check_pictures, judge, mosaics_of
from export.evaluation.robustness.randomness import generator
from export.evaluation.robustness.results import BundleResult, Curve, Point, Robustness, share
from export.evaluation.robustness.sample import members, spread
from export.examples import Examples
from saccade.bundle import WEIGHTS, Bundle
from saccade.errors import DataError
from saccade.ordered import in_order
from saccade.preprocess import normalize
from saccade.progress import Progress


class Order(NamedTuple):
    """What is to be measured."""

    families: tuple[Family, ...]
    pictures: int
    """Of the split, or all if it has no more."""
    seed: int


def families_of(text: str | None) -> tuple[Family, ...]:
    """Names joined by commas, or None for all; in the order of `FAMILIES`. Raises DataError for another name."""
    if text is None:
        return FAMILIES
    wanted = text.split(",")
    strange = [name for name in wanted if name not in FAMILIES]
    if strange:
        raise DataError(f"--only has {strange[0]!r}; the tests are {', '.join(FAMILIES)}")
    return tuple(family for family in FAMILIES if family in wanted)


def measure(bundles: list[Bundle], data: Path | None, which: Split, order: Order) -> Robustness:
    """`data` as in `choose_pictures`.

    Raises DataError for pictures that cannot be read, too few for mosaics, and for bundles that cannot be compared;
    BundleError for logits that are no numbers.
    """
    if order.seed < 0:
        raise DataError(f"--seed must be at least 0, not {order.seed}")
    ids = [bundle.manifest.id for bundle in bundles]
    repeated = next((one for one in ids if ids.count(one) > 1), None)
    if repeated:
        raise DataError(f"{repeated} is given {ids.count(repeated)} times; lines and rows go by name and version")
    chosen = [choose_pictures(bundle.manifest, data, which) for bundle in bundles]
    first = chosen[0]
    fingerprint, sample = first.examples.fingerprint(), spread(first.examples.labels, order.pictures, order.seed)
    for one, name in zip(chosen, ids, strict=True):
        if one.examples.fingerprint() != fingerprint:
            raise DataError(f"{ids[0]} is measured on {first.name}, {name} on other pictures ({one.name})")
    if "mosaics" in order.families:
        check_pictures(first.examples.labels, first.name)
    of_class = [len(places) for places in members(first.examples.labels[sample])]
    results = [_measure_one(bundle, one.examples, sample, order) for bundle, one in zip(bundles, chosen, strict=True)]
    return Robustness(
        split=first.name,
        data_sha256=fingerprint,
        pictures=len(sample),
        pictures_of_split=len(first.examples),
        of_a_class=(min(of_class), max(of_class)),
        seed=order.seed,
        families=order.families,
        corruptions=corruptions.NAME,
        versions={**training_versions(), **{name: version(name) for name in ("onnxruntime", "scipy", "scikit-learn")}},
        bundles=tuple(results),
    )


def _measure_one(bundle: Bundle, examples: Examples, sample: NDArray[np.int64], order: Order) -> BundleResult:
    manifest, looks = bundle.manifest, Looks(bundle)
    spec, count = manifest.preprocessing, len(sample)
    tests = tuple(conditions(order.families, spec, looks.grid, has_map=looks.salience is not None))
    sides = SIDES if "mosaics" in order.families else ()
    print(f"saccade: {manifest.id}, {count} pictures in {1 + len(tests)} ways, mosaics apart", file=sys.stderr)
    progress = Progress()
    progress.total = count * (1 + len(tests)) + mosaics_of(count) * len(sides)

    def run(batch: NDArray[np.int64]) -> NDArray[np.int64]:
        """(1 + tests,): how many of the batch are given their label, as they are and in each test."""
        pixels = np.stack([examples.pixels(index, spec) for index in batch.tolist()])
        logits, maps = looks.look(normalize(pixels, spec))
        said = [logits.argmax(-1)]
        for test in tests:
            changed = [
                test.change(picture, generator(order.seed, index, test.test), None if maps is None else maps[place])
                for place, (index, picture) in enumerate(zip(batch.tolist(), pixels, strict=True))
            ]
            said.append(looks.logits(normalize(np.stack(changed), spec)).argmax(-1))
        return (np.stack(said) == examples.labels[batch]).sum(1)

    size = batch_size(spec)
    batches = [sample[start : start + size] for start in range(0, count, size)]
    right = np.zeros(1 + len(tests), np.int64)
    for batch, of_batch in zip(batches, in_order(batches, run, threads=cpus()), strict=True):
        right += of_batch
        progress.step(0, len(batch) * (1 + len(tests)))
    mosaics = tuple(judge(looks, examples, spec, side, mosaics_of(count), order.seed, progress) for side in sides)
    progress.end()
    curves = _curves(tests, right[1:], count)
    corrupted = [point.right.share for curve in curves if curve.family == "corruptions" for point in curve.points]
    return BundleResult(
        id=manifest.id,
        weights_sha256=manifest.files[WEIGHTS].sha256,
        precision=manifest.precision,
        size=(spec.height, spec.width),
        grid=looks.grid,
        salience=looks.salience,
        clean=share(int(right[0]), count),
        curves=curves,
        corruption_mean=float(np.mean(corrupted)) if corrupted else None,
        mosaics=mosaics,
    )


def _curves(tests: tuple[Condition, ...], right: NDArray[np.int64], count: int) -> tuple[Curve, ...]:
    families = {test.test: test.family for test in tests}
    return tuple(
        Curve(
            family=family,
            test=name,
            points=tuple(
                Point(value=test.value, right=share(int(number), count))
                for test, number in zip(tests, right.tolist(), strict=True)
                if test.test == name
            ),
        )
        for name, family in families.items()
    )

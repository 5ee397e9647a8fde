"""The tables of robustness.md: every number, in percent, bundles side by side."""

from collections.abc import Callable

from export.evaluation.robustness.results import BundleResult, MosaicResult, Robustness, Share

TITLES = {
    "rotation": "Rotation, degrees anticlockwise",
    "zoom": "Zoom, factor",
    "translation": "Translation, share of the side",
    "patchdrop_random": "PatchDrop at random, share of the patches",
    "patchdrop_salient": "PatchDrop most salient by its own map first, share of the patches",
    "patchdrop_non_salient": "PatchDrop least salient by its own map first, share of the patches",
}
NONE = "none"


def to_markdown(result: Robustness) -> str:
    """Every number; in brackets its 95 % interval."""
    least, most = result.of_a_class
    classes = f"{least:,} of each class" if least == most else f"{least:,} to {most:,} of a class"
    part = f"{result.pictures:,} of {result.pictures_of_split:,} pictures, {classes}"
    said = [
        "# Robustness",
        f"{result.split}: {part}; seed {result.seed}. Percent; in brackets the 95 % interval. What each test is, and "
        "where its constants are from, is said in docs/model-robustness.md.",
        summary(result),
        "\n".join(f"- {_of_bundle(one)}" for one in result.bundles),
    ]
    for shape in result.tests():
        if shape.family == "corruptions":
            continue
        rows = [_row(TITLES[shape.test], result, lambda one: one.id)]
        for place, point in enumerate(shape.points):
            rows.append(_row(f"{point.value:g}", result, _at(shape.test, place)))
        said += [f"## {TITLES[shape.test].split(',')[0]}", _table(rows)]
    if result.tests("corruptions"):
        rows = [_row("corruption", result, lambda one: one.id)]
        rows += [_row(of.test.replace("_", " "), result, _severities(of.test)) for of in result.tests("corruptions")]
        said += [f"## {result.corruptions}: severities 1 to 5, and their mean", _table(rows)]
    if result.bundles[0].mosaics:
        said += ["## Mosaics", _mosaics(result)]
    return "\n\n".join(said)


def summary(result: Robustness) -> str:
    """One number a test: of a curve, the mean over its strengths."""
    rows = [
        _row("accuracy, %", result, lambda one: one.id),
        _row("as they are", result, lambda one: _share(one.clean)),
    ]
    rows += [
        _row(f"{TITLES[shape.test].split(',')[0]}, mean", result, _mean_of(shape.test))
        for shape in result.tests()
        if shape.family != "corruptions"
    ]
    if result.tests("corruptions"):
        rows.append(_row(f"{result.corruptions}, mean", result, lambda one: _percent(one.corruption_mean or 0.0)))
    for place, shape_ in enumerate(result.bundles[0].mosaics):
        rows += [
            _row(f"mosaics {shape_.side} x {shape_.side}, {title}", result, _of_mosaic(place, cell))
            for title, cell in _SHORT.items()
        ]
    return _table(rows)


def _mosaics(result: Robustness) -> str:
    rows = [_row("", result, lambda one: one.id)]
    for place, shape in enumerate(result.bundles[0].mosaics):
        rows += [
            _row(f"{shape.side} x {shape.side}: {title}", result, _of_mosaic(place, cell))
            for title, cell in _LONG.items()
        ]
    return _table(rows)


_SHORT: dict[str, Callable[[MosaicResult], str]] = {
    "average precision of the classes": lambda one: _with_interval(
        one.occurrence.average_precision.mean, one.occurrence.average_precision.interval95
    ),
    "corners by a probe": lambda one: _share(one.corners.probe),
    "corners by the class map": lambda one: _or_none(one.corners.class_map),
}
_LONG: dict[str, Callable[[MosaicResult], str]] = {
    "mosaics": lambda one: f"{one.mosaics:,}",
    "classes that occur, mean": lambda one: f"{one.occurrence.classes:.2f}",
    "the first label occurs": lambda one: _share(one.occurrence.first),
    "of the k classes that occur, those among the first k labels": lambda one: _with_interval(
        one.occurrence.found.mean, one.occurrence.found.interval95
    ),
    "the same two by chance": lambda one: _percent(one.occurrence.first_chance),
    "average precision": _SHORT["average precision of the classes"],
    "average precision by chance": lambda one: _percent(one.occurrence.average_precision_chance),
    "do the corners share a class, by a probe (chance 50)": _SHORT["corners by a probe"],
    "the same by the class map (chance 50)": _SHORT["corners by the class map"],
    "corners' labels by the class map": lambda one: _or_none(one.corners.tile_labels),
}


def _of_bundle(one: BundleResult) -> str:
    grid = "no patches" if one.grid is None else f"{one.grid[0]} x {one.grid[1]} patches"
    map_ = "no map says which are salient" if one.salience is None else f"salient by its {one.salience}"
    return f"{one.id}: {one.size[0]} x {one.size[1]} pixels, {one.precision}, {grid}; {map_}"


def _row(title: str, result: Robustness, cell: Callable[[BundleResult], str]) -> list[str]:
    return [title, *map(cell, result.bundles)]


def _table(rows: list[list[str]]) -> str:
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *rest])


def _at(test: str, place: int) -> Callable[[BundleResult], str]:
    def cell(one: BundleResult) -> str:
        curve = one.curve(test)
        return NONE if curve is None else _share(curve.points[place].right)

    return cell


def _mean_of(test: str) -> Callable[[BundleResult], str]:
    def cell(one: BundleResult) -> str:
        curve = one.curve(test)
        return NONE if curve is None else _percent(curve.mean)

    return cell


def _severities(test: str) -> Callable[[BundleResult], str]:
    def cell(one: BundleResult) -> str:
        curve = one.curve(test)
        assert curve is not None  # every bundle takes every corruption
        return f"{' · '.join(_percent(point.right.share) for point in curve.points)}; {_percent(curve.mean)}"

    return cell


def _of_mosaic(place: int, cell: Callable[[MosaicResult], str]) -> Callable[[BundleResult], str]:
    return lambda one: cell(one.mosaics[place])


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{_percent(value)} ({' to '.join(map(_percent, interval))})"


def _share(share: Share) -> str:
    return _with_interval(share.share, share.interval95)


def _or_none(share: Share | None) -> str:
    return NONE if share is None else _share(share)

"""Plots of accuracy against strength: a line a bundle, its 95 % intervals shaded, as PNG."""

from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from export.evaluation.drawing import plain, to_png
from export.evaluation.robustness.conditions import Family
from export.evaluation.robustness.results import Curve, MosaicResult, Robustness
from export.evaluation.robustness.tables import TITLES

COLUMNS = 6
"""Of small plots, one a corruption."""
MARKERS = "os^Dv<>P"
"""One a bundle: lines are told apart without their colours."""


def plots(result: Robustness) -> dict[str, bytes]:
    """File name -> PNG, of each family that was measured."""
    drawn = {f"{shape.test}.png": _curve(result, shape) for family in _ALONE for shape in result.tests(family)}
    if dropped := result.tests("patchdrop"):
        drawn["patchdrop.png"] = _panels(result, dropped, len(dropped))
    if corrupted := result.tests("corruptions"):
        drawn["corruptions.png"] = _panels(result, corrupted, COLUMNS)
    if result.bundles[0].mosaics:
        drawn["mosaics.png"] = _mosaics(result)
    return {name: to_png(figure) for name, figure in drawn.items()}


_ALONE: tuple[Family, ...] = ("rotation", "zoom", "translation")


def _curve(result: Robustness, shape: Curve) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    _lines(axes, result, shape)
    axes.set_xticks([point.value for point in shape.points])
    axes.set_xlabel(TITLES[shape.test])
    axes.set_ylabel(f"accuracy, {plain(result.split)}")
    axes.legend()
    return figure


def _panels(result: Robustness, shapes: list[Curve], columns: int) -> Figure:
    rows = -(-len(shapes) // columns)
    figure = Figure(figsize=(2.4 * columns + 1, 2.2 * rows + 1), layout="constrained")
    for place, shape in enumerate(shapes, 1):
        axes = figure.add_subplot(rows, columns, place)
        _lines(axes, result, shape)
        axes.set_title(TITLES.get(shape.test, shape.test.replace("_", " ")).split(",")[0], fontsize="medium")
        if place == 1:
            handles, labels = axes.get_legend_handles_labels()
    figure.supxlabel("severity" if shapes[0].family == "corruptions" else "share of the patches that is dropped")
    figure.supylabel(f"accuracy, {plain(result.split)}")
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _lines(axes: Axes, result: Robustness, shape: Curve) -> None:
    for one, marker in zip(result.bundles, cycle(MARKERS), strict=False):
        curve = one.curve(shape.test)
        if curve is None:
            axes.plot([], [], marker=marker, label=one.id)  # keeps the colours of the others
            continue
        points = [(point.value, point.right) for point in curve.points]
        if shape.family == "corruptions":
            points = [(0.0, one.clean), *points]
            axes.set_xticks(range(len(points)))
        strengths = [value for value, _ in points]
        axes.plot(strengths, [right.share for _, right in points], marker=marker, markersize=4, label=one.id)
        low, high = zip(*(right.interval95 for _, right in points), strict=True)
        axes.fill_between(strengths, low, high, alpha=0.2)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)


def _mosaics(result: Robustness) -> Figure:
    """Bars with their intervals; a line marks chance."""
    titles, chances = [], []
    for shape in result.bundles[0].mosaics:
        side, occurrence = f"{shape.side} x {shape.side}", shape.occurrence
        titles += [f"{side}\n{what}" for what in ("first label\noccurs", "average\nprecision")]
        titles += [f"{side}\ncorners by\n{what}" for what in ("a probe", "the class map")]
        chances += [occurrence.first_chance, occurrence.average_precision_chance, 0.5, 0.5]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(result.bundles)
    for number, one in enumerate(result.bundles):
        bars = [bar for mosaic in one.mosaics for bar in _bars(mosaic)]
        offset = (number - (len(result.bundles) - 1) / 2) * width
        drawn = [(place + offset, *bar) for place, bar in enumerate(bars) if bar is not None]
        places, heights, lows, highs = zip(*drawn, strict=True)
        below = [max(height - low, 0.0) for height, low in zip(heights, lows, strict=True)]
        above = [max(high - height, 0.0) for height, high in zip(heights, highs, strict=True)]
        axes.bar(places, heights, width, yerr=(below, above), capsize=3, label=one.id)
    for place, chance in enumerate(chances):
        axes.plot([place - 0.45, place + 0.45], [chance, chance], color="black", linestyle="--", linewidth=1)
    axes.plot([], [], color="black", linestyle="--", linewidth=1, label="chance")
    axes.set_xticks(range(len(titles)), titles, fontsize="small")
    axes.set_ylim(0, 1)
    axes.legend()
    return figure


def _bars(mosaic: MosaicResult) -> list[tuple[float, float, float] | None]:
    """(height, low, high) in the order of the titles; None where the bundle has no class map."""
    precision = mosaic.occurrence.average_precision
    shares = (mosaic.occurrence.first, mosaic.corners.probe, mosaic.corners.class_map)
    first, probe, class_map = (None if one is None else (one.share, *one.interval95) for one in shares)
    return [first, (precision.mean, *precision.interval95), probe, class_map]

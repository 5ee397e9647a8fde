"""Pictures of findings: reliability before and after the temperature, the confusion matrix, accuracy of each class."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from export.evaluation.drawing import plain, to_png
from export.evaluation.findings import Bin, Findings
from saccade.card import ScoreQuality

_NAMED = 40
"""So many labels can be read beside each other."""
_COUNTED = 15
"""So many classes leave room for a number in each cell."""


def reliability_plot(found: Findings) -> bytes:
    """Accuracy of each bin of confidence, with temperature 1 and as served; on the diagonal scores say what is."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _reliability(left, "temperature 1", found.reliability_raw, found.evaluation.raw)
    _reliability(
        right, f"as served, temperature {found.temperature:.3g}", found.reliability_served, found.evaluation.served
    )
    left.set_ylabel("share that is right")
    figure.suptitle(f"{plain(found.model)} on {plain(found.evaluation.split)}")
    return to_png(figure)


def confusion_plot(found: Findings) -> bytes:
    """Share of each class's pictures (rows) that were given each label (columns); numbers are pictures."""
    counts = np.array(found.confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(max(5.0, 2.5 + 0.4 * min(len(counts), _NAMED)), 16.0)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if len(counts) <= _NAMED:
        names = [plain(label) for label in found.labels]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    if len(counts) <= _COUNTED:
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("given")
    axes.set_ylabel("true")
    axes.set_title(f"{plain(found.model)} on {plain(found.evaluation.split)}")
    return to_png(figure)


def per_class_plot(found: Findings) -> bytes:
    """Accuracy of each class that has pictures, the lowest first; the line is that of all pictures."""
    named = sorted(
        (right / pictures, label)
        for label, (pictures, right) in zip(found.labels, found.evaluation.per_class, strict=True)
        if pictures
    )
    figure = Figure(figsize=(8, min(max(2.5, 1.2 + 0.28 * len(named)), 12)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(named)), [share for share, _ in named], height=0.8 if len(named) <= _NAMED else 1.0)
    axes.axvline(found.evaluation.top1, color="black", linewidth=1)
    if len(named) <= _NAMED:
        axes.set_yticks(range(len(named)), [plain(label) for _, label in named])
    else:
        axes.set_ylabel(f"{len(named)} classes")
    axes.set_xlim(0, 1)
    axes.set_xlabel("share that is right")
    axes.set_title(f"{plain(found.model)} on {plain(found.evaluation.split)}")
    return to_png(figure)


def _reliability(axes: Axes, title: str, bins: tuple[Bin, ...], quality: ScoreQuality) -> None:
    pictures = sum(one.pictures for one in bins)
    axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--")
    for one in bins:
        if one.accuracy is not None and one.confidence is not None:
            axes.bar(one.low, one.accuracy, one.high - one.low, align="edge", edgecolor="white", color="tab:blue")
            axes.plot(one.confidence, one.accuracy, "o", color="black", markersize=3 + 12 * one.pictures / pictures)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_xlabel("highest score; a dot's size: its share of the pictures")
    axes.set_title(f"{title}\nECE {quality.ece:.4f}, NLL {quality.nll:.4f}", fontsize=10)

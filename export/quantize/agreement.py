"""How far a variant agrees with its parent: labels, and each map by rank, on the same pictures."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from scipy.stats import rankdata

from export.explain.relevance import TOP, Classifier, add_relevance
from export.head import Head
from export.names import LOGITS
from export.runtime import open_graph, open_relevance
from saccade.bundle import Bundle
from saccade.golden import Arrays, Explain
from saccade.manifest import Manifest

ROWS = 16
"""Of each head, evenly spread: what a ViT-B attends to in full takes a second a picture to put in order."""
BATCH = 16

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Pixels (n, 3, H, W) and labels (n,)."""


class Seen(NamedTuple):
    """What is compared of an answer."""

    logits: NDArray[np.float32]
    """(n, classes)."""
    maps: dict[str, NDArray[np.float32]]
    """(n, k, m): k maps of m numbers; of each attention layer some rows of all heads."""


class Agreement(NamedTuple):
    """Figures of the card, and how far the logits are apart."""

    pictures: int
    parent_top1: float
    top1: float
    same_label: float
    maps: dict[str, float]
    """Mean Spearman rank correlation of `rollout`, `pooling`, `class` and those of the gradient (of the parent's first
    label), `attention` (rows of all heads and layers) and `attention, least layer`, those that there are."""
    logits: float
    """Mean square of the difference over the mean square of the parent's, its root."""

    @property
    def lost(self) -> float:
        """Share of the pictures; below 0 where the variant is better. By counts: one of 200 is 0.005, and no more."""
        return round((self.parent_top1 - self.top1) * self.pictures) / self.pictures

    @property
    def worst_map(self) -> float:
        """1 where there is no map; NaN where any is."""
        return float(np.min([*self.maps.values(), 1.0]))

    @property
    def lacking(self) -> tuple[str, ...]:
        """What has a number that is none: maps, or the logits."""
        figures = {"logits": self.logits, **self.maps}
        return tuple(name for name, value in figures.items() if not np.isfinite(value))


def answer_of(bundle: Bundle) -> Explain:
    """All that a bundle gives: by relevance.onnx, where it has maps of the gradient."""
    if bundle.manifest.maps.gradients is None:
        return _unasked(bundle.graph, bundle.manifest)
    return open_relevance(bundle.relevance)


def answer_by(model: ir.Model, manifest: Manifest, folder: Path | None = None) -> Explain:
    """The same of a variant that is none yet: of its graph, to which the maps of its parent's manifest are added.

    The model is changed; `folder` is where its weights are, if they are not within.
    """
    if manifest.maps.gradients is not None:
        add_relevance(model, Classifier.of(model, manifest))
    content: bytes = ir.to_proto(model).SerializeToString()
    return (
        _unasked(content, manifest, folder)
        if manifest.maps.gradients is None
        else open_relevance(content, folder=folder)
    )


def _unasked(graph: Path | bytes, manifest: Manifest, folder: Path | None = None) -> Explain:
    answer = open_graph(graph, only=manifest.outputs, folder=folder)
    return lambda pixels, _: answer(pixels)


def answers(answer: Explain, manifest: Manifest, head: Head | None, batches: Iterable[Batch]) -> Iterator[Seen]:
    """Of the parent: maps of a class are those of its first label."""
    for pixels, _ in batches:
        outputs = answer(pixels, np.full((len(pixels), 1), TOP))
        yield seen_in(manifest, head, outputs, outputs[LOGITS].argmax(1))


def compare(
    answer: Explain, manifest: Manifest, head: Head | None, batches: Iterable[Batch], parent: Iterable[Seen]
) -> Agreement:
    """A variant with what its parent answered (see `answers`) for the same batches; maps that both have."""
    count = right = parent_right = same = 0
    apart = power = 0.0
    maps: dict[str, float] = {}
    for (pixels, labels), theirs in zip(batches, parent, strict=True):
        first = theirs.logits.argmax(1)
        ours = seen_in(manifest, head, answer(pixels, first[:, None]), first)
        own = ours.logits.argmax(1)
        count += len(labels)
        right, parent_right = right + int((own == labels).sum()), parent_right + int((first == labels).sum())
        same += int((own == first).sum())
        apart += float(((ours.logits - theirs.logits).astype(np.float64) ** 2).sum())
        power += float((theirs.logits.astype(np.float64) ** 2).sum())
        for name, values in theirs.maps.items():
            if name in ours.maps:
                maps[name] = maps.get(name, 0.0) + float(rank_correlation(ours.maps[name], values).sum())
    return Agreement(
        pictures=count,
        parent_top1=parent_right / count,
        top1=right / count,
        same_label=same / count,
        maps=_layers_as_one({name: total / count for name, total in maps.items()}, manifest),
        logits=float(np.sqrt(apart / power)) if power else 0.0,
    )


def rank_correlation(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.float64]:
    """(n, k, m) twice -> (n,): Spearman's, of equals the mean rank, mean over the k maps.

    A map of equal numbers has no order: two of them agree, and one of them with any other does not. NaN where a number
    is NaN.
    """
    first, second = (_centred_ranks(values) for values in (ours, theirs))
    squares = (first**2).sum(-1), (second**2).sum(-1)
    norm = np.sqrt(squares[0] * squares[1])
    flat = (squares[0] == 0) & (squares[1] == 0)
    found = np.where(flat, 1.0, (first * second).sum(-1) / np.where(norm == 0, 1.0, norm))
    return found.mean(-1)


def seen_in(manifest: Manifest, head: Head | None, outputs: Arrays, labels: NDArray[np.intp]) -> Seen:
    """`labels`: of each picture, whose class map is meant; maps of the gradient are those asked for."""
    count, maps = len(labels), manifest.maps
    found = {
        name: outputs[output][:, None]
        for name, output in (("rollout", maps.rollout), ("pooling", maps.pooling))
        if output is not None
    }
    if maps.class_map is not None and head is not None:
        weights = head[0][labels].astype(np.float32)
        found["class"] = np.einsum("npw,nw->np", outputs[maps.class_map.tokens], weights)[:, None]
    if maps.gradients is not None:
        found |= {name: outputs[name] for name in maps.gradients.names if name in outputs}
    for layer in manifest.attention:
        rows = np.unique(np.linspace(0, layer.tokens - 1, ROWS).astype(int))
        found[layer.output] = outputs[layer.output][..., rows, :].reshape(count, -1, layer.tokens)
    return Seen(outputs[LOGITS], found)


def _layers_as_one(maps: dict[str, float], manifest: Manifest) -> dict[str, float]:
    """The layers' mean, called `attention`, and the least of them: many good ones must not hide one that is not."""
    layers = [maps.pop(layer.output) for layer in manifest.attention]
    together = {"attention": float(np.mean(layers)), "attention, least layer": float(np.min(layers))} if layers else {}
    return maps | together


def _centred_ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    ranks: NDArray[np.float64] = rankdata(values, axis=-1)
    return ranks - (values.shape[-1] + 1) / 2

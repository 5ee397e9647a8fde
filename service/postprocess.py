"""Arrays of one image -> the parts of its answer. Pure functions; formulas and shapes, no state.

NaN and infinities are refused here, so that none reaches an answer.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.errors import InferenceFailed
from saccade.geometry import Region
from saccade.manifest import AttentionLayer, Manifest
from saccade.pooling import pooled_row
from saccade.scores import to_scores
from service.selection import GRADIENT, LayerSelection, Selection

Floats = NDArray[np.float32]
Outputs = dict[str, Floats]
"""Outputs of one image by name, without the batch axis."""


NO_PATCH = "no patch argued for this class: the map is zero everywhere"

_FEW = 64


class Head(NamedTuple):
    """The last linear layer: what the class map needs beside the graph's output."""

    weight: Floats  # (classes, width)
    bias: Floats  # (classes,)


def answer(
    manifest: Manifest, head: Head | None, selection: Selection, outputs: Outputs, size: tuple[int, int], seen: Region
) -> dict[str, Any]:
    """The answer's fields but for request_id and timing. `size` is (width, height) of the upright original."""
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise InferenceFailed(f"{manifest.id} gave a value that is not finite in its output {name}")
    scores = to_scores(outputs["logits"], manifest.scores, manifest.temperature)
    order = top(outputs["logits"], selection.top_k)
    return {
        "model": {"name": manifest.name, "version": manifest.version},
        "labels": labels(manifest, scores, order, selection),
        "maps": [entry for name in selection.maps for entry in maps(manifest, head, selection, name, outputs, order)],
        "attention": None
        if selection.attention is None
        else [entry for chosen in selection.attention for entry in attention(manifest, chosen, outputs, selection)],
        "geometry": {
            "image": {"width": size[0], "height": size[1]},
            "region": {name: round(value, 4) for name, value in seen._asdict().items()},
        },
    }


def top(logits: Floats, count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest, the largest first; of equals the lower index first.

    As relevance.onnx ranks them: of logits, since scores of two may be one where the logits differ.
    """
    if len(logits) <= _FEW:
        # numpy's sort gives up the GIL, and on a busy service gets it back long after ten numbers are sorted
        values = logits.tolist()
        return np.array(sorted(range(len(values)), key=values.__getitem__, reverse=True)[:count], np.intp)
    return np.argsort(-logits, kind="stable")[:count]


def labels(
    manifest: Manifest, scores: NDArray[np.float64], order: NDArray[np.intp], selection: Selection
) -> list[dict[str, Any]]:
    return [
        {"label": manifest.labels[index], "index": index, "score": round(float(scores[index]), selection.decimals)}
        for index in order.tolist()
        if scores[index] >= selection.min_score
    ]


def maps(
    manifest: Manifest, head: Head | None, selection: Selection, name: str, outputs: Outputs, order: NDArray[np.intp]
) -> list[dict[str, Any]]:
    """The entries of one map: one for pooling and rollout, one a class for the class map and for the gradient's."""
    if name == "class":
        return class_maps(manifest, head, selection, outputs, order)
    if name in GRADIENT:
        return gradient_maps(manifest, selection, name, outputs, order)
    layer = manifest.attention[-1]
    if name == "pooling":
        values = outputs[manifest.maps.pooling or ""][layer.patch_slice]
    else:
        values = outputs[manifest.maps.rollout or ""]  # the graph leaves special tokens out
    entry: dict[str, Any] = {
        "name": name,
        "class_index": None,
        "grid": layer.grid,
        "values": rounded(values.reshape(layer.grid), selection.decimals),
    }
    if name == "rollout":
        # max(): rounding may put the sum a last bit over 1, and an answer has no -0.0
        share = max(1.0 - float(values.sum(dtype=np.float64)), 0.0) if layer.special_tokens.count else 0.0
        entry["special_tokens_share"] = round(share, selection.decimals)
    return [entry]


def class_maps(
    manifest: Manifest, head: Head | None, selection: Selection, outputs: Outputs, order: NDArray[np.intp]
) -> list[dict[str, Any]]:
    """M[i, c] = tokens[i] · weight[c]: what each patch added to the logit of class c, whose sum plus bias it is.

    The logit is that before the temperature, which is said beside it.
    """
    assert head is not None
    assert manifest.maps.class_map is not None
    classes = order[:1] if selection.classes == "top1" else order if selection.classes == "topk" else selection.classes
    chosen = np.asarray(classes, np.intp)
    with np.errstate(over="ignore", invalid="ignore"):  # rounded() refuses what overflowed
        per_patch = outputs[manifest.maps.class_map.tokens] @ head.weight[chosen].T  # (P, k)
    grid = manifest.maps.class_map.grid
    return [
        {
            "name": "class",
            "class_index": index,
            "grid": grid,
            "values": rounded(per_patch[:, column].reshape(grid), selection.decimals),
            "sum": float(per_patch[:, column].sum(dtype=np.float64)),
            "bias": float(head.bias[index]),
            "logit": float(outputs["logits"][index]),
            "temperature": manifest.temperature,
        }
        for column, index in enumerate(chosen.tolist())
    ]


def gradient_maps(
    manifest: Manifest, selection: Selection, name: str, outputs: Outputs, order: NDArray[np.intp]
) -> list[dict[str, Any]]:
    """Of each class that `selection.class_index` asks for, the row of the output (k, patches)."""
    assert manifest.maps.gradients is not None
    grid = manifest.maps.gradients.grid
    entries: list[dict[str, Any]] = []
    for asked, values in zip(selection.class_index, outputs[name], strict=True):
        entry: dict[str, Any] = {
            "name": name,
            "class_index": asked if asked >= 0 else int(order[-1 - asked]),
            "grid": grid,
            # in float64, where a power of ten for the least of float32 is still a number
            "values": rounded(values.astype(np.float64).reshape(grid), selection.decimals + _leading_zeros(values)),
        }
        if not values.any():
            entry["note"] = NO_PATCH
        entries.append(entry)
    return entries


def _leading_zeros(values: Floats) -> int:
    """Digits that are 0 between the point and the largest value's first other digit; 0 from 0.1 on.

    A map of the gradient has no scale of its own: of two models one may have a thousandth of the other's.
    """
    largest = float(np.abs(values).max())
    return max(-1 - math.floor(math.log10(largest)), 0) if largest else 0


def attention(
    manifest: Manifest, chosen: LayerSelection, outputs: Outputs, selection: Selection
) -> list[dict[str, Any]]:
    """The entries of one layer: one, or one for each window that was asked for."""
    weights = outputs[chosen.layer.output]  # (H, N, N), or (windows, H, N, N)
    if chosen.windows is None:
        return [_entry(manifest, chosen, outputs, weights, None, selection.decimals)]
    return [
        _entry(manifest, chosen, outputs, weights[number], _window(chosen.layer, number), selection.decimals)
        for number in chosen.windows
    ]


def _entry(
    manifest: Manifest,
    chosen: LayerSelection,
    outputs: Outputs,
    weights: Floats,
    window: dict[str, Any] | None,
    decimals: int,
) -> dict[str, Any]:
    """Softmax weights (H, N, N) of one layer or window, by heads and rows: (heads, rows, tokens)."""
    if chosen.rows == "pool":
        weights = reading_row(manifest, outputs)[None] @ weights  # (H, 1, N)
    elif chosen.rows != "all":
        weights = weights[:, list(chosen.rows)]
    weights = weights.mean(axis=0, keepdims=True) if chosen.heads == "mean" else weights[list(chosen.heads)]
    special = chosen.layer.special_tokens
    return {
        "layer": chosen.number,
        "window": window,
        "heads": chosen.heads,
        "grid": chosen.layer.grid,
        "special_tokens": {"count": special.count, "place": special.place},
        "rows": chosen.rows,
        "shape": weights.shape,
        "weights": rounded(weights, decimals),
    }


def _window(layer: AttentionLayer, number: int) -> dict[str, Any]:
    windows = layer.windows
    assert windows is not None
    row, column = divmod(number, windows.count[1])
    return {"number": number, "row": row, "column": column, **windows.model_dump()}


def reading_row(manifest: Manifest, outputs: Outputs) -> Floats:
    """The row (tokens,) with which the classifier reads the tokens of the last layer."""
    assert manifest.pooling is not None
    if manifest.pooling.kind == "learned":
        return outputs[manifest.maps.pooling or ""]
    return pooled_row(manifest.pooling, manifest.attention[-1])


def rounded(values: NDArray[np.floating[Any]], decimals: int) -> Floats:
    """Contiguous float32, rounded; the encoder then prints the shortest decimal that reads back the same."""
    with np.errstate(over="ignore", invalid="ignore"):
        near = np.ascontiguousarray(values.round(decimals) + np.float32(0), np.float32)  # + 0 makes of -0.0 a 0.0
    if not np.isfinite(near).all():
        raise InferenceFailed("a map holds a value that is not finite")
    return near

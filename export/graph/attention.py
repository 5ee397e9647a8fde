"""Attention in a graph: every Softmax whose scores are a product of two activations and whose result weighs a third."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.graph.labels import Cells, Frame, Labels, constant_along
from export.graph.nodes import integer
from export.graph.places import Places

_LAYOUT = frozenset(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand"))
_AFTER = frozenset(("Cast", "Dropout", "Identity", "Where"))
_ROUNDED = frozenset(("QuantizeLinear", "DequantizeLinear"))
_BEFORE = (
    _LAYOUT | _ROUNDED | {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Max", "Min", "Clip", "Identity", "Neg", "Tanh"}
)
"""What may stand between QKᵀ and Softmax: scales, masks, biases, capped scores, layouts."""
_MIXED = "it does not weigh values as it is: something changes it first"


@dataclass(frozen=True)
class Unfolding:
    """How the weights become (batch, windows, heads, N, N): reshape to `sizes`, then transpose by `order`.

    `sizes` are those of the axes before the last two, the batch being -1.
    """

    sizes: tuple[int, int, int]
    order: tuple[int, int, int]


@dataclass(frozen=True)
class Found:
    """One attention layer of the graph. `why_not` says in words what keeps it from being an output; None: nothing."""

    name: str
    weights: ir.Value
    rank: int
    transposed: bool
    """Keys stand on the last axis but one."""
    tokens: tuple[int, int]
    """Queries and keys."""
    heads: int
    unfolding: Unfolding | None
    """None where the weights are (batch, heads, N, N) as they stand, or (batch, windows, heads, N, N)."""
    frame: Frame | None
    cells: Cells | None
    """(windows, N): the label of each query of the first picture, see `labels`; None where nothing is known."""
    why_not: str | None = None
    against: str | None = None
    """What the graph says against the grid that was told of it, in words."""

    def unfolded(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of an array that the value has: (batch, heads, N, N) or (batch, windows, heads, N, N), rows being queries."""
        if self.transposed:
            weights = weights.swapaxes(-1, -2)
        if self.unfolding is None:
            return weights
        sizes, order = self.unfolding.sizes, self.unfolding.order
        apart = weights.reshape(*sizes, *self.tokens).transpose(*order, 3, 4)
        return apart.squeeze(1) if self.cells is not None and len(self.cells) == 1 else apart


def find(model: ir.Model, places: Places) -> list[Found]:
    """The attention layers in depth order: as the nodes stand, which is topological."""
    found = []
    for node in model.graph:
        if node.op_type == "Softmax" and node.domain == "" and node.inputs[0] not in places.lost:
            scores = _scores(node, places)
            weights = _weights(node, places)
            if scores is not None and weights is not None:
                found.append(_read(node, scores, weights, places))
            elif scores is not None:
                found.append(_read(node, scores, node.outputs[0], places, _MIXED))
    return found


def _scores(softmax: ir.Node, places: Places) -> ir.Node | None:
    """The product of queries and keys that a softmax is taken of."""
    seen: set[ir.Value] = set()
    waiting = [softmax.inputs[0]]
    while waiting:
        value = waiting.pop(0)
        if value is None or value in seen or value not in places.labels:
            continue
        seen.add(value)
        node = value.producer()
        if node is None or node.domain != "":
            continue
        if node.op_type == "MatMul" and all(operand in places.labels for operand in node.inputs):
            return node
        if node.op_type in _BEFORE:
            waiting += node.inputs
    return None


def _weights(softmax: ir.Node, places: Places) -> ir.Value | None:
    """The result of the softmax as it weighs the values: behind what guards it against masked rows, before layouts."""
    value = softmax.outputs[0]
    while True:
        users = [node for node in value.consumers() if node.domain == "" and node.op_type not in ("Shape", "IsNaN")]
        if any(_weighs(value, users, places)):
            return _whole(value, places)
        following = [node for node in users if node.op_type in _AFTER]
        if len(following) != 1:
            return None
        value = following[0].outputs[0]


def _whole(value: ir.Value, places: Places) -> ir.Value:
    """Behind the Reshape that gives back what a softmax of an old opset was flattened from."""
    users = list(value.consumers())
    flat = len(places.labels[value].shape) < 3 and len(users) == 1 and users[0].op_type == "Reshape"
    return users[0].outputs[0] if flat and users[0].outputs[0] in places.labels else value


def _weighs(value: ir.Value, users: list[ir.Node], places: Places) -> Iterator[bool]:
    for node in users:
        if node.op_type == "MatMul":
            (other,) = [one for one in node.inputs if one is not value] or [value]
            yield other in places.labels
        elif node.op_type in _LAYOUT | _ROUNDED:
            moved = node.outputs[0]
            yield from _weighs(moved, list(moved.consumers()), places)


def _read(softmax: ir.Node, scores: ir.Node, weights: ir.Value, places: Places, why_not: str | None = None) -> Found:
    shape = places.labels[weights].shape
    rank = len(places.labels[softmax.outputs[0]].shape)
    axis = integer(softmax, "axis", -1) % rank - rank + len(shape)
    transposed = axis == len(shape) - 2
    tokens = (shape[-1], shape[-2]) if transposed else (shape[-2], shape[-1])
    layout = _Layout(shape[1] if len(shape) == 4 else 1)
    try:
        layout = _layout(places.labels[weights], axis, scores, places)
    except ValueError as error:
        why_not = why_not or str(error)
    name = softmax.name or softmax.outputs[0].name or "?"
    return Found(name, weights, len(shape), transposed, tokens, *layout, why_not)


class _Layout(NamedTuple):
    heads: int
    unfolding: Unfolding | None = None
    frame: Frame | None = None
    cells: Cells | None = None


def _layout(labels: Labels, axis: int, scores: ir.Node, places: Places) -> _Layout:
    """What the labels of attention weights say of their axes. Raises ValueError that says why they are of no use."""
    shape, rank = labels.shape, len(labels.shape)
    if rank < 3 or axis < rank - 2:
        raise ValueError(f"its weights have the shape {list(shape)} and a softmax over axis {axis}")
    queries = labels.cells if axis == rank - 1 else labels.cells.swapaxes(-1, -2)
    if queries.shape[-2] != queries.shape[-1]:
        raise ValueError(f"{queries.shape[-2]} queries attend to {queries.shape[-1]} keys")
    of_keys = not constant_along(queries, rank - 1)  # of a product of keys and queries the labels are the keys'
    rows = queries[..., 0, :] if of_keys else queries[..., 0]
    if not (rows >= 0).any():
        if rank == 4 and shape[0] == places.batch:
            return _Layout(shape[1])
        raise ValueError("nothing says where its tokens lie on the picture")
    if not _same_tokens(scores, places):
        raise ValueError("queries and keys are not the same tokens")
    split = _split(rows.reshape(-1, shape[-1]), labels.frame, places.batch)
    if split is None:
        raise ValueError(f"the axes {list(shape[:-2])} before its tokens are no batch, windows and heads")
    windows, heads, unfolding = split
    plain = shape[:-2] == ((places.batch, heads) if len(windows) == 1 else (places.batch, len(windows), heads))
    return _Layout(heads, None if plain else unfolding, labels.frame, windows)


def _same_tokens(scores: ir.Node, places: Places) -> bool:
    left, right = (places.labels[value] for value in scores.inputs if value is not None)
    if left.frame != right.frame:
        return False
    queries, keys = left.cells[..., 0], right.cells[..., 0, :]
    return queries.shape != keys.shape or np.array_equal(queries, keys)


def _split(slots: Cells, frame: Frame, batch: int) -> tuple[Cells, int, Unfolding] | None:
    """Which of the (slots, N) rows are of which picture, window and head: (windows, N) of the first picture, heads.

    Rows of one window are equal in all heads, and those of the next picture are `frame.cells` further.
    """
    first = slots[(slots.max(1) // frame.cells) == 0]
    windows = np.unique(first, axis=0)
    count = len(windows)
    heads, rest = divmod(len(slots), batch * count)
    if rest:
        return None
    names = {"batch": batch, "windows": count, "heads": heads}
    for order in permutations(names):
        sizes = tuple(names[name] for name in order)
        perm = tuple(order.index(name) for name in names)
        ordered = slots.reshape(*sizes, -1).transpose(*perm, 3)
        expected = ordered[:1, :, :1]
        pictures = np.arange(batch).reshape(-1, 1, 1, 1) * frame.cells
        if np.array_equal(ordered, np.where(expected < 0, expected, expected + pictures) + np.zeros_like(ordered)):
            sizes_dynamic = tuple(-1 if name == "batch" else names[name] for name in order)
            return expected[0, :, 0], heads, Unfolding(sizes_dynamic, perm)  # type: ignore[arg-type]
    return None

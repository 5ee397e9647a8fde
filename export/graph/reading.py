"""How the logits read the tokens of the last attention layer, and what the exact class map is made of.

Going back from the logits, numbers about one token read that token; a mean over tokens reads each by the same share; a
sum or a concatenation of two readings reads both alike.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.graph.evaluate import evaluate
from export.graph.labels import NOWHERE, Cells, Frame, constant_along
from export.graph.nodes import integer
from export.graph.places import Places
from export.graph.rules import MOVES, reduced_axes
from saccade.manifest import AttentionLayer, Pooling

_MEANS = frozenset(("ReduceMean", "ReduceSum", "GlobalAveragePool"))
_LAYOUT = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast", "Transpose"))
"""What may stand between a softmax over tokens and the product that pools by it."""


@dataclass(frozen=True)
class Reading:
    """`weights` are those of learned pooling: (batch, …) with one number a token, or (batch, heads, 1, tokens)."""

    pooling: Pooling
    weights: ir.Value | None = None
    heads: int = 1
    """That pool apart, each some of the channels."""


@dataclass(frozen=True)
class Head:
    """The linear layer that makes the logits."""

    pooled: ir.Value
    """(batch, width), what it takes."""
    weight: NDArray[Any]
    """(classes, width)"""
    weight_from: ir.Value
    bias: NDArray[Any] | None
    """What broadcasts to (classes,)."""
    bias_from: ir.Value | None


@dataclass(frozen=True)
class ClassTokens:
    """logits = head(sum over positions of share * tokens): what the exact class map is read from."""

    tokens: ir.Value
    positions: tuple[int, ...]
    """Axes of `tokens` over which the head's input is the mean or the learned sum, in the order of the grid."""
    channel: int
    grid: tuple[int, int]
    weights: ir.Value | None
    """Of learned pooling; None: the mean."""
    head: Head

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def width(self) -> int:
        return self.head.weight.shape[1]


def read_pooling(logits: ir.Value, places: Places, frame: Frame, row: Cells, layer: AttentionLayer) -> Reading | None:
    """How the logits read the tokens labelled `row`; None where it is no way that the manifest can say."""
    reader = _Reader(places, frame, row)
    shares = reader.shares(logits)
    if isinstance(shares, ir.Value):
        heads = _heads(shares, layer.tokens, places)
        fits = heads and not layer.special_tokens.count
        return Reading(Pooling(kind="learned"), shares, heads) if fits else None
    if shares is None:
        return None
    mean = np.where(row >= 0, 1 / layer.patches, 0.0)
    special = [index for index in range(len(row)) if row[index] < 0]
    candidates: list[tuple[Pooling, NDArray[np.float64]]] = [(Pooling(kind="mean"), mean)]
    for index in special:
        one = np.eye(len(row))[index]
        candidates += [(Pooling(kind="class_token", index=index), one),
                       (Pooling(kind="class_and_mean", index=index), (one + mean) / 2)]  # fmt: skip
        if index + 1 in special:
            both = (one + np.eye(len(row))[index + 1]) / 2
            candidates.append((Pooling(kind="class_and_distillation", index=index), both))
    return next((Reading(pooling) for pooling, expected in candidates if np.allclose(shares, expected)), None)


def _one_a_token(weights: ir.Value, tokens: int, places: Places) -> bool:
    """Whether the weights of learned pooling are (batch, tokens), or that with axes of length 1."""
    shape = places.shape(weights) or ()
    return shape[:1] == (places.batch,) and math.prod(shape[1:]) == tokens


def _heads(weights: ir.Value, tokens: int, places: Places) -> int:
    """How many heads the weights of learned pooling are of; 0 where they are no weights of so many tokens."""
    shape = places.shape(weights) or ()
    if len(shape) == 4 and shape[0] == places.batch and shape[2:] == (1, tokens):
        return shape[1]
    return int(_one_a_token(weights, tokens, places))


class _Reader:
    """The share of each token in a value, (N,), sums to 1; or the weights of learned pooling; None where unknown."""

    def __init__(self, places: Places, frame: Frame, row: Cells) -> None:
        self._places, self._frame, self._row = places, frame, row
        self._seen: dict[ir.Value, NDArray[np.float64] | ir.Value | None] = {}

    def shares(self, value: ir.Value) -> NDArray[np.float64] | ir.Value | None:
        """Without recursion: hundreds of operators may stand between the pool and the logits."""
        waiting = [value]
        while waiting:
            found = self._shares(waiting[-1])
            left = [one for one in found if one not in self._seen] if isinstance(found, list) else []
            if left:
                waiting += left
                continue
            one = waiting.pop()
            self._seen[one] = self._alike(one, found) if isinstance(found, list) else found
        return self._seen[value]

    def _shares(self, value: ir.Value) -> NDArray[np.float64] | ir.Value | list[ir.Value] | None:
        """Or the inputs of an operator behind the pool, which reads what they read."""
        about, mixed = self._tokens(value)
        if len(about) == 1 and not mixed:
            return self._uniform(about)
        node = value.producer()
        if len(about) > 1 or node is None or node.domain != "":
            return None
        inputs = [one for one in node.inputs if one is not None and one in self._places.labels]
        about, mixed = self._tokens(inputs[0])
        learned = _learned_product(node, self._places) or _learned_sum(node, self._places)
        if learned is not None:
            return learned[0] if len(self._tokens(learned[1])[0]) == len(self._row) else None
        if len(about) > 1:  # here many tokens become one number
            return self._uniform(about) if node.op_type in _MEANS and not mixed else None
        return inputs

    def _alike(self, value: ir.Value, inputs: list[ir.Value]) -> NDArray[np.float64] | ir.Value | None:
        """Of an operator behind the pool: as its inputs, half and half where it adds two or puts them side by side."""
        found = [self._seen[one] for one in inputs]
        rows = [one for one in found if isinstance(one, np.ndarray)]
        if len(rows) < len(found):
            return found[0] if all(one is found[0] for one in found) else None
        if all(np.allclose(row, rows[0]) for row in rows):
            return rows[0]
        node = value.producer()
        adds = node is not None and node.op_type in ("Add", "Concat", "Sum", "Mean")
        return np.mean(rows, axis=0) if adds else None

    def _tokens(self, value: ir.Value) -> tuple[list[int], bool]:
        """The tokens of the first picture that a value is about, and whether some of it is about none of them."""
        labels = self._places.labels[value]
        if labels.frame != self._frame:
            return [], True
        found = np.unique(labels.cells[labels.cells < labels.frame.cells])
        return [int(cell) for cell in found if cell in self._row and cell != NOWHERE], not np.isin(
            found, self._row[self._row != NOWHERE]
        ).all()

    def _uniform(self, about: list[int]) -> NDArray[np.float64]:
        share = np.isin(self._row, about).astype(np.float64)
        return share / share.sum()


def _learned_product(node: ir.Node, places: Places) -> tuple[ir.Value, ir.Value] | None:
    """(softmax weights over tokens, tokens) of a MatMul that pools by them."""
    if node.op_type != "MatMul":
        return None
    left, right = node.inputs
    if left is None or right is None or left not in places.labels or right not in places.labels:
        return None
    shape = places.labels[left].shape
    if len(shape) not in (3, 4) or shape[-2] != 1:
        return None
    weights = _softmax(left)
    return (weights, right) if weights is not None else None


def _learned_sum(node: ir.Node, places: Places) -> tuple[ir.Value, ir.Value] | None:
    """The same of a sum over tokens times weights."""
    product = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node.op_type != "ReduceSum" or product is None or product.op_type != "Mul":
        return None
    for weights, tokens in (product.inputs, product.inputs[::-1]):
        softmax = _softmax(weights) if weights is not None and weights in places.labels else None
        if softmax is not None and tokens is not None and tokens in places.labels:
            return softmax, tokens
    return None


def _softmax(value: ir.Value) -> ir.Value | None:
    """The result of the softmax that a value is, but for its layout."""
    node = value.producer()
    while node is not None and node.op_type in _LAYOUT and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value if node is not None and node.op_type == "Softmax" else None


def read_class_tokens(logits: ir.Value, places: Places) -> ClassTokens | None:
    """What the exact class map is read from; None where anything but the head follows the pool."""
    head = _head(logits, places)
    found = None if head is None else _pooled_tokens(head.pooled, places)
    if head is None or found is None:
        return None
    tokens, positions, weights = found
    labels = places.labels[tokens]
    channels = set(range(1, len(labels.shape))) - set(positions)
    if len(channels) != 1 or labels.shape[0] != places.batch:
        return None
    (channel,) = channels
    frame, ordered = labels.frame, np.moveaxis(labels.cells, channel, -1)
    in_order = frame.cells > 1 and np.array_equal(ordered[0, ..., 0].ravel(), np.arange(frame.cells))
    if not in_order or not constant_along(ordered, ordered.ndim - 1) or head.weight.shape[1] != labels.shape[channel]:
        return None
    if weights is not None and not _one_a_token(weights, frame.cells, places):
        return None
    return ClassTokens(tokens, positions, channel, (frame.rows, frame.columns), weights, head)


def _head(logits: ir.Value, places: Places) -> Head | None:
    """The linear layer that makes the logits: a Gemm, or a MatMul and an Add."""
    node = logits.producer()
    bias: ir.Value | None = None
    if node is not None and node.op_type == "Add":
        for product, constant in (node.inputs, node.inputs[::-1]):
            if product is not None and product in places.labels and places.constant(constant) is not None:
                node, bias = product.producer(), constant
                break
    if node is None or node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return None
    if node.op_type == "Gemm" and len(node.inputs) > 2:
        bias = node.inputs[2] if bias is None else node.inputs[0]  # two biases: no constant, and so refused below
    pooled, weight_from = node.inputs[:2]
    weight, offset = places.constant(weight_from), places.constant(bias)
    scaled = any(node.attributes[name].as_float() != 1 for name in ("alpha", "beta") if name in node.attributes)
    turned = integer(node, "transA", 0) != 0
    if weight is None or weight_from is None or weight.ndim != 2 or scaled or turned or (bias and offset is None):
        return None
    if pooled is None or len(places.labels[pooled].shape) != 2:
        return None
    by_class = weight if node.op_type == "Gemm" and integer(node, "transB", 0) else weight.T
    return Head(pooled, by_class, weight_from, offset, bias)


def _changes_nothing(node: ir.Node, places: Places) -> bool:
    """Whether the numbers of the first input come out as they are and in their order, whatever the shape."""
    shape = None if node.inputs[0] is None else places.shape(node.inputs[0])
    if node.op_type in ("Cast", "Dropout"):
        return True
    constants = [places.constant(value) for value in node.inputs[1:]]
    if node.op_type not in MOVES.split() or shape is None or any(value is None for value in constants):
        return False
    numbers = np.arange(np.prod(shape)).reshape(shape)
    moved = evaluate(node, [numbers, *constants])
    return len(moved) == 1 and np.array_equal(moved[0].ravel(), numbers.ravel())


def _pooled_tokens(pooled: ir.Value | None, places: Places) -> tuple[ir.Value, tuple[int, ...], ir.Value | None] | None:
    """(tokens, the axes pooled over, learned weights or None for the mean)."""
    node = pooled.producer() if pooled is not None else None
    while node is not None and _changes_nothing(node, places):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.domain != "" or node.inputs[0] not in places.labels:
        return None
    data = node.inputs[0]
    assert data is not None
    if node.op_type in ("ReduceMean", "GlobalAveragePool"):
        rank = len(places.labels[data].shape)
        axes = reduced_axes(node, places.constant(node.inputs[1]) if len(node.inputs) > 1 else None, rank)
        return (data, axes, None) if len(axes) == rank - 2 else None
    learned = _learned_product(node, places) or _learned_sum(node, places)
    if learned is None or len(places.labels[learned[1]].shape) != 3:
        return None
    return learned[1], (1,), learned[0]

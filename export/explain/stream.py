"""The residual stream of a transformer in its graph: the tokens behind each block, and what the classifier does with
them.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from export.explain.differentiate import carried, is_flat
from export.explain.float64 import Float64
from export.explain.source import behind
from export.graph.adder import Adder
from export.graph.labels import constant_along
from export.graph.nodes import describe, integer
from export.graph.places import Places
from saccade.errors import BundleError

_ALIKE = 2
"""Pictures that a copied classifier is tried with."""
_ACTIVATIONS = ("Relu", "Gelu", "HardSwish")
"""They may end a block, behind its sum."""


class Stream(NamedTuple):
    """What `stream_of` finds."""

    tokens: tuple[ir.Value, ...]
    """Behind the block of each layer but perhaps the last, (batch, …), in one shape."""
    axes: tuple[int, ...]
    """Those along which the tokens lie."""
    length: int
    """How many tokens there are."""
    last: ir.Value
    """Behind the last block; there may be fewer tokens, where the rest is not read."""


def stream_of(
    model: ir.Model, attention: Sequence[ir.Value], logits: ir.Value, places: Places, *, whole: bool
) -> Stream:
    """`attention`: the weights of the layers in order; with `whole`, the last one has all of its tokens, as they have.

    A block ends where it is added to what came into it. What its attention does to the logits goes through that sum
    alone, the next layer hangs on it, and of several such sums it is the last (the one behind the MLP). Raises
    BundleError where there is none, or where they have different shapes.
    """
    way = _way(model, logits)
    for node in way:
        if node.outputs[0] in places.lost:
            raise BundleError(f"its tokens are not known: {places.lost[node.outputs[0]]}")
    onwards = [*(behind(model, weights) for weights in attention[1:]), None]
    found: list[ir.Value] = []
    for weights, next_ones in zip(attention, onwards, strict=True):
        sums = [value for value in _passages(way, weights, logits)
                if _is_sum(value, places) and (next_ones is None or value in next_ones)
                and (next_ones is not None or _continues(value, found, places, whole=whole))]  # fmt: skip
        if not sums:
            raise BundleError(f"the graph has no sum behind {weights.name} that ends a block")
        found.append(_activated(sums[-1], way))
    tokens = tuple(found if whole else found[:-1])
    axes = _token_axes(tokens[0], places)
    shapes = {places.shape_of(value) for value in tokens}
    if not axes or len(shapes) > 1:
        raise BundleError("what its blocks give differs in shape, or no axis of it is known to be that of the tokens")
    length = math.prod(places.shape_of(tokens[0])[axis] for axis in axes)
    return Stream(tokens, axes, length, found[-1])


def classify(
    add: Adder, model: ir.Model, stream: Stream, logits: ir.Value, places: Places, token: ir.Value
) -> ir.Value:
    """What the model does behind its last block once more, for one token in place of all: (n, …, 1, …) -> (n, classes).

    A class token is that token, and so is the mean, or any weighted mean, of one token alone. Raises BundleError where
    the graph's way of reading the tokens is not one that can be copied.
    """
    copies: dict[ir.Value, ir.Value] = {stream.last: token}
    needed = behind(model, logits)
    for node in list(model.graph):
        if not any(value in copies for value in node.inputs) or not needed.intersection(node.outputs):
            continue
        if node.domain or any(value in needed for value in node.outputs[1:]):
            raise BundleError(f"{describe(node)} behind the last block cannot be applied to one token")
        inputs = [value if value is None else copies.get(value, value) for value in node.inputs]
        if (axis := _chosen_axis(node, places)) is not None:
            inputs[1:] = _first_of(add, node, axis, inputs)
        copies[node.outputs[0]] = add(node.op_type, *inputs, **node.attributes)
    return copies[logits]


def check_copy(model: ir.Model, stream: Stream, places: Places, heads: Mapping[ir.Value, ir.Value]) -> None:
    """Raises BundleError unless each of `heads`, what a classifier takes and gives, gives the same in float64: where it
    takes all tokens of the last block, of tokens that are all alike; else of that one token.
    """
    pixels, graph = model.graph.inputs[0], Float64(model, straight=True)
    assert pixels.shape is not None
    size = [length for length in pixels.shape[1:] if isinstance(length, int)]
    shape = places.shape_of(stream.last)[1:]
    one = np.random.default_rng(0).standard_normal([1 if axis in stream.axes else length
                                                    for axis, length in enumerate(shape, 1)])  # fmt: skip
    answers = []
    for tokens, answer in heads.items():
        alike = np.broadcast_to(one, (_ALIKE, *(shape if tokens is stream.last else one.shape)))
        answers.append(graph.run({pixels: np.zeros((_ALIKE, *size)), tokens: alike}, [answer])[answer])
    of_all, of_one = answers
    if not np.allclose(of_one, of_all, rtol=1e-6, atol=1e-9):
        raise BundleError("the classifier says of one token not what it says of all tokens alike")


def _way(model: ir.Model, logits: ir.Value) -> list[ir.Node]:
    """Nodes that a change reaches the logits through."""
    needed, nodes = {logits}, []
    for node in reversed(list(model.graph)):
        if not is_flat(node) and any(value in needed for value in node.outputs):
            nodes.append(node)
            needed |= set(carried(node))
    return nodes[::-1]


def _passages(way: Sequence[ir.Node], start: ir.Value, logits: ir.Value) -> list[ir.Value]:
    """Values that each way from `start` to the logits goes through, in order."""
    uses: dict[ir.Value, int] = {logits: 1}
    for node in way:
        for value in carried(node):
            uses[value] = uses.get(value, 0) + 1
    reached, found = {start}, []
    open_ones = {start: uses.get(start, 0)}
    for node in way:
        given = [value for value in carried(node) if value in reached]
        for value in given:
            open_ones[value] -= 1
            if not open_ones[value]:
                del open_ones[value]
        if given:
            reached |= set(node.outputs)
            open_ones |= {value: uses[value] for value in node.outputs if uses.get(value)}
            if [*open_ones] == [node.outputs[0]]:
                found.append(node.outputs[0])
    return found


def _is_sum(value: ir.Value, places: Places) -> bool:
    """Of two values that both hang on the picture, in the shape of both."""
    node = value.producer()
    return (
        node is not None
        and node.op_type == "Add"
        and all(one in places.labels and places.shape(one) == places.shape(value) for one in node.inputs if one)
    )


def _continues(value: ir.Value, before: Sequence[ir.Value], places: Places, *, whole: bool) -> bool:
    """Whether it may end the last block: all tokens, or the few that are read in the shape of those before."""
    axes = _token_axes(before[0] if before else value, places)
    shapes = [places.shape_of(one) for one in (value, *before[:1])]
    if not before or whole:
        return bool(axes) and len(set(shapes)) == 1
    return len({len(shape) for shape in shapes}) == 1 and all(
        length == other for axis, (length, other) in enumerate(zip(*shapes, strict=True)) if axis not in axes
    )


def _activated(value: ir.Value, way: Collection[ir.Node]) -> ir.Value:
    users = [user for user, _ in value.uses() if user in way]
    return users[0].outputs[0] if len(users) == 1 and users[0].op_type in _ACTIVATIONS else value


def _token_axes(value: ir.Value, places: Places) -> tuple[int, ...]:
    """Those along which the places of the picture change."""
    if value not in places.labels:
        return ()
    cells = places.labels[value].cells
    return tuple(axis for axis in range(1, cells.ndim) if not constant_along(cells, axis))


def _chosen_axis(node: ir.Node, places: Places) -> int | None:
    """The axis of tokens that a Gather or a Slice takes some of."""
    data = node.inputs[0]
    if node.op_type not in ("Gather", "Slice") or data not in places.labels:
        return None
    axes = _token_axes(data, places)
    if node.op_type == "Gather":
        taken = [integer(node, "axis", 0)]
    else:
        given = places.constant(node.inputs[3]) if len(node.inputs) > 3 else None
        taken = [] if given is None else [int(axis) for axis in given.ravel()]
    rank = places.rank(data)
    return next((axis % rank for axis in taken if axis % rank in axes), None) if len(taken) == 1 else None


def _first_of(add: Adder, node: ir.Node, axis: int, inputs: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    """Of one token whatever is taken is that token."""
    if node.op_type == "Gather":
        assert inputs[1] is not None
        return [add("Mul", inputs[1], add.constant(np.array(0)))]
    return [add.constant(np.array([number])) for number in (0, 1, axis)]

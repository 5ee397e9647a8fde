"""The residual stream of a transformer in its graph: the tokens behind each block, and what the classifier does with
them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from export.explain.blocks import AS_IT_IS, PRODUCTS, check_block
from export.explain.differentiate import carried, is_flat
from export.explain.float64 import Float64
from export.explain.gelu import kind_of
from export.explain.source import behind
from export.explain.tokens import chosen_axis, first_of, is_of_one_picture, shape_of_one, token_axes
from export.graph.adder import Adder
from export.graph.nodes import describe
from export.graph.places import Places
from saccade.errors import BundleError

_ALIKE = 2
"""Pictures that a copied classifier is tried with."""
_SUMS = 2
"""That a block may have at most: behind its attention and behind its MLP, or, of both at once, one or two."""
_ACTIVATIONS = ("Relu", "Gelu", "HardSwish")
"""They may end a block, behind its sum."""

_BROADCASTS = ("MatMul", "Add", "Sub", "Mul", "Div", "Where")


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
    alone, the next layer hangs on it, and of two such sums it is the last (the one behind the MLP, see `check_block`).
    A norm or an activation that all of the sum goes through, before anything else uses it, is the block's as well (a
    post-norm block); of the last block it may be the classifier's, so there it is what it is in the blocks before.
    One graph can be cut into blocks in several ways: each block is taken to begin with its attention.

    Raises BundleError where there is none, where they have different shapes, and where it is not known which one ends a
    block: something that is no layer stands between layers, say.
    """
    way = _way(model, logits)
    for node in way:
        if node.outputs[0] in places.lost:
            raise BundleError(f"its tokens are not known: {places.lost[node.outputs[0]]}")
    onwards = [*(behind(model, weights) for weights in attention[1:]), None]
    found: list[ir.Value] = []
    tails: list[list[ir.Value]] = []
    counts: set[int] = set()
    for weights, next_ones in zip(attention, onwards, strict=True):
        line = [value for value in _passages(way, weights, logits) if next_ones is None or value in next_ones]
        sums = [value for value in line if _is_sum(value, places)
                and (next_ones is not None or _continues(value, found, places, whole=whole))]  # fmt: skip
        if (whole or next_ones is not None) and not any(token_axes(value, places) for value in line):
            raise BundleError("which axis of its values is that of the tokens is not known")
        if not sums:
            raise BundleError(f"the graph has no sum behind {weights.name} that ends a block")
        if len(counts | {len(sums)}) > 1 or len(sums) > _SUMS:
            raise BundleError(f"which of {len(sums)} sums behind {weights.name} ends its block is not known")
        check_block(model, way, weights, sums, places)
        counts.add(len(sums))
        found.append(sums[-1])
        tails.append(line[line.index(sums[-1]) + 1 :])
    if len(found) > 1:
        ends = _ends(found, tails)
        if ends != found and _comes_normed(model, attention[0], found[0], places):
            raise BundleError("whether a norm ends each block, or begins the next one, is not known")
        found = ends
    else:
        entry = _entry(model, attention[0], sums)
        found = [_only_end(found[0], tails[0], places, normed=any(_norms(value, places) for value in entry))]
    tokens = tuple(found if whole else found[:-1])
    axes = token_axes(tokens[0], places)
    shapes = {places.shape_of(value) for value in tokens}
    if not axes or len(shapes) > 1 or not _alike_but(axes, places.shape_of(found[-1]), places.shape_of(tokens[0])):
        raise BundleError("what its blocks give differs in shape, or no axis of it is known to be that of the tokens")
    if not all(is_of_one_picture(tokens[0], axis, places) for axis in axes):
        raise BundleError("its pictures stand behind its tokens, and not on the first axis")
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
        if any(value in places.labels and value not in copies for value in node.inputs):
            raise BundleError("its classifier reads more than what the last block gives")
        once = node.op_type in _BROADCASTS
        inputs = [copies.get(value, _once(add, value, places) if once else value) if value else None
                  for value in node.inputs]  # fmt: skip
        if (axis := chosen_axis(node, places)) is not None:
            inputs[1:] = first_of(add, node, axis, inputs)
        if node.op_type == "Reshape" and node.outputs[0] in places.labels:
            inputs[1] = shape_of_one(add, node.outputs[0], places)
        copies[node.outputs[0]] = add(node.op_type, *inputs, **node.attributes)
    return copies[logits]


def _once(add: Adder, value: ir.Value, places: Places) -> ir.Value:
    """What is the same for each picture of the batch, as a learned query is, of one: so it goes with any number."""
    array = places.constant(value)
    repeated = value.const_value is None and array is not None and array.ndim > 1 and len(array) == places.batch
    if not repeated or array is None or not np.array_equal(array, np.broadcast_to(array[:1], array.shape)):
        return value
    return add("Slice", value, [0], [1], [0])


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
    """Of two values that both hang on the picture, in the shape of both; a difference is one as well."""
    node = value.producer()
    return (
        node is not None
        and node.op_type in ("Add", "Sub")
        and all(one in places.labels and places.shape(one) == places.shape(value) for one in node.inputs if one)
    )


def _continues(value: ir.Value, before: Sequence[ir.Value], places: Places, *, whole: bool) -> bool:
    """Whether it may end the last block: all tokens, or the few that are read in the shape of those before."""
    axes = token_axes(before[0] if before else value, places)
    shapes = [places.shape_of(one) for one in (value, *before[:1])]
    if not before or whole:
        return bool(axes) and len(set(shapes)) == 1
    return _alike_but(axes, *shapes)


def _alike_but(axes: Sequence[int], shape: Sequence[int], other: Sequence[int]) -> bool:
    return len(shape) == len(other) and all(
        length == its for axis, (length, its) in enumerate(zip(shape, other, strict=True)) if axis not in axes
    )


def _ends(sums: Sequence[ir.Value], tails: Sequence[Sequence[ir.Value]]) -> list[ir.Value]:
    """Behind the norm or the activation that stands behind the last sum of each block. `tails`: what all of that sum
    goes through next; of the last block the whole classifier is among it. Raises BundleError where blocks differ.
    """
    lengths = [max((at for at, value in enumerate(tail, 1) if _kind(value) not in AS_IT_IS), default=0)
               for tail in tails[:-1]]  # fmt: skip
    parts = [tail[:length] for tail, length in zip(tails, [*lengths, max(lengths)], strict=True)]
    if len({tuple(map(_kind, part)) for part in parts}) > 1:
        raise BundleError("its blocks do not end alike: behind some of them stands a norm, say, that others lack")
    if any(_kind(value) in PRODUCTS for value in parts[0]):
        raise BundleError("whether what stands behind the last sum of its blocks is theirs is not known")
    return [part[-1] if part else value for value, part in zip(sums, parts, strict=True)]


def _only_end(value: ir.Value, tail: Sequence[ir.Value], places: Places, *, normed: bool) -> ir.Value:
    """Of the only block that there is; `normed`: attention is given what a norm made of the tokens. A norm behind it
    is the classifier's then, and else nothing says whose: raises BundleError.
    """
    if any(token_axes(one, places) and (_kind(one) in PRODUCTS or _mixed_in(one, places)) for one in tail):
        raise BundleError("whether what stands behind its only block is the block's or the classifier's is not known")
    following = next((one for one in tail if _kind(one) not in AS_IT_IS), value)
    if following is value or _kind(following) not in _ACTIVATIONS:
        if _norms(following, places) and not normed:
            raise BundleError("whether the norm behind its only block is the block's or the classifier's is not known")
        return value
    return following


def _mixed_in(value: ir.Value, places: Places) -> bool:
    """Whether each token gets something of all of them."""
    return any(one in places.labels and not token_axes(one, places) for one in _added(value))


def _entry(model: ir.Model, weights: ir.Value, sums: Sequence[ir.Value]) -> list[ir.Value]:
    """What the tokens that come into a block go through on their way to its attention."""
    before = behind(model, weights)
    came = [value for one in sums for value in _added(one) if value in before]
    return _passages(_way(model, weights), came[0], weights) if came else []


def _comes_normed(model: ir.Model, weights: ir.Value, total: ir.Value, places: Places) -> bool:
    """Whether all that comes into the first block, its skip too, comes from a norm."""
    before = behind(model, weights)
    entry = [value for value in _passages(_way(model, total), model.graph.inputs[0], total) if value in before]
    last = next((value for value in reversed(entry) if not _scales(value, places)), None)
    return last is not None and _norms(last, places)


def _scales(value: ir.Value, places: Places) -> bool:
    """Or shifts each channel by a constant, or nothing at all, as behind a norm that is written out."""
    constants = [array for array in map(places.constant, _added(value)) if array is not None]
    by_channel = all(array.size == (array.shape or (1,))[-1] for array in constants)
    return _kind(value) in AS_IT_IS or (_kind(value) in ("Add", "Mul") and len(constants) == 1 and by_channel)


def _norms(value: ir.Value, places: Places) -> bool:
    """Whether it is a LayerNormalization, or like the heart of one written out: tokens over their own size."""
    node = value.producer()
    assert node is not None
    apart = node.op_type in ("Div", "Mul") and all(one in places.labels for one in node.inputs)
    return node.op_type == "LayerNormalization" or apart


def _added(value: ir.Value) -> list[ir.Value]:
    node = value.producer()
    return [] if node is None else [one for one in node.inputs if one is not None]


def _kind(value: ir.Value) -> str:
    node = value.producer()
    assert node is not None
    return kind_of(node)

"""Operators that move numbers and change none."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.explain.gradients.rule import Rule, first
from export.explain.tape import Contribution, Part, Tape
from export.graph.nodes import describe, integer, words
from saccade.errors import BundleError


def _layout(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    return tape.as_shape(gradient, node.inputs[0])


def _transpose(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    rank = tape.rank(node.inputs[0])
    order = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else list(range(rank))[::-1]
    return tape("Transpose", gradient, perm=[0, *(order.index(axis) + 1 for axis in range(rank))])


def _expand(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    return tape.sum_to(gradient, node.inputs[0], tape.shape(node.outputs[0]))


def _concat(tape: Tape, node: ir.Node, index: int, gradient: ir.Value) -> ir.Value:
    axis = integer(node, "axis", 0) % tape.rank(node.outputs[0])
    ends = np.cumsum([0, *(tape.lengths(value, axis, axis + 1)[0] for value in node.inputs)]).tolist()
    return tape("Slice", gradient, [ends[index]], [ends[index + 1]], [axis + 1])


def _split(tape: Tape, node: ir.Node, _: ir.Value) -> list[Contribution]:
    """Each output that has a gradient gives a part."""
    axis = integer(node, "axis", 0) % tape.rank(node.inputs[0])
    ends = np.cumsum([0, *(tape.lengths(value, axis, axis + 1)[0] for value in node.outputs)]).tolist()
    gradients = [tape.gradient(value) for value in node.outputs]
    return [Part(axis, ends[at], ends[at + 1], one) for at, one in enumerate(gradients) if one is not None]


def _slice(tape: Tape, node: ir.Node, gradient: ir.Value) -> Contribution:
    data, result = node.inputs[0], node.outputs[0]
    starts, stops = tape.numbers(node, 1), tape.numbers(node, 2)
    assert starts is not None
    assert stops is not None
    axes = tape.numbers(node, 3) or list(range(len(starts)))
    steps = tape.numbers(node, 4) or [1] * len(starts)
    cut = []
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        place = axis % tape.rank(data)
        if tape.shape(data)[place] is None and (start, step) == (0, 1) and tape.shape(result)[place] is None:
            continue  # all of the batch, up to some very large number
        (length,) = tape.lengths(data, place, place + 1)
        taken = range(length)[slice(start, stop if step > 0 or stop >= -length else None, step)]
        if len(taken) < length or step < 0:
            cut.append((place, length, taken))
    if len(cut) == 1 and cut[0][2].step == 1:
        place, _, taken = cut[0]
        return Part(place, taken.start, taken.stop, gradient)
    for place, length, taken in sorted(cut, key=lambda one: -one[0]):
        gradient = _spread(tape, gradient, (place, tape.shape(data)[place + 1 :]), length, taken)
    return gradient


def _spread(
    tape: Tape, gradient: ir.Value, place: tuple[int, tuple[int | None, ...]], length: int, taken: range
) -> ir.Value:
    """Puts what an axis was sliced to back to its places: zeros between them by a new axis, zeros around them.

    `place` is the axis of the input and the lengths of those behind it.
    """
    axis, behind = place
    if taken.step < 0:
        gradient = tape("Slice", gradient, [-1], [-(2**31)], [axis + 1], [-1])
        taken = taken[::-1]
    count, step, rank = len(taken), taken.step, axis + 1 + len(behind)
    if step > 1:
        gradient = tape.pad(tape("Unsqueeze", gradient, [axis + 2]), axis + 1, 0, step - 1, rank + 1)
        whole = [*[0] * (axis + 1), count * step, *(-1 if one is None else one for one in behind)]
        gradient = tape("Reshape", gradient, whole)
    return tape.pad(gradient, axis, taken.start, length - taken.start - count * step, rank)


def _gather(tape: Tape, node: ir.Node, gradient: ir.Value) -> Contribution:
    """One place or a range of them is a part, a permutation is undone by its inverse, the rest is added up."""
    data, indices = node.inputs
    axis = integer(node, "axis", 0) % tape.rank(data)
    (length,) = tape.lengths(data, axis, axis + 1)
    constant = tape.constant(indices)
    if constant is None:
        raise BundleError(f"the places that {describe(node)} takes hang on the picture: no gradient is known")
    places = constant.ravel() % length
    if constant.ndim != 1:
        shape = tape.shape(node.outputs[0])
        kept = [0] * (axis + 1)
        behind = shape[axis + constant.ndim :]
        if constant.ndim == 0:
            gradient = tape("Unsqueeze", gradient, [axis + 1])
        else:
            rest = [-1 if one is None else one for one in behind]
            gradient = tape("Reshape", gradient, [*kept, len(places), *rest])
    if np.array_equal(places, np.arange(len(places)) + places[0]):
        return Part(axis, int(places[0]), int(places[-1]) + 1, gradient)
    if len(np.unique(places)) == len(places) == length:
        return tape("Gather", gradient, np.argsort(places), axis=axis + 1)
    return _added(tape, gradient, (axis, tape.rank(data)), length, places)


def _added(tape: Tape, gradient: ir.Value, of: tuple[int, int], length: int, places: NDArray[Any]) -> ir.Value:
    """Each place of the input gets the sum of what was taken from it: rounds of one place each, and a zero.

    `of` is the axis, and how many the input has.
    """
    axis, rank = of
    order = np.argsort(places, kind="stable")
    counts = np.bincount(places, minlength=length)
    begins = np.cumsum([0, *counts[:-1]])
    padded = tape.pad(gradient, axis, 0, 1, rank)
    total = None
    for turn in range(int(counts.max())):
        missing = begins + turn >= begins + counts
        chosen = np.where(missing, len(places), order[np.minimum(begins + turn, len(order) - 1)])
        one = tape("Gather", padded, chosen, axis=axis + 1)
        total = one if total is None else tape("Add", total, one)
    assert total is not None
    return total


def _pad(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """The same with its lengths negated, which cuts off what was added and puts zeros where something was cut off."""
    if words(node, "mode", "constant") != "constant":
        raise BundleError(
            f"the gradient of {describe(node)} is known for constants around, not for {words(node, 'mode', '')}"
        )
    lengths = tape.numbers(node, 1)
    assert lengths is not None
    rank = tape.rank(node.inputs[0])
    axes = tape.numbers(node, 3) or list(range(rank))
    for axis, before, after in zip(axes, lengths[: len(axes)], lengths[len(axes) :], strict=True):
        gradient = tape.pad(gradient, axis % rank, -before, -after, rank)
    return gradient


def _tile(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Each axis becomes two, repeats and the axis itself, and the repeats are summed."""
    repeats = tape.numbers(node, 1)
    assert repeats is not None
    shape = tape.shape(node.inputs[0])
    if shape.count(None) > 1:
        raise BundleError(f"{describe(node)} repeats a value whose axes grow with the batch: no gradient is known")
    split = [0]
    for count, length in zip(repeats, shape, strict=True):
        split += [count, -1 if length is None else length]
    apart = tape("Reshape", gradient, split)
    return tape("ReduceSum", apart, [2 * axis + 1 for axis in range(len(shape))], keepdims=0)


def _depth_to_space(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Each block of pixels back into the channels, whose order its mode says."""
    data, size = node.inputs[0], integer(node, "blocksize", 1)
    channels, rows, columns = tape.lengths(data, 1)
    apart = tape("Reshape", gradient, [-1, channels // size**2, rows, size, columns, size])
    order = [0, 3, 5, 1, 2, 4] if words(node, "mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    return tape.unfold(tape("Transpose", apart, perm=order), data)


def _space_to_depth(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    folded = tape.fold(gradient, node.outputs[0])
    return tape.unfold(tape("DepthToSpace", folded, blocksize=integer(node, "blocksize", 1)), node.inputs[0])


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), first(_layout)),
    "Transpose": first(_transpose),
    "Expand": first(_expand),
    "Concat": _concat,
    "Split": first(_split),
    "Slice": first(_slice),
    "Gather": first(_gather),
    "Pad": first(_pad),
    "Tile": first(_tile),
    "DepthToSpace": first(_depth_to_space),
    "SpaceToDepth": first(_space_to_depth),
}

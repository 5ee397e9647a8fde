"""Operators that take numbers from places, or put them there. The places have no gradient, and the picture may decide
them.

*Elements* have a place for each number; of *ND* a place is a whole index of the first axes, so that the axis of the k
gradients stands last while they are moved.
"""

import onnx_ir as ir

from export.explain.gradients.rule import Rule, first
from export.explain.tape import Tape
from export.graph.nodes import describe, integer, words
from saccade.errors import BundleError


def _gather_elements(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    return _added(tape, node, node.inputs[1], gradient, integer(node, "axis", 0))


def _top_k(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Its second output says where the greatest were."""
    places = tape.further(node.outputs[0], 1)
    return _added(tape, node, places, gradient, integer(node, "axis", -1))


def _added(tape: Tape, node: ir.Node, places: ir.Value | None, gradient: ir.Value, axis: int) -> ir.Value:
    """Each number is added back where it came from."""
    data = node.inputs[0]
    assert data is not None
    zeros = tape("Expand", 0.0, tape("Concat", tape.k, tape("Shape", data), axis=0))
    again = tape("Expand", places, tape("Shape", gradient))
    return tape("ScatterElements", zeros, again, gradient, axis=axis % tape.rank(data) + 1, reduction="add")


def _scatter_elements(tape: Tape, node: ir.Node, index: int, gradient: ir.Value) -> ir.Value:
    """What was written over has none; what was written has that of its place."""
    _check(node, index)
    data, places, _ = node.inputs
    axis = integer(node, "axis", 0) % tape.rank(data) + 1
    again = tape("Expand", places, tape("Concat", tape.k, tape("Shape", places), axis=0))
    if index == 2:
        return tape("GatherElements", gradient, again, axis=axis)
    if words(node, "reduction", "none") == "add":
        return gradient
    return tape("ScatterElements", gradient, again, tape("Expand", 0.0, tape("Shape", again)), axis=axis)


def _scatter_nd(tape: Tape, node: ir.Node, index: int, gradient: ir.Value) -> ir.Value:
    """The same with places that are indices of the first axes."""
    _check(node, index)
    _, places, updates = node.inputs
    if index == 0 and words(node, "reduction", "none") == "add":
        return gradient
    last = _k_last(tape, gradient, tape.rank(node.outputs[0]))
    if index == 2:
        return _k_first(tape, tape("GatherND", last, places), tape.rank(updates))
    zeros = tape("Expand", 0.0, tape("Concat", tape("Shape", updates), tape.k, axis=0))
    return _k_first(tape, tape("ScatterND", last, places, zeros), tape.rank(node.outputs[0]))


def _gather_nd(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    if integer(node, "batch_dims", 0):
        raise BundleError(f"{describe(node)} has batch_dims: no gradient is known")
    data, places = node.inputs
    zeros = tape("Expand", 0.0, tape("Concat", tape("Shape", data), tape.k, axis=0))
    last = _k_last(tape, gradient, tape.rank(node.outputs[0]))
    return _k_first(tape, tape("ScatterND", zeros, places, last, reduction="add"), tape.rank(data))


def _k_last(tape: Tape, gradient: ir.Value, rank: int) -> ir.Value:
    """(k, *shape) -> (*shape, k); `rank` is that of the shape."""
    return tape("Transpose", gradient, perm=[*range(1, rank + 1), 0])


def _k_first(tape: Tape, gradient: ir.Value, rank: int) -> ir.Value:
    return tape("Transpose", gradient, perm=[rank, *range(rank)])


def _check(node: ir.Node, index: int) -> None:
    """What is written is added to what is there, or takes its place."""
    if index == 1 or words(node, "reduction", "none") not in ("none", "add"):
        raise BundleError(f"no gradient is known for input {index} of {describe(node)}")


RULES: dict[str, Rule] = {
    "GatherElements": first(_gather_elements),
    "GatherND": first(_gather_nd),
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": first(_top_k),
}

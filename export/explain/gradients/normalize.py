"""Softmax and norms."""

import onnx_ir as ir

from export.explain.gradients.rule import Rule, first
from export.explain.tape import Tape
from export.graph.nodes import describe, integer, number
from saccade.errors import BundleError


def _softmax(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    return through_softmax(tape, weights_of(tape, node), gradient, _axis(tape, node))


def through_softmax(tape: Tape, weights: ir.Value, gradient: ir.Value, axis: int) -> ir.Value:
    """G * P - P * sum(G * P), P being its weights, along an axis from the end; that product is also what relevance is
    made of.
    """
    product = tape("Mul", gradient, weights)
    return tape("Sub", product, tape("Mul", weights, _sum(tape, product, axis)))


def weights_of(tape: Tape, node: ir.Node) -> ir.Value:
    """What a Softmax gives. Where every key of a query is masked that is NaN, and graphs that guard against it put
    zeros there.
    """
    weights = node.outputs[0]
    guard = next((user.outputs[0] for user in weights.consumers() if user.op_type == "IsNaN"), None)
    return weights if guard is None else tape("Where", guard, 0.0, weights)


def _log_softmax(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    total = _sum(tape, gradient, _axis(tape, node))
    return tape("Sub", gradient, tape("Mul", tape("Exp", node.outputs[0]), total))


def _axis(tape: Tape, node: ir.Node) -> int:
    """From the end, which is the same for a value and for its gradient."""
    rank = tape.rank(node.inputs[0])
    return integer(node, "axis", -1) % rank - rank


def _sum(tape: Tape, value: ir.Value, *axes: int) -> ir.Value:
    return tape("ReduceSum", value, list(axes), keepdims=1)


def _layer_norm(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """By the mean and the inverse deviation that the operator gives as well."""
    data, scale, *_ = node.inputs
    rank = tape.rank(data)
    axis = integer(node, "axis", -1) % rank - rank
    mean, inverse = (tape.further(node.outputs[0], place) for place in (1, 2))
    return _through_norm(tape, tape("Sub", data, mean), inverse, tape("Mul", gradient, scale), list(range(axis, 0)))


def _instance_norm(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Over all axes but batch and channels."""
    data, scale, _ = node.inputs
    axes = list(range(2 - tape.rank(data), 0))
    mean = tape("ReduceMean", data, axes, keepdims=1)
    apart = tape("Sub", data, mean)
    variance = tape("ReduceMean", tape("Mul", apart, apart), axes, keepdims=1)
    inverse = tape("Reciprocal", tape("Sqrt", tape("Add", variance, number(node, "epsilon", 1e-5))))
    scaled = tape("Mul", gradient, _by_channel(tape, scale, data))
    return _through_norm(tape, apart, inverse, scaled, axes)


def _through_norm(tape: Tape, apart: ir.Value, inverse: ir.Value, gradient: ir.Value, axes: list[int]) -> ir.Value:
    """Of z = (x - mean) inverse, the first of which is `apart`: inverse (G - mean(G) - z mean(G z)).

    z itself would be one more pass over all of its numbers; what it is scaled by is one number a row.
    """
    level = tape("ReduceMean", gradient, axes, keepdims=1)
    mean = tape("ReduceMean", tape("Mul", gradient, apart), axes, keepdims=1)
    tilt = tape("Mul", mean, tape("Mul", inverse, inverse))
    return tape("Mul", tape("Sub", tape("Sub", gradient, level), tape("Mul", apart, tilt)), inverse)


def _batch_norm(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Its averages are constants: it scales each channel."""
    if integer(node, "training_mode", 0):
        raise BundleError(f"{describe(node)} is in training mode, where pictures depend on each other")
    data, scale, _, _, variance = node.inputs
    deviation = tape("Sqrt", tape("Add", variance, number(node, "epsilon", 1e-5)))
    return tape("Mul", gradient, _by_channel(tape, tape("Div", scale, deviation), data))


def _by_channel(tape: Tape, value: ir.Value | None, data: ir.Value | None) -> ir.Value:
    """(channels,) -> (channels, 1, …), which broadcasts over the axes behind the channels."""
    assert value is not None
    behind = tape.rank(data) - 2
    return tape("Reshape", value, [-1, *[1] * behind]) if behind > 0 else value


def _lp_norm(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Of y = x / |x|: (G - y sum(G y)) / |x|."""
    if integer(node, "p", 2) != 2:
        raise BundleError(f"the gradient of {describe(node)} is known for p = 2, not for p = {integer(node, 'p', 2)}")
    axis, result = _axis(tape, node), node.outputs[0]
    along = tape("Mul", result, _sum(tape, tape("Mul", gradient, result), axis))
    return tape("Div", tape("Sub", gradient, along), tape("ReduceL2", node.inputs[0], [axis], keepdims=1))


RULES: dict[str, Rule] = {
    "Softmax": first(_softmax),
    "LogSoftmax": first(_log_softmax),
    "LayerNormalization": first(_layer_norm),
    "InstanceNormalization": first(_instance_norm),
    "BatchNormalization": first(_batch_norm),
    "LpNormalization": first(_lp_norm),
}

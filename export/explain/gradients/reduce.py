"""Sums, means, norms and extremes over axes."""

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from export.explain.gradients.rule import Rule, first
from export.explain.tape import Tape
from export.graph.nodes import integer
from export.graph.rules import reduced_axes


def _axes(tape: Tape, node: ir.Node) -> tuple[int, ...]:
    axes = tape.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return reduced_axes(node, axes, tape.rank(node.inputs[0]))


def _kept(tape: Tape, node: ir.Node, value: ir.Value) -> ir.Value:
    """A gradient, or (with no k in front, by broadcasting) the result itself, with axes of 1 where it was reduced."""
    if node.op_type.startswith("Global") or integer(node, "keepdims", 1):
        return value
    rank = tape.rank(node.inputs[0])
    axes = [axis - rank for axis in _axes(tape, node)]
    return tape("Unsqueeze", value, axes) if axes else value


def _spread(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """(k, *shape of the result) -> (k, *shape of the input)."""
    axes = _axes(tape, node)
    before = [1 if axis in axes else length for axis, length in enumerate(tape.shape(node.inputs[0]))]
    return tape.expand(_kept(tape, node, gradient), before, node.inputs[0])


def _mean(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    count = math.prod(tape.lengths(node.inputs[0], axis, axis + 1)[0] for axis in _axes(tape, node))
    return _spread(tape, node, gradient if count == 1 else tape("Mul", gradient, 1 / count))


def _times(
    derivative: Callable[[Tape, ir.Node, ir.Value], ir.Value],
) -> Callable[[Tape, ir.Node, ir.Value], ir.Value]:
    """The gradient times a derivative, which gets the result with its axes kept."""

    def rule(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
        return tape("Mul", _kept(tape, node, gradient), derivative(tape, node, _kept(tape, node, node.outputs[0])))

    return rule


def _l2(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """The small quotient first: it is one number a reduced range. Of a norm of 0 it is 0, as in PyTorch."""
    norm = _kept(tape, node, node.outputs[0])
    quotient = tape("Div", _kept(tape, node, gradient), norm)
    return tape("Mul", tape("Where", tape("Equal", norm, 0.0), 0.0, quotient), node.inputs[0])


def _l1(tape: Tape, node: ir.Node, _: ir.Value) -> ir.Value:
    return tape("Sign", node.inputs[0])


def _sum_square(tape: Tape, node: ir.Node, _: ir.Value) -> ir.Value:
    return tape("Mul", node.inputs[0], 2.0)


def _log_sum_exp(tape: Tape, node: ir.Node, result: ir.Value) -> ir.Value:
    return tape("Exp", tape("Sub", node.inputs[0], result))


def _extreme(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Numbers that are equal share, as in PyTorch's amax."""
    data, kept = node.inputs[0], _kept(tape, node, gradient)
    chosen = tape("CastLike", tape("Equal", data, _kept(tape, node, node.outputs[0])), gradient)
    shares = tape("ReduceSum", chosen, list(_axes(tape, node)), keepdims=1)
    return tape("Mul", tape("Div", kept, shares), chosen)


def _cumulative(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """The same from the other end."""
    (axis,) = tape.numbers(node, 1) or [0]
    turned = {"exclusive": integer(node, "exclusive", 0), "reverse": 1 - integer(node, "reverse", 0)}
    return tape("CumSum", gradient, np.array(axis % tape.rank(node.inputs[0]) + 1), **turned)


RULES: dict[str, Rule] = {
    "ReduceSum": first(_spread),
    "ReduceMean": first(_mean),
    "CumSum": first(_cumulative),
    "GlobalAveragePool": first(_mean),
    "ReduceL1": first(_times(_l1)),
    "ReduceL2": first(_l2),
    "ReduceSumSquare": first(_times(_sum_square)),
    "ReduceLogSumExp": first(_times(_log_sum_exp)),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "GlobalMaxPool"), first(_extreme)),
}

"""Operators on each number by itself, broadcast over their inputs."""

import math
from collections.abc import Callable

import onnx_ir as ir

from export.explain.gelu import DERIVATIVE
from export.explain.gradients.quantize import rounded
from export.explain.gradients.rule import Rule, first
from export.explain.tape import Contribution, Tape
from export.graph.nodes import describe, number, words
from saccade.errors import BundleError


def _broadcast(rule: Callable[[Tape, ir.Node, int, ir.Value], ir.Value]) -> Rule:
    """The rule's gradient has the shape of the output: the broadcast of the input is undone."""

    def summed(tape: Tape, node: ir.Node, index: int, gradient: ir.Value) -> ir.Value:
        return tape.sum_to(rule(tape, node, index, gradient), node.inputs[index], tape.shape(node.outputs[0]))

    return summed


def _unary(rule: Callable[[Tape, ir.Node, ir.Value], ir.Value]) -> Rule:
    """The gradient is multiplied by a derivative."""
    return first(lambda tape, node, gradient: tape("Mul", gradient, rule(tape, node, node.outputs[0])))


def _sub(tape: Tape, _: ir.Node, index: int, gradient: ir.Value) -> ir.Value:
    return tape("Neg", gradient) if index else gradient


def _mul(tape: Tape, node: ir.Node, index: int, gradient: ir.Value) -> ir.Value:
    """A square written as a product is asked for both of its inputs."""
    return tape("Mul", gradient, node.inputs[1 - index])


def _mul_or_gelu(tape: Tape, node: ir.Node, index: int, gradient: ir.Value) -> Contribution | list[Contribution]:
    """An opened GELU, u (1 + erf u), is one function of u: what comes through its second input is counted with the first."""
    derivative = node.meta.get(DERIVATIVE)
    if derivative is None:
        return _product(tape, node, index, gradient)
    return [] if index else tape("Mul", gradient, derivative)


_product = _broadcast(_mul)


def _div(tape: Tape, node: ir.Node, index: int, gradient: ir.Value) -> ir.Value:
    quotient = tape("Div", gradient, node.inputs[1])
    return tape("Neg", tape("Mul", quotient, node.outputs[0])) if index else quotient


def _pow(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    base, power = node.inputs
    exponent = tape.constant(power)
    if exponent is None or exponent.size != 1:
        raise BundleError(
            f"the exponent of {describe(node)} is no constant number: no gradient can be taken through it"
        )
    value = float(exponent.item())
    lowered = base if value == 2 else tape("Pow", base, value - 1)
    return tape.sum_to(tape("Mul", tape("Mul", gradient, value), lowered), base, tape.shape(node.outputs[0]))


def _sqrt(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    return tape("Div", tape("Mul", gradient, 0.5), node.outputs[0])


def _log(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    return tape("Div", gradient, node.inputs[0])


def _reciprocal(tape: Tape, _: ir.Node, result: ir.Value) -> ir.Value:
    return tape("Neg", tape("Mul", result, result))


def _erf(tape: Tape, node: ir.Node, _: ir.Value) -> ir.Value:
    return tape("Mul", _bell(tape, node.inputs[0]), 2 / math.sqrt(math.pi))


def _bell(tape: Tape, value: ir.Value | None) -> ir.Value:
    """Gives exp(-x²). By -1.0 ONNX Runtime multiplies three times as fast as it negates."""
    return tape("Exp", tape("Mul", tape("Mul", value, value), -1.0))


def _tanh(tape: Tape, _: ir.Node, result: ir.Value) -> ir.Value:
    return tape("Sub", 1.0, tape("Mul", result, result))


def _sigmoid(tape: Tape, _: ir.Node, result: ir.Value) -> ir.Value:
    return tape("Sub", result, tape("Mul", result, result))


def _hard_sigmoid(tape: Tape, node: ir.Node, result: ir.Value) -> ir.Value:
    inside = tape("And", tape("Greater", result, 0.0), tape("Less", result, 1.0))
    return tape("Where", inside, number(node, "alpha", 0.2), 0.0)


def _hard_swish(tape: Tape, node: ir.Node, _: ir.Value) -> ir.Value:
    """Of x clip(x / 6 + 1/2, 0, 1): the clipped factor, and x / 6 where it is not clipped."""
    data = node.inputs[0]
    slope = tape("Mul", data, 1 / 6)
    inside = tape("Less", tape("Abs", data), 3.0)
    return tape("Add", tape("Clip", tape("Add", slope, 0.5), 0.0, 1.0), tape("Where", inside, slope, 0.0))


def _relu(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """By its result: ONNX Runtime makes one operator of a ReLU and the convolution or sum before it, unless somebody
    else reads what is between.
    """
    return tape("Where", tape("Greater", rounded(node.outputs[0]), 0.0), gradient, 0.0)


def _leaky_relu(tape: Tape, node: ir.Node, _: ir.Value) -> ir.Value:
    return tape("Where", tape("Greater", node.inputs[0], 0.0), 1.0, number(node, "alpha", 0.01))


def _elu(tape: Tape, node: ir.Node, result: ir.Value) -> ir.Value:
    return tape("Where", tape("Greater", node.inputs[0], 0.0), 1.0, tape("Add", result, number(node, "alpha", 1.0)))


def _celu(tape: Tape, node: ir.Node, result: ir.Value) -> ir.Value:
    """Of alpha (exp(x / alpha) - 1), below 0."""
    below = tape("Add", tape("Mul", result, 1 / number(node, "alpha", 1.0)), 1.0)
    return tape("Where", tape("Greater", node.inputs[0], 0.0), 1.0, below)


def _selu(tape: Tape, node: ir.Node, result: ir.Value) -> ir.Value:
    """Of gamma x, and gamma alpha (exp(x) - 1) below 0."""
    alpha, gamma = number(node, "alpha", 1.6732632423543772), number(node, "gamma", 1.0507009873554805)
    return tape("Where", tape("Greater", node.inputs[0], 0.0), gamma, tape("Add", result, alpha * gamma))


def _mish(tape: Tape, node: ir.Node, _: ir.Value) -> ir.Value:
    """Of x t with t = tanh(softplus(x)): t + x (1 - t²) sigmoid(x)."""
    data = node.inputs[0]
    curve = tape("Tanh", tape("Softplus", data))
    slope = tape("Mul", tape("Sub", 1.0, tape("Mul", curve, curve)), tape("Sigmoid", data))
    return tape("Add", curve, tape("Mul", data, slope))


def _softplus(tape: Tape, node: ir.Node, _: ir.Value) -> ir.Value:
    return tape("Sigmoid", node.inputs[0])


def _gelu(tape: Tape, node: ir.Node, _: ir.Value) -> ir.Value:
    """Of x Φ(x), Φ(x) + x φ(x), or of its form by tanh."""
    data = node.inputs[0]
    if words(node, "approximate", "none") == "tanh":
        return _gelu_by_tanh(tape, data)
    scaled = tape("Mul", data, math.sqrt(0.5))
    slope = tape("Mul", tape("Mul", scaled, 2 / math.sqrt(math.pi)), _bell(tape, scaled))
    return _half_sum(tape, tape("Erf", scaled), slope)


def _gelu_by_tanh(tape: Tape, data: ir.Value | None) -> ir.Value:
    """Of x (1 + tanh u) / 2 with u = sqrt(2 / π) (x + 0.044715 x³)."""
    inner, cubic = math.sqrt(2 / math.pi), 0.044715
    square = tape("Mul", data, data)
    curve = tape("Tanh", tape("Mul", data, tape("Add", tape("Mul", square, inner * cubic), inner)))
    steep = tape("Mul", data, tape("Add", tape("Mul", square, 3 * inner * cubic), inner))
    bend = tape("Mul", steep, tape("Sub", 1.0, tape("Mul", curve, curve)))
    return _half_sum(tape, curve, bend)


def _half_sum(tape: Tape, left: ir.Value, right: ir.Value) -> ir.Value:
    """Gives (1 + left + right) / 2. Two Add are faster than one Sum."""
    return tape("Mul", tape("Add", tape("Add", left, right), 1.0), 0.5)


def _clip(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """PyTorch lets the gradient through at the bounds themselves, but not where both are ReLU6's."""
    bounds = [tape.constant(value) for value in node.inputs[1:]]
    also = "" if [None if bound is None else float(bound) for bound in bounds] == [0.0, 6.0] else "OrEqual"
    inside = [tape(f"{operator}{also}", node.inputs[0], node.inputs[index])
              for index, operator in ((1, "Greater"), (2, "Less"))
              if index < len(node.inputs) and node.inputs[index] is not None]  # fmt: skip
    for within in inside:
        gradient = tape("Where", within, gradient, 0.0)
    return gradient


def _extreme(tape: Tape, node: ir.Node, index: int, gradient: ir.Value) -> ir.Value:
    """Max and Min: inputs that are equal share, as in PyTorch."""
    chosen = [tape("CastLike", tape("Equal", value, node.outputs[0]), gradient) for value in node.inputs]
    shares = chosen[0] if len(chosen) == 1 else tape("Sum", *chosen)
    return tape("Mul", gradient, tape("Div", chosen[index], shares))


def _where(tape: Tape, node: ir.Node, index: int, gradient: ir.Value) -> ir.Value:
    taken = (gradient, 0.0) if index == 1 else (0.0, gradient)
    return tape("Where", node.inputs[0], *taken)


def _mean(tape: Tape, node: ir.Node, _: int, gradient: ir.Value) -> ir.Value:
    return tape("Mul", gradient, 1 / len(node.inputs))


def _prelu(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    data, slope = node.inputs
    return tape("Mul", gradient, tape("Where", tape("Greater", data, 0.0), 1.0, slope))


def _same(_: Tape, __: ir.Node, gradient: ir.Value) -> ir.Value:
    return gradient


def _dropout(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Leaves all as it is, but in training."""
    training = tape.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if training is not None and training.any():
        raise BundleError(f"{describe(node)} is in training mode, where answers differ each time")
    return gradient


RULES: dict[str, Rule] = {
    "Add": _broadcast(lambda _, __, ___, gradient: gradient),
    "Sum": _broadcast(lambda _, __, ___, gradient: gradient),
    "Sub": _broadcast(_sub),
    "Mul": _mul_or_gelu,
    "Div": _broadcast(_div),
    "Mean": _broadcast(_mean),
    "Max": _broadcast(_extreme),
    "Min": _broadcast(_extreme),
    "Where": _broadcast(_where),
    "Pow": first(_pow),
    "Neg": first(lambda tape, _, gradient: tape("Neg", gradient)),
    "Abs": _unary(lambda tape, node, _: tape("Sign", node.inputs[0])),
    "Sqrt": first(_sqrt),
    "Exp": _unary(lambda _, __, result: result),
    "Log": first(_log),
    "Reciprocal": _unary(_reciprocal),
    "Sin": _unary(lambda tape, node, _: tape("Cos", node.inputs[0])),
    "Cos": _unary(lambda tape, node, _: tape("Neg", tape("Sin", node.inputs[0]))),
    "Erf": _unary(_erf),
    "Tanh": _unary(_tanh),
    "Sigmoid": _unary(_sigmoid),
    "HardSigmoid": _unary(_hard_sigmoid),
    "HardSwish": _unary(_hard_swish),
    "Softplus": _unary(_softplus),
    "Relu": first(_relu),
    "LeakyRelu": _unary(_leaky_relu),
    "PRelu": first(_prelu),
    "Elu": _unary(_elu),
    "Celu": _unary(_celu),
    "Selu": _unary(_selu),
    "Mish": _unary(_mish),
    "Gelu": _unary(_gelu),
    "Clip": first(_clip),
    "Identity": first(_same),
    "Dropout": first(_dropout),
    "Cast": first(_same),
    "CastLike": first(_same),
}

"""Rounding to 8 bits, by the straight-through estimator (Bengio, Léonard and Courville 2013,
https://arxiv.org/abs/1308.3432): the gradient passes as if nothing had been rounded.

Rounding is a staircase, whose derivative is 0 wherever it has one, and says nothing of what the net was trained to do.
Numbers beyond the steps, which are cut off, let the gradient through like all others: the steps reach as far as any
number that calibration saw, so few are beyond, and evidence so strong that it is cut off must not count for nothing.
"""

import onnx_ir as ir

from export.explain.gradients.rule import Rule, first
from export.explain.tape import Tape


def _straight_through(_: Tape, __: ir.Node, gradient: ir.Value) -> ir.Value:
    return gradient


def rounded(value: ir.Value) -> ir.Value:
    """What is left of a value after rounding, where nobody reads it but to round it.

    ONNX Runtime makes one operator of integers of a node and the roundings before and behind it, unless somebody else
    reads the number in between.
    """
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        users = value.consumers()
        if [user.op_type for user in users] != [operator] or value.is_graph_output():
            return value
        value = users[0].outputs[0]
    return value


RULES: dict[str, Rule] = {"QuantizeLinear": first(_straight_through), "DequantizeLinear": first(_straight_through)}

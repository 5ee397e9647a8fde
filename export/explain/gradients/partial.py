"""Gradients that are zero but for some rows, through attention: where a classifier reads the class token alone, its
query is the only one of the last layer that counts.
"""

from collections.abc import Callable

import onnx_ir as ir

from export.explain.gradients.normalize import through_softmax, weights_of
from export.explain.tape import Part, Tape
from export.graph.nodes import integer

PartialRule = Callable[[Tape, ir.Node, int, Part], ir.Value | Part | None]
"""As `Rule`, of a part. None: not by parts; all of the gradient, zeros too, is to be carried through the node then."""


def _scaled(tape: Tape, node: ir.Node, index: int, part: Part) -> Part | None:
    """By a number."""
    other, ranks = tape.constant(node.inputs[1]), {tape.rank(value) for value in (node.inputs[0], node.outputs[0])}
    if index or other is None or other.size != 1 or len(ranks) > 1:
        return None
    return part._replace(gradient=tape(node.op_type, part.gradient, float(other.item())))


def _softmax(tape: Tape, node: ir.Node, index: int, part: Part) -> Part | None:
    rank = tape.rank(node.outputs[0])
    axis, weights = integer(node, "axis", -1) % rank, weights_of(tape, node)
    if index or axis == part.axis or weights is not node.outputs[0]:
        return None
    return part._replace(gradient=through_softmax(tape, tape.rows(weights, part), part.gradient, axis - rank))


def _matmul(tape: Tape, node: ir.Node, index: int, part: Part) -> ir.Value | Part | None:
    """Of C = A B with as many axes each, a part of the rows of C: as many rows of G Bᵀ, and Aᵀ G by those of A."""
    left, right = node.inputs
    ranks = {tape.rank(value) for value in (left, right, node.outputs[0])}
    same = tape.shape(left)[:-2] == tape.shape(right)[:-2]
    if left is None or len(ranks) > 1 or not same or part.axis != min(ranks) - 2:
        return None
    if index == 0:
        return part._replace(gradient=tape("MatMul", part.gradient, tape.transposed(right)))
    rows = tape.rows(left, part)
    return tape.swapped(tape("MatMul", tape.swapped(part.gradient, left), rows), left)


PARTIAL: dict[str, PartialRule] = {"Mul": _scaled, "Div": _scaled, "Softmax": _softmax, "MatMul": _matmul}

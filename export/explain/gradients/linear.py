"""Products of matrices."""

import onnx_ir as ir

from export.explain.gradients.rule import Rule
from export.explain.tape import Tape
from export.graph.nodes import describe, integer, number, words
from saccade.errors import BundleError


def _matmul(tape: Tape, node: ir.Node, index: int, gradient: ir.Value) -> ir.Value:
    """Of C = A B: G Bᵀ and Aᵀ G. A vector stands for a matrix of one row on the left, of one column on the right."""
    left, right = node.inputs
    row, column = tape.rank(left) == 1, tape.rank(right) == 1
    if index == 0 and not row and tape.rank(right) == 2:
        return _by_weight(tape, node, gradient)
    batch = tape.shape(node.outputs[0])[: -1 if row or column else -2]
    rows, inner = (1 if row else tape.shape(left)[-2]), tape.shape(left)[-1]
    if column:
        gradient = tape("Unsqueeze", gradient, [-1])
    if row:
        gradient = tape("Unsqueeze", gradient, [-2])
    if index == 0:
        turned = tape("Unsqueeze", right, [0]) if column else tape.transposed(right)
        return tape.sum_to(tape("MatMul", gradient, turned), left, (*batch, rows, inner))
    turned_by = None if right is None else right.producer()
    if not row and not column and turned_by is not None and turned_by.op_type == "Transpose":
        # keys are: by (Gᵀ A)ᵀ the one turn undoes the other
        product = tape.swapped(tape("MatMul", tape.swapped(gradient, node.outputs[0]), left), node.outputs[0])
        return tape.sum_to(product, right, (*batch, inner, tape.shape(right)[-1]))
    turned = tape("Unsqueeze", left, [1]) if row else tape.transposed(left)
    product = tape("MatMul", turned, gradient)
    if column:
        return tape.sum_to(tape("Squeeze", product, [-1]), right, (*batch, inner))
    return tape.sum_to(product, right, (*batch, inner, tape.shape(right)[-1]))


def _by_weight(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """G Wᵀ; by a Gemm, where W is to be turned as it multiplies."""
    data, weight = node.inputs
    assert weight is not None
    stored, turn = as_stored(weight)
    if not turn:
        return tape("MatMul", gradient, stored)
    source, alpha = tape.unscaled(gradient)
    flat = tape("Reshape", source, [-1, *tape.lengths(weight, 1)])
    return tape.unfold(tape("Gemm", flat, stored, transB=turn, alpha=alpha), data)


def as_stored(weight: ir.Value) -> tuple[ir.Value, int]:
    """(the matrix that lies in memory, `transB` of a Gemm that multiplies by the transposed weight).

    Either the very value of the forward pass, or what that turns before it multiplies. A Transpose for the backward
    pass alone would be folded into a second copy of the weights when the graph is loaded, or, in a session that folds
    nothing, run each time: on ViT-Ti/16 that took a third of the time of labels alone.
    """
    node = weight.producer()
    if node is None or node.op_type != "Transpose" or node.inputs[0] is None:
        return weight, 1
    if "perm" in node.attributes and list(node.attributes["perm"].as_ints()) == [0, 1]:
        return weight, 1
    return node.inputs[0], 0


def _gemm(tape: Tape, node: ir.Node, index: int, gradient: ir.Value) -> ir.Value:
    """Of Y = alpha A B + beta C, A and B being turned first where the node says so."""
    left, right, *_ = node.inputs
    turned = [integer(node, name, 0) for name in ("transA", "transB")]
    alpha = number(node, "alpha", 1.0)
    if index == 2:
        beta = number(node, "beta", 1.0)
        scaled = gradient if beta == 1 else tape("Mul", gradient, beta)
        return tape.sum_to(scaled, node.inputs[2], tape.shape(node.outputs[0]))
    if index == 0 and turned == [0, 1] and alpha == 1:
        return tape("MatMul", gradient, right)
    if index == 0 and not turned[0]:
        folded = tape.fold(gradient, node.outputs[0])
        return tape.unfold(tape("Gemm", folded, right, transB=1 - turned[1], alpha=alpha), left)
    if index == 0:
        product = _turn(tape, tape("MatMul", gradient, right if turned[1] else tape.transposed(right)))
    else:
        product = tape("MatMul", left if turned[0] else tape.transposed(left), gradient)
        product = _turn(tape, product) if turned[1] else product
    return product if alpha == 1 else tape("Mul", product, alpha)


def _turn(tape: Tape, gradient: ir.Value) -> ir.Value:
    return tape("Transpose", gradient, perm=[0, 2, 1])


def _einsum(tape: Tape, node: ir.Node, index: int, gradient: ir.Value) -> ir.Value:
    """The gradient takes the place of the input: ab,bc->ac has the gradients kac,bc->kab and ab,kac->kbc."""
    equation = words(node, "equation", "").replace(" ", "")
    terms, arrow, result = equation.partition("->")
    inputs = terms.split(",")
    others = "".join([result, *inputs[:index], *inputs[index + 1 :]])
    if not arrow or "." in equation or len(set(inputs[index])) < len(inputs[index]) or set(inputs[index]) - set(others):
        raise BundleError(f"{describe(node)}: the gradient of input {index} of {equation} is not known")
    k = next(letter for letter in "kabcdefghijlmnopqrstuvwxyz" if letter not in equation)
    given = [k + result if at == index else term for at, term in enumerate(inputs)]
    operands = [gradient if at == index else value for at, value in enumerate(node.inputs)]
    return tape("Einsum", *operands, equation=f"{','.join(given)}->{k}{inputs[index]}")


RULES: dict[str, Rule] = {"MatMul": _matmul, "Gemm": _gemm, "Einsum": _einsum}

"""GELU taken apart, so that its derivative finds in the forward pass what it is made of.

x (1 + erf(x / √2)) / 2 is √½ u (1 + erf u) with u = √½ x, and its derivative by u is √½ (1 + erf u + 2/√π u exp(-u²)):
of these, u and 1 + erf u are worked out anyway. ONNX Runtime takes numbers that a product with a matrix is multiplied
by, before or behind it, into that product. So both together take nine passes over the widest values of a transformer;
the operator in one piece, and a derivative with an error function of its own, take twelve.

The derivative stands beside it and not in the backward pass: there its numbers would have to be fetched from memory.
"""

import math
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from export.explain.known import other_floats
from export.explain.source import behind
from export.explain.written_out import gather_gelus
from export.graph.adder import Adder
from export.graph.nodes import replace, words

ROOT = math.sqrt(0.5)
DERIVATIVE = "derivative"
"""In what a node is marked with: that of its output by its first input, which counts what its second makes of it."""
PART_OF = "part of"
"""In what the nodes of an opened GELU are marked with what they count as, see `kind_of`."""
BESIDE = "beside"
"""What a node is marked with that is to be run where its numbers are made, and not behind a switch."""


def open_gelus(model: ir.Model, start: Collection[ir.Value], end: ir.Value) -> None:
    """Those between the values at the start and the one at the end, written out or not, in place, the results being
    the same.

    Not the form by tanh, nor what is of half precision, where 1 + erf u would lose the digits of a small result; nor
    one whose result is an output, which stays the value that it is.
    """
    others = other_floats(model)
    gather_gelus(model, others)
    way, reached = behind(model, end), set(start)
    for node in list(model.graph):
        if not any(value in reached for value in node.inputs):
            continue
        reached |= set(node.outputs)
        exact = node.op_type == "Gelu" and words(node, "approximate", "none") == "none"
        result = node.outputs[0]
        if exact and result in way and result not in others and not result.is_graph_output():
            _open(model, node)


def _open(model: ir.Model, node: ir.Node) -> None:
    add = Adder(model)
    add.before = node
    scaled = _scaled(add, node)
    parted = add("Add", add("Erf", scaled), add.number(1.0))
    bell = add("Exp", add("Sub", add.number(math.log(2 / math.sqrt(math.pi))), add("Mul", scaled, scaled)))
    derivative = add("Add", parted, add("Mul", scaled, bell))
    for one in add.made:
        one.meta[BESIDE] = True
    product = add("Mul", scaled, parted)
    add.made[-1].meta[DERIVATIVE] = derivative
    result = add("Mul", product, add.number(ROOT))
    for one in add.made:
        one.meta[PART_OF] = "Identity"
    add.made[-1].meta[PART_OF] = node.op_type
    replace(model, node, [result])


def kind_of(node: ir.Node) -> str:
    """Its operator; of an opened GELU the last one counts as the whole, and those before it as nothing."""
    return str(node.meta.get(PART_OF, node.op_type))


def _scaled(add: Adder, node: ir.Node) -> ir.Value:
    """√½ times the input; of a product with a matrix and a bias, made for this node alone, √½ times each."""
    data = node.inputs[0]
    assert data is not None
    total = data.producer()
    if total is not None and total.op_type == "Add" and len(data.uses()) == 1:
        for product, bias in (total.inputs, total.inputs[::-1]):
            if _is_product(product) and bias is not None and bias.const_value is not None:
                apart = add("Mul", product, add.number(ROOT))
                return add("Add", apart, add.constant(np.float32(ROOT) * bias.const_value.numpy()))
    return add("Mul", data, add.number(ROOT))


def _is_product(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    return node is not None and node.op_type == "MatMul" and value is not None and len(value.uses()) == 1

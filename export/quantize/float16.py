"""Half precision, for CUDA: weights and arithmetic in float16; input and outputs in float32.

Softmax runs in float32, so that rows of attention sum to 1, and so does what comes after the last large product: final
norm, pooling, head, rollout. There the maps are made, by sums that promise more digits than float16 has. So does an
operator with a constant beyond 65,504, the largest number of float16: a mask, or a weight. Layer norms need no care: by
the standard their mean and variance are float32 (`stash_type`).
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.quantize.float_graph import array, initializer, tidy, weighted_nodes

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
LARGEST = float(np.finfo(np.float16).max)
_STAY = ("Softmax", "Cast", "ConstantOfShape", "EyeLike", "Range", "Resize", "DequantizeLinear")
"""Operators in float32 always: for their precision, or because the standard has an input or output of theirs so."""


def to_float16(model: ir.Model) -> None:
    """Turns a float graph (see `float_graph`) into half precision; changes the model."""
    common.ShapeInferencePass()(model)
    narrow = _narrow(model)
    floats = [value for value in _values(model) if value.dtype == FLOAT]
    is_half = {value: value.producer() in narrow for value in floats}
    for value in floats:
        if value.is_initializer() and any(use.node in narrow for use in value.uses()):
            is_half[_halve(model, value)] = True
    casts: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        for index, given in enumerate(node.inputs):
            if given is not None and is_half.get(given, node in narrow) != (node in narrow):
                if given not in casts:
                    casts[given] = _cast(model, node, given, FLOAT if is_half[given] else HALF)
                node.replace_input_with(index, casts[given])
    tidy(model)


def _narrow(model: ir.Model) -> set[ir.Node]:
    """Nodes that lead to a large product, or are one, and give float32 by nothing but their inputs' type.

    Not those that give what the graph gives, as guarded weights of attention; not those that make constants of
    constants either: ONNX Runtime makes them at load, in float32 alone.
    """
    leading = {one.node for one in weighted_nodes(model)}
    constant: set[ir.Node] = set()
    for node in model.graph:
        if all(value is None or value.is_initializer() or value.producer() in constant for value in node.inputs):
            constant.add(node)
    for node in reversed(model.graph):
        if any(use.node in leading for value in node.outputs for use in value.uses()):
            leading.add(node)
    return {
        node
        for node in leading - constant
        if node.op_type not in _STAY and any(value.dtype == FLOAT for value in node.outputs)
        if not any(value.is_graph_output() for value in node.outputs) and not _takes_large(node)
    }


def _takes_large(node: ir.Node) -> bool:
    constants = [array(value) for value in node.inputs if value is not None and value.is_initializer()]
    return any(
        values.dtype == np.float32 and (np.abs(values[np.isfinite(values)]) > LARGEST).any() for values in constants
    )


def _values(model: ir.Model) -> list[ir.Value]:
    made = [value for node in model.graph for value in node.outputs]
    return [*model.graph.inputs, *model.graph.initializers.values(), *made]


def _halve(model: ir.Model, value: ir.Value) -> ir.Value:
    halved = initializer(model, array(value).astype(np.float16), value.name or "")
    value.replace_all_uses_with(halved)
    return halved


def _cast(model: ir.Model, before: ir.Node, value: ir.Value, to: ir.DataType) -> ir.Value:
    node = ir.Node("", "Cast", [value], attributes=[ir.AttrInt64("to", to)], name=f"{value.name}.{to.name.lower()}")
    node.outputs[0].name = node.name
    model.graph.insert_before(before, node)
    return node.outputs[0]

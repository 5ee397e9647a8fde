"""A bundle's graph as the passes of this package want it: weights in memory, next to the operator that takes them.

The graph of a bundle keeps every parameter as the net has it: transposed by a node, batch norms apart. Here transposes
are done, batch norms are folded into the convolution before them, and a Gemm is a MatMul and an Add: what can be made
small is then Conv and MatMul. The answers stay the same but for rounding. The head, which gives the logits, is left as
it is: the class map multiplies by the same numbers.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from export.graph.adder import Adder
from export.graph.nodes import integer, number, replace
from export.names import LOGITS
from saccade.bundle import Bundle

SMALL = 256
"""Weights of fewer numbers stay as they are: neither the file nor the time would get less."""


class Weighted(NamedTuple):
    """A Conv or MatMul whose second input is a constant."""

    node: ir.Node
    name: str
    """Of its weight: what the card calls the node."""

    @property
    def data(self) -> ir.Value:
        return _given(self.node.inputs[0])

    @property
    def weight(self) -> ir.Value:
        return _given(self.node.inputs[1])

    @property
    def bias(self) -> ir.Value | None:
        """Of a convolution."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    @property
    def is_convolution(self) -> bool:
        return self.node.op_type == "Conv"

    @property
    def result(self) -> ir.Value:
        """What the node gives; of a convolution, after its ReLU where it has one."""
        (value,) = self.node.outputs
        users = [use.node for use in value.uses()]
        follows = self.is_convolution and len(users) == 1 and users[0].op_type == "Relu"
        return users[0].outputs[0] if follows else value

    @property
    def channels(self) -> int:
        """The axis of the weight that stands for the channels of the result."""
        return 0 if self.is_convolution else 1


def float_graph(bundle: Bundle) -> ir.Model:
    """The bundle's graph, in float32, written as above."""
    model = ir.load(bundle.graph)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.Tensor(np.array(value.const_value.numpy()), name=value.name)
    _transpose_weights(model)
    _split_gemms(model)
    _fold_batch_norms(model)
    _drop_zero_biases(model)
    tidy(model)
    return model


def tidy(model: ir.Model) -> None:
    """Drops what nobody uses, and shapes and types that were true of another graph: ONNX Runtime infers them."""
    common.RemoveUnusedNodesPass()(model)
    outputs = set(model.graph.outputs)
    for node in model.graph:
        for value in node.outputs:
            if value not in outputs:
                value.shape, value.type = None, None


def weighted_nodes(model: ir.Model) -> list[Weighted]:
    """Convolutions and matrix products by constants, in the graph's order; without the head, without what is small or
    gives a single number a token, as learned pooling does.
    """
    found = []
    for node in model.graph:
        weight = node.inputs[1] if node.op_type in ("Conv", "MatMul") else None
        if weight is None or weight.const_value is None or not weight.is_initializer():
            continue
        rank = 4 if node.op_type == "Conv" else 2
        one = Weighted(node, weight.name or "")
        if len(weight.const_value.shape) != rank or weight.const_value.shape[one.channels] == 1:
            continue
        if weight.const_value.size >= SMALL and not _gives_logits(node):
            found.append(one)
    return found


def array(value: ir.Value) -> NDArray[Any]:
    """Of an initializer."""
    assert value.const_value is not None
    return value.const_value.numpy()


def initializer(model: ir.Model, values: NDArray[Any], name: str) -> ir.Value:
    """A new one, in place of any other of that name."""
    tensor = ir.Tensor(values, name=name)
    shape, kind = ir.Shape(values.shape), ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
    model.graph.initializers[name] = value
    return value


def _gives_logits(node: ir.Node) -> bool:
    """Whether nothing but its bias stands between the product and the logits."""
    (value,) = node.outputs
    users = [use.node for use in value.uses()]
    if len(users) == 1 and users[0].op_type == "Add":
        value = users[0].outputs[0]
    return value.is_graph_output() and value.name == LOGITS


def _turned(model: ir.Model, weight: ir.Value, order: list[int] | None) -> ir.Value:
    """The transposed weight, under its own name where nobody else reads it as it is."""
    name, values = weight.name or "", np.ascontiguousarray(array(weight).transpose(order))
    if len(weight.uses()) > 1:
        return initializer(model, values, f"{name}.transposed")
    del model.graph.initializers[name]
    return initializer(model, values, name)


def _transpose_weights(model: ir.Model) -> None:
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or not source.is_initializer() or node.outputs[0].is_graph_output():
            continue
        order = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else None
        node.outputs[0].replace_all_uses_with(_turned(model, source, order))
        model.graph.remove(node, safe=True)


def _split_gemms(model: ir.Model) -> None:
    add = Adder(model)
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type == "Gemm" else None
        if weight is None or not weight.is_initializer() or _gives_logits(node):
            continue
        if integer(node, "transA", 0) or number(node, "alpha", 1.0) != 1 or number(node, "beta", 1.0) != 1:
            continue
        add.before = node
        result = add("MatMul", node.inputs[0], _turned(model, weight, None) if integer(node, "transB", 0) else weight)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            result = add("Add", result, node.inputs[2])
        replace(model, node, [result])


def _fold_batch_norms(model: ir.Model) -> None:
    """Gives w' = w g / sqrt(v + e) and b' = (b - m) g / sqrt(v + e) + t, channel by channel, in float64."""
    for norm in list(model.graph):
        data = norm.inputs[0] if norm.op_type == "BatchNormalization" else None
        node = data.producer() if data is not None and len(data.uses()) == 1 and not data.is_graph_output() else None
        weight = node.inputs[1] if node is not None and node.op_type == "Conv" else None
        if node is None or weight is None or not weight.is_initializer() or len(weight.uses()) > 1:
            continue
        gain, shift, mean, variance = (array(_given(value)).astype(np.float64) for value in norm.inputs[1:5])
        factor = gain / np.sqrt(variance + number(norm, "epsilon", 1e-5))
        bias = Weighted(node, "").bias
        before = 0.0 if bias is None else array(bias).astype(np.float64)
        name = weight.name or ""
        scaled = array(weight) * factor.reshape(-1, *[1] * (array(weight).ndim - 1))
        folded = initializer(model, scaled.astype(np.float32), name)
        added = initializer(
            model, ((before - mean) * factor + shift).astype(np.float32), f"{name.removesuffix('.weight')}.bias"
        )
        convolution = ir.Node(
            "", "Conv", [node.inputs[0], folded, added], attributes=list(node.attributes.values()), name=node.name
        )
        model.graph.insert_before(norm, convolution)
        replace(model, norm, convolution.outputs)
        model.graph.remove(node, safe=True)


def _drop_zero_biases(model: ir.Model) -> None:
    """The exporter gives a convolution without a bias one of zeros."""
    for node in model.graph:
        bias = Weighted(node, "").bias if node.op_type == "Conv" else None
        if bias is not None and bias.is_initializer() and not array(bias).any():
            node.replace_input_with(2, None)


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value

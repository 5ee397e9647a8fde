"""Outputs that are worked out only where they are wanted.

ONNX Runtime runs all nodes of a graph, whatever outputs are asked for. Behind an If they rest.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.explain.source import behind


def gate(model: ir.Model, outputs: Sequence[ir.Value], name: str) -> None:
    """Moves all that only these outputs hang on, float32 of (batch, k, patches), behind a new input, in place: a bool,
    true where it is not given. Where it is false they are empty, (0, 0, patches).
    """
    common.RemoveUnusedNodesPass()(model)  # what only the check of the gradients wanted
    others = set().union(*(behind(model, value) for value in model.graph.outputs if value not in outputs))
    wanted = set().union(*(behind(model, value) for value in outputs))
    nodes = [node for node in model.graph if wanted.intersection(node.outputs) and not others.intersection(node.outputs)]
    switch = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    switch.const_value = ir.tensor(np.array(True), name=name)
    model.graph.inputs.append(switch)
    model.graph.initializers[name] = switch

    choice = ir.node("If", [switch], num_outputs=len(outputs), name=name)
    nothing = []
    for value, chosen in zip(outputs, choice.outputs, strict=True):
        assert value.shape is not None
        empty = ir.tensor(np.zeros((0, 0, value.shape[2]), np.float32))
        nothing.append(ir.node("Constant", [], {"value": empty}, name=f"no_{value.name}"))
        nothing[-1].outputs[0].name = f"no_{value.name}"
        chosen.name, chosen.shape, chosen.type = value.name, value.shape, value.type
        model.graph.outputs[model.graph.outputs.index(value)] = chosen
        value.name = f"some_{value.name}"
    model.graph.remove(nodes)
    branches = {
        "then_branch": ir.Graph([], [*outputs], nodes=nodes, name=f"{name}_true"),
        "else_branch": ir.Graph([], [node.outputs[0] for node in nothing], nodes=nothing, name=f"{name}_false"),
    }
    for key, graph in branches.items():
        choice.attributes[key] = ir.AttrGraph(key, graph)
    model.graph.append(choice)

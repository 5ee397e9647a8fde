"""Maps that are worked out only where they are wanted.

ONNX Runtime runs all nodes of a graph, whatever outputs are asked for: a caller who wants one map would wait for all.
Behind an If they rest.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.explain.gelu import BESIDE
from export.explain.source import behind
from export.graph.nodes import replace
from saccade.manifest import SWITCHES


def gate_maps(model: ir.Model) -> None:
    """Adds those of the switches that the model has maps of, in place. It must be given them then; where one is false
    its outputs are empty: each axis but the last has the length 0.
    """
    common.RemoveUnusedNodesPass()(model)  # what only the check of the gradients wanted
    for name, maps in SWITCHES.items():
        outputs = [value for value in model.graph.outputs if value.name in maps]
        if outputs:
            _gate(model, outputs, name)


def _gate(model: ir.Model, outputs: Sequence[ir.Value], name: str) -> None:
    """Moves what only these outputs hang on, float32, into a branch."""
    others = set().union(*(behind(model, value) for value in model.graph.outputs if value not in outputs))
    wanted = set().union(*(behind(model, value) for value in outputs))
    nodes = [
        node
        for node in model.graph
        if wanted.intersection(node.outputs) and not others.intersection(node.outputs) and BESIDE not in node.meta
    ]
    switch = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    model.graph.inputs.append(switch)

    choice = ir.node("If", [switch], num_outputs=len(outputs), name=name)
    nothing = []
    for value, chosen in zip(outputs, choice.outputs, strict=True):
        assert value.shape is not None
        *before, patches = value.shape
        assert isinstance(patches, int)
        empty = ir.tensor(np.zeros((*[0] * len(before), patches), np.float32))
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


def open_gates(model: ir.Model) -> None:
    """Undoes `gate_maps`, in place: all maps are worked out, and there are no switches."""
    for choice in [node for node in model.graph if node.op_type == "If" and node.name in SWITCHES]:
        branch = choice.attributes["then_branch"].as_graph()
        nodes, outputs = list(branch), list(branch.outputs)
        branch.outputs.clear()
        branch.remove(nodes)
        model.graph.insert_before(choice, nodes)
        replace(model, choice, outputs)
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.name not in SWITCHES]

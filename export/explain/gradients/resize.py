"""Resize: along each axis it is a matrix, the same for every picture."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.explain.gradients.rule import Rule, first
from export.explain.tape import Tape
from export.graph.evaluate import evaluate
from export.graph.nodes import describe, words
from saccade.errors import BundleError


def _resize(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Of the last two axes: G Rᵀ along the last, R G along the one before."""
    data, rank = node.inputs[0], tape.rank(node.inputs[0])
    for axis in range(rank):
        if tape.shape(data)[axis] == tape.shape(node.outputs[0])[axis]:
            continue
        if axis < rank - 2:
            raise BundleError(f"{describe(node)} resizes axis {axis} of {rank}: the gradient of the last two is known")
        matrix = _matrix(tape, node, axis)
        if axis == rank - 1:
            gradient = tape("MatMul", gradient, np.ascontiguousarray(matrix.T))
        else:
            gradient = tape("MatMul", matrix, gradient)
    return gradient


def _matrix(tape: Tape, node: ir.Node, axis: int) -> NDArray[Any]:
    """(before, after): what becomes of a 1 at each place of the axis, by onnx's own evaluator."""
    if words(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise BundleError(f"{describe(node)} crops: no gradient is known")
    (before,) = tape.lengths(node.inputs[0], axis, axis + 1)
    (after,) = tape.lengths(node.outputs[0], axis, axis + 1)
    given = [tape.constant(node.inputs[index]) if index < len(node.inputs) else None for index in (2, 3)]
    named = node.attributes["axes"].as_ints() if "axes" in node.attributes else range(tape.rank(node.inputs[0]))
    at = [one % tape.rank(node.inputs[0]) for one in named].index(axis)
    scales = given[0] if given[0] is not None and given[0].size else None
    alone: list[NDArray[Any] | None] = [np.eye(before, dtype=np.float32), None]
    if scales is not None:
        alone += [np.array([1, scales[at]], np.float32), None]
    else:
        alone += [None, np.array([before, after])]
    kept = {name: one for name, one in node.attributes.items() if name not in ("axes", "keep_aspect_ratio_policy")}
    inputs = [None if one is None else ir.Value(name=f"in_{index}") for index, one in enumerate(alone)]
    return evaluate(ir.node("Resize", inputs, kept), alone)[0]


RULES: dict[str, Rule] = {"Resize": first(_resize)}

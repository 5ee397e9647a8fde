"""One node by itself: its value by onnx's own evaluator, or the shapes of its results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

OPSET = 20


def evaluate(node: ir.Node, inputs: Sequence[NDArray[Any] | None]) -> list[NDArray[Any]]:
    """The outputs of a node of the standard domain. Raises whatever the evaluator does not like."""
    proto, names = _alone(node)
    feed = {name: array for name, array in zip(names, inputs, strict=True) if name and array is not None}
    results = ReferenceEvaluator(proto, opsets={"": OPSET}).run(None, feed)
    return [np.asarray(result) for result in results]


def output_shapes(
    node: ir.Node, shapes: Sequence[tuple[int, ...]], constants: Sequence[NDArray[Any] | None]
) -> list[tuple[int, ...]]:
    """By onnx's shape inference. Raises ValueError where it knows no shape."""
    proto, names = _alone(node)
    schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
    types, data = {}, {}
    kinds = _kinds(schema, constants)
    for name, kind, shape, constant in zip(names, kinds, shapes, constants, strict=True):
        if not name:
            continue
        types[name] = onnx.helper.make_tensor_type_proto(kind, shape)
        if constant is not None and constant.size < 1024:
            data[name] = onnx.numpy_helper.from_array(constant)
    inferred = onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=_OPSETS)
    found = []
    for name in proto.output:
        if name not in inferred or not inferred[name].tensor_type.HasField("shape"):
            raise ValueError("its result has no known shape")
        dims = inferred[name].tensor_type.shape.dim
        if not all(dim.HasField("dim_value") for dim in dims):
            raise ValueError("its result has no known shape")
        found.append(tuple(dim.dim_value for dim in dims))
    return found


_OPSETS = [onnx.helper.make_opsetid("", OPSET)]


def _kinds(schema: onnx.defs.OpSchema, constants: Sequence[NDArray[Any] | None]) -> list[int]:
    """Element types of the inputs; of one that is no constant, the first of a few that the operator takes there."""
    formal = [schema.inputs[min(index, len(schema.inputs) - 1)] for index in range(len(constants))]
    given = {one.type_str: onnx.helper.np_dtype_to_tensor_dtype(constant.dtype)
             for one, constant in zip(formal, constants, strict=True) if constant is not None}  # fmt: skip
    kinds: list[int] = []
    for one, constant in zip(formal, constants, strict=True):
        if constant is not None:
            kinds.append(onnx.helper.np_dtype_to_tensor_dtype(constant.dtype))
            continue
        taken = next((kind for name, kind in _TYPES.items() if name in one.types), onnx.TensorProto.FLOAT)
        kinds.append(given.get(one.type_str, taken))
    return kinds


_TYPES = {
    "tensor(float)": onnx.TensorProto.FLOAT, "tensor(int64)": onnx.TensorProto.INT64,
    "tensor(bool)": onnx.TensorProto.BOOL, "tensor(uint8)": onnx.TensorProto.UINT8,
}  # fmt: skip


def _alone(node: ir.Node) -> tuple[onnx.NodeProto, list[str]]:
    """The node under names of its own: values of a graph under work may have none."""
    proto = ir.to_proto(node)
    names = ["" if value is None else f"in_{index}" for index, value in enumerate(node.inputs)]
    del proto.input[:]
    proto.input.extend(names)
    del proto.output[:]
    proto.output.extend(f"out_{index}" for index in range(len(node.outputs)))
    return proto, names


def run_whole(graph: Path, pixels: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Outputs of a graph by onnx's own evaluator, which shares no code with ONNX Runtime: (n, 3, H, W) -> by name.

    Picture by picture: it keeps every value of the graph, some hundred MB for one picture through a ViT-B.
    """
    model = onnx.load(str(graph))
    evaluator, given = ReferenceEvaluator(model), model.graph.input[0].name
    rows: list[Any] = [evaluator.run(list(outputs), {given: pixels[index : index + 1]}) for index in range(len(pixels))]
    return {name: np.concatenate([row[at] for row in rows]) for at, name in enumerate(outputs)}

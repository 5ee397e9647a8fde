"""What is known of the values of a graph before it runs: their shapes, and numbers that hang on no picture.

Shape inference loses its way where shapes are computed; ONNX Runtime does not. So the graph is run twice, with a batch
of 2 and of 3, without its weights, which decide no shape: what is equal in both runs does not grow with the batch.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from export.graph.adder import Adder
from export.graph.evaluate import OPSET
from export.graph.nodes import describe, used
from export.runtime import PROVIDER
from saccade.errors import BundleError

Shape = tuple[int | None, ...]
"""None: the axis grows with the batch."""

FLOAT = ir.DataType.FLOAT
_BATCHES = (2, 3)
_LARGE = 4096
"""Initializers of floating point with more numbers than this are weights."""


class Known:
    """Shapes of the values asked for, numbers of the constants asked for, and what is of no float32."""

    def __init__(self, model: ir.Model, values: Collection[ir.Value], constants: Collection[ir.Value]) -> None:
        """Raises BundleError where ONNX Runtime does not run the graph."""
        self._shapes: dict[ir.Value, Shape] = {}
        self._constants: dict[ir.Value, NDArray[Any]] = {}
        self._others = other_floats(model)
        hanging = _hanging(model)
        asked = [value for value in dict.fromkeys(constants) if value.const_value is None and value not in hanging]
        shaped = [value for value in dict.fromkeys(values) if value.const_value is None]
        few, more = (_run(model, shaped, asked, batch) for batch in _BATCHES)
        for value, one, other in zip(shaped, few, more, strict=False):
            if len(one) != len(other):
                raise BundleError(f"the rank of {value.name} hangs on the batch: no gradient can be taken through it")
            self._shapes[value] = tuple(
                length if length == again else None for length, again in zip(one.tolist(), other.tolist(), strict=True)
            )
        for value, one, other in zip(asked, few[len(shaped) :], more[len(shaped) :], strict=True):
            if np.array_equal(one, other):
                self._constants[value] = one

    def shape(self, value: ir.Value) -> Shape:
        if value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        return self._shapes[value]

    def constant(self, value: ir.Value | None) -> NDArray[Any] | None:
        """None where it is none, or was not asked for."""
        if value is None:
            return None
        return self._constants.get(value) if value.const_value is None else value.const_value.numpy()

    def is_other_float(self, value: ir.Value) -> bool:
        return value in self._others


def other_floats(model: ir.Model) -> set[ir.Value]:
    """Values of floating point that are not float32: those of half precision, above all. By onnx's type inference."""
    weights = [value for value in model.graph.initializers.values() if value.dtype is not None]
    casts = [ir.DataType(node.attributes["to"].as_int()) for node in model.graph if node.op_type == "Cast"]
    if not any(_is_other(kind) for kind in (*(value.dtype for value in weights), *casts)):
        return set()
    given = [ir.serde.serialize_value(value) for value in (*model.graph.inputs, *weights)]
    body = onnx.helper.make_graph([ir.to_proto(node) for node in model.graph], "types", given, [])
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    inferred = onnx.shape_inference.infer_shapes(onnx.helper.make_model(body, opset_imports=imports)).graph
    kinds = {one.name: ir.DataType(one.type.tensor_type.elem_type) for one in (*inferred.input, *inferred.value_info)}
    made = [value for node in model.graph for value in node.outputs]
    return {value for value in (*model.graph.inputs, *weights, *made) if _is_other(kinds.get(value.name or ""))}


def widened(add: Adder, value: ir.Value, others: Collection[ir.Value]) -> ir.Value:
    """In float32, as gradients are; `others` are those of `other_floats`."""
    return add("Cast", value, to=FLOAT) if value in others else value


def _is_other(kind: ir.DataType | None) -> bool:
    return kind is not None and kind.is_floating_point() and kind != FLOAT


def _hanging(model: ir.Model) -> set[ir.Value]:
    """Values that a picture may change, and not its shape alone."""
    hanging = set(model.graph.inputs)
    for node in model.graph:
        if node.op_type not in ("Shape", "Size") and any(value in hanging for value in used(node)):
            hanging |= set(node.outputs)
    return hanging


def _run(model: ir.Model, shaped: Sequence[ir.Value], constants: Iterable[ir.Value], batch: int) -> list[NDArray[Any]]:
    """Shapes, then numbers."""
    nodes, initializers = [], []
    for value in model.graph.initializers.values():
        if value.const_value is None:
            continue
        if value.const_value.dtype.is_floating_point() and value.const_value.size > _LARGE:
            nodes += _zeros(value)
        else:
            initializers.append(onnx.numpy_helper.from_array(np.asarray(value.const_value.numpy()), value.name))
    nodes += [ir.to_proto(node) for node in model.graph]
    outputs = []
    for index, value in enumerate(shaped):
        outputs.append(onnx.helper.make_empty_tensor_value_info(f"shape of {index}"))
        nodes.append(onnx.helper.make_node("Shape", [value.name or ""], [f"shape of {index}"]))
    for index, value in enumerate(constants):
        outputs.append(onnx.helper.make_empty_tensor_value_info(f"numbers of {index}"))
        nodes.append(onnx.helper.make_node("Identity", [value.name or ""], [f"numbers of {index}"]))
    if not outputs:
        return []
    inputs, feed = [], {}
    for value in model.graph.inputs:
        zeros = _input(value, batch)
        inputs.append(onnx.helper.make_tensor_value_info(
            value.name or "", onnx.helper.np_dtype_to_tensor_dtype(zeros.dtype), zeros.shape))  # fmt: skip
        feed[value.name] = zeros
    graph = onnx.helper.make_graph(nodes, "shapes", inputs, outputs, initializers)
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    proto = onnx.helper.make_model(graph, opset_imports=imports or [onnx.helper.make_opsetid("", OPSET)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=[PROVIDER])
        found: list[NDArray[Any]] = session.run(None, feed)
    except Exception as error:  # its exceptions share no base class with each other
        line = str(error).splitlines()[0]
        raise BundleError(f"ONNX Runtime does not run the graph with {batch} pictures: {line}") from error
    return found


def _input(value: ir.Value, batch: int) -> NDArray[Any]:
    """Zeros; each open axis has the length of the batch."""
    if value.shape is None or value.dtype is None:
        raise BundleError(f"the graph's input {value.name} has no shape or no type")
    return np.zeros([length if isinstance(length, int) else batch for length in value.shape], value.dtype.numpy())


def _zeros(value: ir.Value) -> list[onnx.NodeProto]:
    """In place of a weight."""
    assert value.const_value is not None
    shape = onnx.numpy_helper.from_array(np.array(value.const_value.shape.numpy(), np.int64), f"shape of {value.name}")
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.const_value.dtype.numpy())
    zero = onnx.helper.make_tensor("zero", kind, [1], [0])
    return [
        onnx.helper.make_node("Constant", [], [f"shape of {value.name}"], value=shape),
        onnx.helper.make_node("ConstantOfShape", [f"shape of {value.name}"], [value.name or ""], value=zero),
    ]


def said(value: ir.Value | None) -> str:
    """A value and what makes it, for a sentence."""
    node = None if value is None else value.producer()
    name = "nothing" if value is None else repr(value.name)
    return name if node is None else f"{name} of {describe(node)}"

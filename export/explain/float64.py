"""A graph of float32 in float64, by onnx's own evaluator: node by node, so that any value can be given or changed."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from scipy import special

from export.graph.evaluate import OPSET
from export.graph.nodes import describe
from saccade.errors import BundleError

Array = NDArray[Any]
Values = dict[ir.Value, Array]

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


class Float64:
    """Runs a model of plain operators of opset 20.

    With `straight` nothing is rounded to 8 bits but weights: the function whose gradient the straight-through
    estimator takes (see `export.explain.gradients.quantize`).
    """

    def __init__(self, model: ir.Model, *, straight: bool = False) -> None:
        self._nodes = list(model.graph)
        self._operators = [*_EXACT, *(_STRAIGHT if straight else ())]
        self._evaluators: dict[ir.Node, ReferenceEvaluator] = {}

    def run(
        self,
        given: Mapping[ir.Value, Array],
        wanted: Collection[ir.Value],
        changes: Mapping[ir.Value, Array] | None = None,
        *,
        keep: bool = False,
    ) -> Values:
        """The wanted values, or all that were worked out for them and are to be kept.

        Nothing that is given is worked out; `changes` are added to their values before anything uses these. Raises
        BundleError where the evaluator does not know a node.
        """
        changes = changes or {}
        nodes = self._needed(set(given), wanted)
        left = dict.fromkeys(wanted, 1)
        for node in nodes:
            for value in node.inputs:
                if value is not None:
                    left[value] = left.get(value, 0) + 1
        values = {value: array + changes[value] if value in changes else array for value, array in given.items()}
        for node in nodes:
            for value, result in zip(node.outputs, self._results(node, values), strict=False):
                values[value] = result + changes[value] if value in changes else result
            for value in (*node.inputs, *node.outputs):
                if value is not None:
                    left[value] = left.get(value, 0) - (value in node.inputs)
                    if left[value] <= 0 and not keep:
                        values.pop(value, None)
        return values if keep else {value: values[value] for value in wanted}

    def _needed(self, given: Collection[ir.Value], wanted: Collection[ir.Value]) -> list[ir.Node]:
        needed, nodes = set(wanted) - set(given), []
        for node in reversed(self._nodes):
            if any(value in needed for value in node.outputs):
                nodes.append(node)
                needed |= {value for value in node.inputs if value is not None and value not in given}
        return nodes[::-1]

    def _results(self, node: ir.Node, values: Mapping[ir.Value, Array]) -> list[Array]:
        inputs = {f"in_{index}": _input(value, values) for index, value in enumerate(node.inputs) if value is not None}
        if node not in self._evaluators:
            self._evaluators[node] = ReferenceEvaluator(_alone(node), opsets={"": OPSET}, new_ops=self._operators)
        try:
            with np.errstate(all="ignore"):  # a row whose keys are all masked is NaN until the graph itself mends it
                return [_float64(one) for one in self._evaluators[node].run(None, inputs)]
        except Exception as error:  # of the evaluator; its exceptions share no base class
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BundleError(f"onnx's own evaluator does not run {describe(node)} in float64: {line[:200]}") from error


def _input(value: ir.Value, values: Mapping[ir.Value, Array]) -> Array:
    if value in values:
        return values[value]
    if value.const_value is None:
        raise BundleError(f"{value.name} has no value")
    return _float64(value.const_value.numpy())


def _float64(array: Any) -> Array:
    array = np.asarray(array)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _alone(node: ir.Node) -> onnx.NodeProto:
    """The node under names of its own, and with float64 where it says float32."""
    proto = ir.to_proto(node)
    inputs = ["" if value is None else f"in_{index}" for index, value in enumerate(node.inputs)]
    outputs = [f"out_{index}" for index in range(len(node.outputs))]
    del proto.input[:], proto.output[:]
    proto.input.extend(inputs)
    proto.output.extend(outputs)
    for attribute in proto.attribute:
        if attribute.name == "to" and attribute.i in _FLOATS:
            attribute.i = onnx.TensorProto.DOUBLE
        if attribute.HasField("t") and attribute.t.data_type in _FLOATS:
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(_float64(onnx.numpy_helper.to_array(attribute.t))))
    return proto


class Erf(OpRun):
    """onnx's own rounds to float32."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (special.erf(x),)


class Gelu(OpRun):
    """onnx's own is made of that Erf."""

    op_domain = ""

    def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
        if approximate == "tanh":
            return (x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),)
        return (x * special.ndtr(x),)


class ConvTranspose(OpRun):
    """onnx's own goes number by number, which takes minutes, and errs with groups. None pads by itself."""

    op_domain = ""

    def _run(
        self, x: Array, weight: Array, bias: Array | None = None, *, group: int | None = None,
        strides: list[int] | None = None, dilations: list[int] | None = None, pads: list[int] | None = None,
        output_padding: list[int] | None = None, **_: Any,
    ) -> tuple[Array]:  # fmt: skip
        """Of (B, C, …), a weight (C, M / group, …) and a bias (M,)."""
        batch, kernel, rank, group = len(x), weight.shape[2:], x.ndim - 2, group or 1
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        pads, output_padding = pads or [0] * (2 * rank), output_padding or [0] * rank
        parts = x.reshape(batch, group, -1, *x.shape[2:])
        weights = weight.reshape(group, -1, *weight.shape[1:])
        spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
        sizes = zip(x.shape[2:], strides, spans, output_padding, strict=True)
        whole = [(length - 1) * stride + span + more for length, stride, span, more in sizes]
        result = np.zeros((batch, group, weight.shape[1], *whole))
        for place in np.ndindex(*kernel):
            begins = [at * step for at, step in zip(place, dilations, strict=True)]
            window = tuple(slice(begin, begin + (length - 1) * stride + 1, stride)
                           for begin, length, stride in zip(begins, x.shape[2:], strides, strict=True))  # fmt: skip
            product = np.einsum("bgc...,gcm->bgm...", parts, weights[(slice(None),) * 3 + place])
            result[(slice(None),) * 3 + window] += product
        cut = tuple(slice(pads[axis], whole[axis] - pads[axis + rank]) for axis in range(rank))
        summed = result[(slice(None),) * 3 + cut].reshape(batch, -1, *(one.stop - one.start for one in cut))
        return (summed if bias is None else summed + bias.reshape(-1, *[1] * rank),)


class GatherElements(OpRun):
    """onnx's own wants as many places as numbers along the other axes."""

    op_domain = ""

    def _run(self, x: Array, places: Array, axis: int = 0) -> tuple[Array]:
        along = axis % x.ndim
        part = tuple(slice(None if at == along else length) for at, length in enumerate(places.shape))
        return (np.take_along_axis(x[part], places, along),)


class QuantizeLinear(OpRun):
    """Rounds nothing."""

    op_domain = ""

    def _run(self, x: Array, *_: Array, **__: Any) -> tuple[Array]:
        return (x,)


class DequantizeLinear(OpRun):
    """Of what was not rounded the same; of whole numbers, which weights are, what they stand for."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, zero: Array | None = None, *, axis: int = 1, **_: Any) -> tuple[Array]:
        if x.dtype.kind == "f":
            return (x,)
        lengths = [-1 if at == axis % x.ndim else 1 for at in range(x.ndim)] if scale.ndim else []
        less = 0.0 if zero is None else zero.astype(np.float64).reshape(lengths)
        return ((x - less) * scale.reshape(lengths),)


_EXACT = (Erf, Gelu, ConvTranspose, GatherElements)
_STRAIGHT = (QuantizeLinear, DequantizeLinear)

"""Static 8-bit arithmetic: QuantizeLinear and DequantizeLinear around convolutions and matrix products.

ONNX Runtime fuses each group into one operator of integers, whose sums are exact in whatever order they are made, so an
answer does not depend on the batch. Activations are uint8, one step for each tensor, fixed by calibration. Weights are
int8, one step for each output channel, symmetric, and of 7 bits: processors without VNNI add two products of uint8 and
int8 into 16 bits, and 2 * 255 * 64 is the most that cannot overflow there. With all 8 bits a stranger's machine would
give other answers than the one that measured them.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.quantize.float_graph import Weighted, array, initializer, tidy, weighted_nodes
from export.quantize.ranges import Step

WEIGHT_LIMIT = 63
BIAS_LIMIT = 2**30
"""Half of what int32 holds: the other half is for the sums that the bias is added to."""


def calibrated_values(nodes: Sequence[Weighted]) -> list[str]:
    """Names of the values that need a step: what the nodes take, and what convolutions give."""
    names = [
        value.name or "" for one in nodes for value in ([one.data, one.result] if one.is_convolution else [one.data])
    ]
    return list(dict.fromkeys(names))


def to_int8(model: ir.Model, steps: Mapping[str, Step], in_float: Collection[str] = ()) -> None:
    """Quantises every weighted node of a float graph (see `float_graph`) but for those named; changes the model."""
    nodes = [one for one in weighted_nodes(model) if one.name not in in_float]
    given, values = [steps[one.data.name or ""] for one in nodes], _values(model)
    least: dict[ir.Value, NDArray[np.float64]] = {}
    for one, step in zip(nodes, given, strict=True):
        least[one.weight] = np.maximum(least.get(one.weight, 0.0), _least_scale(one, step))
    for name in calibrated_values(nodes):
        _round_trip(model, values[name], steps[name])
    shared: dict[ir.Value, ir.Value] = {}
    for one, step in zip(nodes, given, strict=True):
        weight = one.weight
        if weight not in shared:
            shared[weight] = _weight(model, one, least[weight])
        scale = array(_scale_of(shared[weight]))
        one.node.replace_input_with(1, shared[weight])
        if _has_bias(one):
            one.node.replace_input_with(2, _bias(model, one, scale * step.scale))
    tidy(model)


def _values(model: ir.Model) -> dict[str, ir.Value]:
    made = [value for node in model.graph for value in node.outputs]
    return {value.name or "": value for value in (*model.graph.inputs, *made)}


def _round_trip(model: ir.Model, value: ir.Value, step: Step) -> None:
    """Everybody who reads the value reads what is left of it after rounding; a graph's output stays as it is."""
    users, name = list(value.uses()), value.name or ""
    scale = initializer(model, np.array(step.scale), f"{name}.scale")
    zero = initializer(model, np.array(step.zero), f"{name}.zero_point")
    coded = ir.Node("", "QuantizeLinear", [value, scale, zero], name=f"{name}.quantize")
    rounded = ir.Node("", "DequantizeLinear", [coded.outputs[0], scale, zero], name=f"{name}.dequantize")
    coded.outputs[0].name, rounded.outputs[0].name = f"{name}.quantized", f"{name}.rounded"
    maker = value.producer()
    if maker is None:
        model.graph.insert_before(model.graph[0], [coded, rounded])
    else:
        model.graph.insert_after(maker, [coded, rounded])
    for use in users:
        use.node.replace_input_with(use.idx, rounded.outputs[0])


def _has_bias(one: Weighted) -> bool:
    return one.bias is not None and one.bias.is_initializer()


def _least_scale(one: Weighted, step: Step) -> NDArray[np.float64]:
    """Of each channel's weights: a smaller one, as of a channel of zeros, would give its bias too many steps."""
    count = array(one.weight).shape[one.channels]
    bias = np.abs(array(one.bias).astype(np.float64)) if one.bias is not None and _has_bias(one) else np.zeros(count)
    size, tiny = float(step.scale), float(np.finfo(np.float32).tiny)
    return np.maximum(bias / BIAS_LIMIT / size, tiny / min(size, 1.0))


def _weight(model: ir.Model, one: Weighted, least: NDArray[np.float64]) -> ir.Value:
    values, axes = array(one.weight).astype(np.float64), [1] * len(array(one.weight).shape)
    others = tuple(axis for axis in range(len(axes)) if axis != one.channels)
    axes[one.channels] = -1
    scale = np.maximum(np.abs(values).max(others) / WEIGHT_LIMIT, least).astype(np.float32)
    codes = np.clip(np.rint(values / scale.reshape(axes)), -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)
    return _dequantized(model, one, one.name, codes, scale, one.channels)


def _bias(model: ir.Model, one: Weighted, scale: NDArray[np.float32]) -> ir.Value:
    """In the steps of the sums that it is added to."""
    assert one.bias is not None
    limits = np.iinfo(np.int32)
    codes = np.clip(np.rint(array(one.bias).astype(np.float64) / scale), limits.min, limits.max).astype(np.int32)
    name = one.bias.name if len(one.bias.uses()) == 1 else f"{one.node.name}.bias"
    return _dequantized(model, one, name or "", codes, scale, 0)


def _dequantized(
    model: ir.Model,
    one: Weighted,
    name: str,
    codes: NDArray[Any],
    scale: NDArray[np.float32],
    axis: int,
) -> ir.Value:
    inputs = [
        initializer(model, codes, name),
        initializer(model, scale, f"{name}.scale"),
        initializer(model, np.zeros(scale.shape, codes.dtype), f"{name}.zero_point"),
    ]
    node = ir.Node("", "DequantizeLinear", inputs, attributes=[ir.AttrInt64("axis", axis)], name=f"{name}.dequantize")
    node.outputs[0].name = f"{name}.rounded"
    model.graph.insert_before(one.node, node)
    return node.outputs[0]


def _scale_of(dequantized: ir.Value) -> ir.Value:
    node = dequantized.producer()
    assert node is not None
    assert node.inputs[1] is not None
    return node.inputs[1]

"""How labels go through each operator of ONNX's standard domain; see `places`.

A rule takes the inputs of a node, labels or constants, at least one of them labels, and gives labels of its outputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.graph.evaluate import evaluate, output_shapes
from export.graph.labels import NOWHERE, Grids, Labels, constant_along, nowhere
from export.graph.nodes import integer, integers

MOVES = (
    "Reshape Transpose Flatten Squeeze Unsqueeze Slice Gather GatherElements GatherND Split Expand Tile Identity "
    "DepthToSpace SpaceToDepth Compress"
)
"""Operators that move numbers and change none."""
Given = Sequence[Labels | NDArray[Any] | None]
Rule = Callable[[Grids, ir.Node, Given], list[Labels]]


def follow(grids: Grids, node: ir.Node, given: Given) -> list[Labels]:
    """Labels of the node's outputs. What no rule knows keeps its shape and loses its places. Raises ValueError."""
    rule = RULES.get(node.op_type, _loses) if node.domain == "" else _loses
    return rule(grids, node, given)


def reduced_axes(node: ir.Node, axes: NDArray[Any] | None, rank: int) -> tuple[int, ...]:
    """The axes that a reduction or a global pool sums over, from 0. `axes` is the reduction's second input."""
    if node.op_type.startswith("Global"):
        return tuple(range(2, rank))
    if node.op_type in ("ArgMax", "ArgMin"):
        return (integer(node, "axis", 0) % rank,)
    if axes is None or not axes.size:
        return () if integer(node, "noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(int(axis) % rank for axis in axes))


def _moves(grids: Grids, node: ir.Node, given: Given) -> list[Labels]:
    """The first input is moved as the others, which are constants, say."""
    data, *rest = given
    if not isinstance(data, Labels) or any(isinstance(one, Labels) for one in rest):
        return _loses(grids, node, given)
    moved = evaluate(node, [data.cells, *(np.asarray(one) if one is not None else None for one in rest)])
    return [Labels(data.frame, cells) for cells in moved]


def _pads(_: Grids, node: ir.Node, given: Given) -> list[Labels]:
    """What is added is nowhere, unless it repeats what is there."""
    data, pads, _filling, *axes = (*given, None)[: max(3, len(given))]
    assert isinstance(data, Labels)
    whole = ir.node("Pad", [ir.Value(name=name) for name in ("data", "pads", "filling", "axes")[: 3 + len(axes)]],
                    attributes=node.attributes)  # fmt: skip
    constants = [data.cells, np.asarray(pads), np.array(NOWHERE, np.int64), *(np.asarray(one) for one in axes)]
    return [Labels(data.frame, evaluate(whole, constants)[0])]


def _concatenates(grids: Grids, node: ir.Node, given: Given) -> list[Labels]:
    parts = [one for one in given if one is not None]
    return [grids.concatenated(parts, node.attributes["axis"].as_int() % len(parts[0].shape))]


def _keeps(grids: Grids, node: ir.Node, given: Given) -> list[Labels]:
    """Each number keeps its place under an operation on it alone, broadcast over the inputs."""
    parts = [one for one in given if one is not None]
    shape = np.broadcast_shapes(*(one.shape for one in parts))
    labels = [one for one in parts if isinstance(one, Labels)]
    return [grids.joined(labels, shape, carried=_carries(node, given))] * len(node.outputs)


def _carries(node: ir.Node, given: Given) -> bool:
    """Whether it is a sum, and whatever attention lies behind its newer parts lies behind the oldest as well: that one
    carries the evidence of all of it on, where it is.
    """
    placed = [(one.frame.order, value) for one, value in zip(given, node.inputs, strict=True)
              if isinstance(one, Labels) and one.frame.order and value is not None]  # fmt: skip
    if node.op_type not in ("Add", "Sub", "Sum") or len({order for order, _ in placed}) < 2:
        return False
    (_, oldest), *newer = sorted(placed, key=lambda part: part[0])
    carried = _softmaxes(oldest)
    return all(_softmaxes(value) <= carried for _, value in newer)


def _softmaxes(value: ir.Value) -> set[ir.Node]:
    """All that it hangs on."""
    seen, waiting = {value}, [value]
    for one in waiting:
        node = one.producer()
        more = [] if node is None else [given for given in node.inputs if given is not None and given not in seen]
        seen.update(more)
        waiting += more
    makers = (one.producer() for one in seen)
    return {node for node in makers if node is not None and node.op_type == "Softmax"}


def _keeps_first(grids: Grids, node: ir.Node, given: Given) -> list[Labels]:
    """As the first input: the others only scale it, and norms scale it by what is around."""
    if not isinstance(given[0], Labels):
        return _loses(grids, node, given)
    return [given[0]] * len(node.outputs)


def _layer_norm(grids: Grids, node: ir.Node, given: Given) -> list[Labels]:
    """Beside the result, mean and inverse deviation of each place."""
    data = given[0]
    assert isinstance(data, Labels)
    rank = len(data.shape)
    axes = tuple(range(integer(node, "axis", -1) % rank, rank))
    return [data, *(grids.merged(data, axes) for _ in node.outputs[1:])]


def _reduces(grids: Grids, node: ir.Node, given: Given) -> list[Labels]:
    data = given[0]
    assert isinstance(data, Labels)
    given_axes = given[1] if len(given) > 1 else None
    axes = reduced_axes(node, None if given_axes is None else np.asarray(given_axes), len(data.shape))
    merged = grids.merged(data, axes) if axes else data
    if node.op_type.startswith("Global") or integer(node, "keepdims", 1):
        return [merged]
    return [Labels(merged.frame, merged.cells.squeeze(axes))]


def _multiplies(grids: Grids, node: ir.Node, given: Given) -> list[Labels]:
    """A product is about what each row of the left is about; with attention weights that is the query.

    Where a row of the left is about many places or none (a constant; values times transposed attention), it is about
    what each column of the right is about; and where that fails too, about all that is summed.
    """
    left, right = (_operand(node, given[index], index) for index in (0, 1))
    shape = (*np.broadcast_shapes(left.shape[:-2], right.shape[:-2]), left.shape[-2], right.shape[-1])
    placed = [(labels, axis) for labels, axis in ((left, left.cells.ndim - 1), (right, right.cells.ndim - 2))
              if labels.frame.order]  # fmt: skip
    kept = [(labels, axis) for labels, axis in placed if constant_along(labels.cells, axis)]
    if kept:
        labels, axis = kept[0]
        result = Labels(labels.frame, labels.cells.take([0], axis))
    elif len(placed) == 1:
        labels, axis = placed[0]
        result = grids.merged(labels, (axis,))
    else:
        result = nowhere((1,) * len(shape))
    return [_as_vector(given, Labels(result.frame, np.broadcast_to(result.cells, shape)))]


def _operand(node: ir.Node, one: Labels | NDArray[Any] | None, index: int) -> Labels:
    """One side of a product, at least 2-D, transposed as Gemm says; a constant is nowhere."""
    assert one is not None
    labels = one if isinstance(one, Labels) else nowhere(one.shape)
    cells = labels.cells
    if cells.ndim == 1:
        cells = cells[:, None] if index else cells[None]
    if node.op_type == "Gemm" and integer(node, "transB" if index else "transA", 0):
        cells = cells.T
    return Labels(labels.frame, cells)


def _as_vector(given: Given, result: Labels) -> Labels:
    """MatMul drops the axis that it gave to a 1-D operand."""
    gone = tuple(axis for axis, one in ((-2, given[0]), (-1, given[1])) if one is not None and len(one.shape) == 1)
    return Labels(result.frame, result.cells.squeeze(gone)) if gone else result


def _begins_a_grid(grids: Grids, node: ir.Node, given: Given) -> list[Labels]:
    """A new frame, unless each place is seen by itself (a convolution over channels only); none where the old places do
    not stand row by row, for then the new ones do not either.
    """
    data = given[0]
    assert data is not None
    results = _shapes(node, given)
    kernel = given[1] if node.op_type == "Conv" else None
    pointwise = kernel is not None and set(kernel.shape[2:]) == {1} and data.shape[2:] == results[0][2:]
    if isinstance(data, Labels) and pointwise and constant_along(data.cells, 1):
        return [Labels(data.frame, np.broadcast_to(data.cells[:, :1], results[0]))]
    window = kernel.shape[2:] if kernel is not None else integers(node, "kernel_shape")
    if isinstance(data, Labels) and window and not _in_order(node, data, window, results[0]):
        return [nowhere(shape) for shape in results]
    return [grids.fresh(shape) for shape in results]


def _in_order(node: ir.Node, data: Labels, window: Sequence[int], shape: tuple[int, ...]) -> bool:
    """Whether what lies in the middle of the windows goes from row to row along axis 2, and from column to column along
    axis 3, and not back; where it is about no place, nothing is known against it.
    """
    if data.cells.ndim != 4 or len(shape) != 4:
        return True
    strides, spread, pads = (integers(node, name) for name in ("strides", "dilations", "pads"))
    middles = []
    for axis in range(2):
        begin = -(pads[axis] if pads else 0) + (spread[axis] if spread else 1) * ((window[axis] - 1) // 2)
        places = begin + (strides[axis] if strides else 1) * np.arange(shape[2 + axis])
        middles.append(places.clip(0, data.shape[2 + axis] - 1))
    cells = data.cells[0][:, middles[0]][:, :, middles[1]]
    known, cells = cells >= 0, cells % data.frame.cells
    return all(
        _rises(np.where(known, place, NOWHERE), across)
        for place, across in ((cells // data.frame.columns, 2), (cells % data.frame.columns, 1))
    )


def _rises(places: NDArray[np.int64], across: int) -> bool:
    """Whether (channels, rows, columns) hang on one of the last two axes alone, the one not gone `across`, and never
    fall along it; below 0 is unknown.
    """
    highest = places.max(across)
    lowest = np.where(places < 0, np.iinfo(np.int64).max, places).min(across)
    known = highest >= 0
    falls = any((np.diff(row[there]) < 0).any() for row, there in zip(highest, known, strict=True))
    return bool((highest == lowest)[known].all()) and not falls


def _loses(_: Grids, node: ir.Node, given: Given) -> list[Labels]:
    return [nowhere(shape) for shape in _shapes(node, given)]


def _shapes(node: ir.Node, given: Given) -> list[tuple[int, ...]]:
    constants = [one if isinstance(one, np.ndarray) else None for one in given]
    return output_shapes(node, [() if one is None else one.shape for one in given], constants)


RULES: dict[str, Rule] = {}
for _rule, _names in (
    (_moves, MOVES),
    (_pads, "Pad"),
    (_concatenates, "Concat"),
    (_keeps, "Add Sub Mul Div Pow Mod Min Max Mean Sum Where And Or Xor Not Equal Less LessOrEqual Greater "
             "GreaterOrEqual Abs Neg Sqrt Reciprocal Exp Log Erf Sin Cos Tan Tanh Atan Sigmoid HardSigmoid Relu "
             "LeakyRelu PRelu Elu Selu Celu Gelu HardSwish Mish Softplus Softsign ThresholdedRelu Cast Ceil Floor "
             "Round Sign IsNaN IsInf Softmax LogSoftmax Hardmax LpNormalization"),
    (_keeps_first, "BatchNormalization InstanceNormalization GroupNormalization MeanVarianceNormalization LRN Dropout "
                   "Clip CastLike QuantizeLinear DequantizeLinear"),
    (_layer_norm, "LayerNormalization"),
    (_reduces, "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceProd ReduceSumSquare "
               "ReduceLogSumExp ReduceLogSum ArgMax ArgMin GlobalAveragePool GlobalMaxPool"),
    (_multiplies, "MatMul Gemm"),
    (_begins_a_grid, "Conv ConvTranspose MaxPool AveragePool LpPool Resize GridSample"),
):  # fmt: skip
    RULES.update(dict.fromkeys(_names.split(), _rule))

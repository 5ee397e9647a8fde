"""A classifier's graph as it was exported -> what `expose` takes: plain operators, opset 20, an open batch."""

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir
from onnx_ir.passes import common

from export.finite import check_finite
from export.graph.adder import Adder
from export.graph.batch import open_batch
from export.graph.branches import take_branches
from export.graph.decompose import decompose
from export.graph.nodes import integer
from export.graph.opset import convert_opset, opset_of
from saccade.errors import DataError

_CODES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
_PROBABILITIES = ("Softmax", "LogSoftmax", "Sigmoid")
_ONE_AXIS = 13
"""The opset since which a Softmax sums over one axis; before, over all from that one on."""
_SAME = ("Identity", "Cast", "Reshape", "Squeeze", "Flatten", "Transpose", "Dropout")


def prepare(model: ir.Model, size: tuple[int, int] | None) -> tuple[ir.Model, tuple[int, int], list[str]]:
    """(the graph, height and width of its input, sentences about what was done to it).

    `size` is needed where the graph leaves it open. Raises DataError where its input is no batch of pictures, or where
    it cannot be brought into that form.
    """
    said: list[str] = []
    common.InlinePass()(model)
    common.RemoveInitializersFromInputsPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _check_weights(model)
    model = convert_opset(model)
    size = _input(model, size, said)
    take_branches(model, size)
    undone = decompose(model, size)
    if undone:
        said.append(f"operators taken apart: {', '.join(undone)}")
    if open_batch(model, size):
        said.append("the graph took one picture: its shapes were opened for any number")
    common.RemoveUnusedOpsetsPass()(model)
    return model, size, said


class Logits(NamedTuple):
    """The logits of a graph: those before the softmax or sigmoid that it may end in."""

    value: ir.Value
    by_itself: bool = False
    """Each is a label by itself: a sigmoid follows."""
    over: slice | None = None
    """The axes that a softmax behind them sums over, which may be negative; None: there is none."""


def logits_of(model: ir.Model, output: str | None, said: list[str]) -> Logits:
    """`output` names the one meant; without it, the one called logits, or else the first. Raises DataError."""
    named = {value.name: value for value in model.graph.outputs}
    if output is not None and output not in named:
        raise DataError(f"the graph has no output {output!r}; it has {', '.join(map(str, named))}")
    value = named[output] if output is not None else named.get("logits", model.graph.outputs[0])
    node = _maker(value)
    if node is None or node.op_type not in _PROBABILITIES or node.inputs[0] is None:
        return Logits(value)
    said.append(f"the output {value.name} is a {node.op_type}: the logits are what it is taken of")
    if node.op_type == "Sigmoid":
        return Logits(node.inputs[0], by_itself=True)
    onwards = opset_of(model) < _ONE_AXIS
    axis = integer(node, "axis", 1 if onwards else -1)
    return Logits(node.inputs[0], over=slice(axis, None if onwards or axis == -1 else axis + 1))


def _maker(value: ir.Value | None) -> ir.Node | None:
    """What made the numbers of a value, whatever their layout. torch.squeeze is an If whose branches have the same."""
    node = None if value is None else value.producer()
    if value is None or node is None:
        return None
    if node.op_type in _SAME:
        return _maker(node.inputs[0])
    if node.op_type == "If":
        branches = [attribute.as_graph() for attribute in node.attributes.values()]
        makers = {_maker(branch.outputs[value.index() or 0]) for branch in branches}
        return makers.pop() if len(makers) == 1 else node
    return node


def _check_weights(model: ir.Model) -> None:
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype in _CODES and value.const_value.size > 1:
            kind = value.const_value.dtype.name.lower()
            raise DataError(f"the weight {value.name} is {kind}; the graph must compute in float32: export it so")
    check_finite(
        "the graph",
        (
            (name, value.const_value.numpy())
            for name, value in model.graph.initializers.items()
            if value.const_value is not None and value.const_value.size > 1  # a single one may be a bound: none
        ),
    )


def _input(model: ir.Model, size: tuple[int, int] | None, said: list[str]) -> tuple[int, int]:
    """Height and width; the input becomes (batch, 3, height, width)."""
    inputs: Sequence[ir.Value] = model.graph.inputs
    if len(inputs) != 1:
        raise DataError(f"the graph takes {len(inputs)} inputs ({', '.join(str(value.name) for value in inputs)}); "
                        "a classifier of pictures takes one")  # fmt: skip
    (pixels,) = inputs
    if pixels.dtype != ir.DataType.FLOAT:
        kind = "unknown" if pixels.dtype is None else pixels.dtype.name.lower()
        raise DataError(f"the graph takes {pixels.name} as {kind}; it must take float32, already normalised")
    shape: list[object] = [None] * 4 if pixels.shape is None else list(pixels.shape)
    if len(shape) != 4:
        raise DataError(f"the graph takes {pixels.name} {shape}; it must take (batch, 3, height, width)")
    last = shape[3] == 3 and shape[1] != 3
    if last:
        shape = [shape[0], shape[3], shape[1], shape[2]]
    if isinstance(shape[1], int) and shape[1] != 3:
        raise DataError(f"the graph takes {shape[1]} channels; pictures have 3")
    fixed = [length if isinstance(length, int) else None for length in shape[2:]]
    if size is None:
        if None in fixed:
            raise DataError(f"the graph leaves height and width of {pixels.name} open: give --size")
        size = (fixed[0], fixed[1])  # type: ignore[assignment]
    assert size is not None
    if any(given not in (None, asked) for given, asked in zip(fixed, size, strict=True)):
        raise DataError(f"the graph takes pictures of {fixed[0]} x {fixed[1]}, not {size[0]} x {size[1]}")
    if isinstance(shape[0], int) and shape[0] != 1:
        raise DataError(
            f"the graph takes {shape[0]} pictures, no more and no fewer: export it with an open batch, or 1"
        )
    if last:
        _channels_first(model, pixels)
        said.append("the graph takes channels last: a Transpose stands before it")
    return size


def _channels_first(model: ir.Model, pixels: ir.Value) -> None:
    add = Adder(model)
    first = next(iter(model.graph))
    add.before = first
    taken = ir.Value(name="pictures", type=ir.TensorType(ir.DataType.FLOAT))
    moved = add("Transpose", taken, perm=[0, 2, 3, 1])
    pixels.replace_all_uses_with(moved)
    model.graph.inputs[:] = [taken]

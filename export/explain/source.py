"""What a gradient is taken by: an output of the bundle, as the logits hang on it in the graph."""

from typing import NamedTuple

import onnx_ir as ir

from export.graph.adder import Adder
from export.graph.nodes import used
from saccade.errors import BundleError

_LAYOUT = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "ReduceMean")
"""The mean is that over the heads of learned pooling, as its evidence is one."""


class Source(NamedTuple):
    """A value that the logits hang on, and how it becomes the output."""

    value: ir.Value
    """What the gradient is taken by: all rows, in the graph's own layout, or those rows alone that are used."""
    layout: tuple[ir.Node, ...] = ()
    """What makes the output's layout of it."""
    rows: slice | None = None
    """Of the queries; None: all."""


def source_of(model: ir.Model, output: ir.Value, logits: ir.Value) -> Source:
    """Raises BundleError where the logits do not hang on it."""
    way = behind(model, logits)
    value: ir.Value = output
    layout: tuple[ir.Node, ...] = ()
    while value not in way:
        node = value.producer()
        if node is None or node.op_type not in _LAYOUT or node.inputs[0] is None:
            raise BundleError(f"the logits do not hang on {output.name}: there is no gradient by it")
        layout, value = (node, *layout), node.inputs[0]
    rows = None if layout else _rows_used(value, way)
    return Source(value, layout) if rows is None else Source(rows[0], (), rows[1])


def behind(model: ir.Model, value: ir.Value) -> set[ir.Value]:
    """The value, and all that it hangs on."""
    needed = {value}
    for node in reversed(list(model.graph)):
        if any(one in needed for one in node.outputs):
            needed |= set(used(node))
    return needed


def last_features(model: ir.Model, logits: ir.Value) -> ir.Value:
    """The last feature map (batch, channels, rows, columns) on the way to the logits: what is pooled, or where nothing
    is, what the last convolution gives. All of the way leads through it, not a side branch alone, as one that weighs
    channels. Raises BundleError where there is none.
    """
    narrows, pooled, convolved = _bottlenecks(model, logits), None, None
    for node in model.graph:
        if node.outputs[0] not in narrows:
            continue
        axes = node.inputs[1] if node.op_type == "ReduceMean" and len(node.inputs) > 1 else None
        held = None if axes is None else axes.const_value
        over = None if held is None else sorted(int(axis) % 4 for axis in held.numpy().ravel())
        if node.op_type in ("GlobalAveragePool", "GlobalMaxPool") or over == [2, 3]:
            pooled = node.inputs[0]
        convolved = node.outputs[0] if _of_pictures(node) else convolved
    found = pooled or convolved
    if found is None:
        raise BundleError("the graph has neither attention nor a convolution that a map could be made of")
    return found


def _of_pictures(node: ir.Node) -> bool:
    """Whether it is a convolution over rows and columns."""
    kernel = node.inputs[1] if node.op_type == "Conv" else None
    return kernel is not None and (kernel.shape is None or len(kernel.shape) == 4)


def _bottlenecks(model: ir.Model, logits: ir.Value) -> set[ir.Value]:
    """Values that each way from the pictures to the logits leads through."""
    way, pictures = behind(model, logits), model.graph.inputs[0]
    hanging, open_ways, found = {pictures}, {pictures}, set()
    users = {value: {node for node, _ in value.uses()} for value in way}
    left = {value: sum(node.outputs[0] in way for node in users[value]) for value in way}
    for node in model.graph:
        taken = {value for value in node.inputs if value in hanging}
        if node.outputs[0] not in way or not taken:
            continue
        for value in taken:
            left[value] -= 1
            if not left[value]:
                open_ways.discard(value)
        if node.op_type not in ("Shape", "Size"):  # of which no number hangs on the pictures
            hanging |= {value for value in node.outputs if value in way}
            open_ways |= {value for value in node.outputs if value in way}
        if len(open_ways) == 1:
            found |= open_ways
    return found


def laid_out(add: Adder, value: ir.Value, layout: tuple[ir.Node, ...]) -> ir.Value:
    """The nodes of a layout again, for a value with one more axis in front."""
    for node in layout:
        if node.op_type == "Transpose":
            order = node.attributes["perm"].as_ints()
            value = add("Transpose", value, perm=[0, *(axis + 1 for axis in order)])
        elif node.op_type == "Reshape":  # 0 stands for the axis at its own place, the one in front for itself
            value = add("Reshape", value, add("Concat", [0], node.inputs[1], axis=0))
        elif node.op_type in ("Squeeze", "Unsqueeze", "ReduceMean"):
            axes = node.inputs[1]
            assert axes is not None
            assert axes.const_value is not None
            shifted = [int(axis) + (axis >= 0) for axis in axes.const_value.numpy().ravel()]
            value = add(node.op_type, value, shifted, **node.attributes)
    return value


def _rows_used(value: ir.Value, way: set[ir.Value]) -> tuple[ir.Value, slice] | None:
    """Where the logits hang on some rows of (batch, heads, N, N) only: these, and which they are."""
    users = [user for user, _ in value.uses() if way.intersection(user.outputs)]
    if len(users) != 1 or users[0].op_type != "Slice" or len(users[0].inputs) != 4:
        return None
    numbers = [one.const_value.numpy().ravel().tolist() for one in users[0].inputs[1:]
               if one is not None and one.const_value is not None]  # fmt: skip
    if [len(one) for one in numbers] != [1, 1, 1] or numbers[2] != [2]:
        return None
    return users[0].outputs[0], slice(numbers[0][0], numbers[1][0])

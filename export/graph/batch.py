"""A graph that was exported for one picture takes any number of them."""

import numpy as np
import onnx_ir as ir

from export.graph.adder import Adder
from export.graph.nodes import describe
from export.graph.places import BATCH, Places
from saccade.errors import DataError


def open_batch(model: ir.Model, size: tuple[int, int]) -> None:
    """Makes the batch of the graph's one input open. Raises DataError where its shapes hang on a batch of their own.

    Of each Reshape the axis that holds the pictures becomes -1: the one for which the labels of two pictures, followed
    side by side with those of one, begin with them.
    """
    (pixels,) = model.graph.inputs
    batch = pixels.shape[0] if pixels.shape is not None else None
    if isinstance(batch, int):
        if batch != 1:
            raise DataError(
                f"the graph takes {batch} pictures, no more and no fewer: export it with an open batch, or 1"
            )
        _open(model, size)
    pixels.shape = ir.Shape(["batch", 3, *size])
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    for value in model.graph.outputs:
        value.shape = None


def _open(model: ir.Model, size: tuple[int, int]) -> None:
    one = Places(model, size, 1).follow_all(model)
    two = Places(model, size, BATCH)
    add = Adder(model)
    for node in list(model.graph):
        add.before, add.made = node, []
        if node.op_type == "Reshape" and node.inputs[0] in two.labels and node.outputs[0] in one.labels:
            _reshape(node, one, two, add)
        elif node.op_type == "Concat":
            _concatenate(node, two, add)
        for made in add.made:
            two.follow(made)
        two.follow(node)
        lost = next((two.lost[value] for value in node.outputs if value in two.lost and value not in one.lost), None)
        if lost is not None:
            raise DataError(f"the graph takes one picture, and it could not be opened for more: {lost}")


def _reshape(node: ir.Node, one: Places, two: Places, add: Adder) -> None:
    data = node.inputs[0]
    assert data is not None
    target = one.labels[node.outputs[0]]
    shape = target.shape
    cells = two.labels[data].cells
    for axis in range(len(shape)):
        longer = [length * BATCH if at == axis else length for at, length in enumerate(shape)]
        moved = cells.reshape(longer)
        if np.array_equal(moved.take(range(shape[axis]), axis), target.cells):
            node.replace_input_with(1, add.constant(np.array([-1 if at == axis else n for at, n in enumerate(shape)])))
            node.attributes.pop("allowzero", None)
            return
    raise DataError(f"the graph takes one picture, and {describe(node)} could not be opened for more")


def _concatenate(node: ir.Node, two: Places, add: Adder) -> None:
    """A constant beside the pictures (a class token) is repeated for each of them."""
    labelled = next((value for value in node.inputs if value in two.labels), None)
    if labelled is None:
        return
    shape = two.labels[labelled].shape
    axis = node.attributes["axis"].as_int() % len(shape)
    for index, value in enumerate(node.inputs):
        constant = two.constant(value)
        if constant is None or value is None:
            continue
        if any(at != axis and length != shape[at] for at, length in enumerate(constant.shape)):
            before, after = add("Shape", labelled, start=0, end=axis), add("Shape", labelled, start=axis + 1)
            whole = add("Concat", before, [constant.shape[axis]], after, axis=0)
            node.replace_input_with(index, add("Expand", value, whole))

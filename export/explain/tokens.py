"""Along which axes of a value its tokens lie, as `Places` have it, and what takes some of them by their numbers."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from export.graph.adder import Adder
from export.graph.labels import constant_along
from export.graph.nodes import integer
from export.graph.places import Places


def token_axes(value: ir.Value, places: Places) -> tuple[int, ...]:
    """Those along which the places of the picture change; none where nothing is known of them."""
    if value not in places.labels:
        return ()
    cells = places.labels[value].cells
    return tuple(axis for axis in range(1, cells.ndim) if not constant_along(cells, axis))


def is_of_one_picture(value: ir.Value, axis: int, places: Places) -> bool:
    """Whether all numbers along the axis are of one picture, but for those of no place."""
    labels = places.labels[value]
    nowhere, pictures = labels.cells < 0, labels.cells // labels.frame.cells
    least = np.where(nowhere, places.batch, pictures).min(axis)
    return bool((least >= np.where(nowhere, -1, pictures).max(axis)).all())


def chosen_axis(node: ir.Node, places: Places) -> int | None:
    """The axis of tokens that a Gather or a Slice takes some of; None where it takes none."""
    data = node.inputs[0]
    if node.op_type not in ("Gather", "Slice") or data not in places.labels:
        return None
    axes = token_axes(data, places)
    if node.op_type == "Gather":
        taken = [integer(node, "axis", 0)]
    else:
        given = places.constant(node.inputs[3]) if len(node.inputs) > 3 else None
        taken = [] if given is None else [int(axis) for axis in given.ravel()]
    rank = places.rank(data)
    return next((axis % rank for axis in taken if axis % rank in axes), None) if len(taken) == 1 else None


def first_of(add: Adder, node: ir.Node, axis: int, inputs: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    """The inputs of such a node behind its first, where there is one token: whatever is taken of it is that token."""
    if node.op_type == "Gather":
        assert inputs[1] is not None
        return [add("Mul", inputs[1], add.constant(np.array(0)))]
    return [add.constant(np.array([number])) for number in (0, 1, axis)]


def shape_of_one(add: Adder, value: ir.Value, places: Places) -> ir.Value:
    """What a Reshape is told that makes this of one token, of any number of pictures: the graph's own says how many
    tokens there are.
    """
    axes, shape = token_axes(value, places), places.shape_of(value)
    return add.constant(np.array([-1, *(1 if axis in axes else shape[axis] for axis in range(1, len(shape)))]))


def is_picture(value: ir.Value, places: Places) -> bool:
    """Whether it is (batch, channels, rows, columns), each number of the place where it stands."""
    labels, shape = places.labels.get(value), places.shape(value) or ()
    if labels is None or len(shape) != 4 or (labels.frame.rows, labels.frame.columns) != tuple(shape[2:]):
        return False
    cells = np.arange(shape[0] * labels.frame.cells).reshape(shape[0], 1, *shape[2:])
    return shape[0] == places.batch and bool((labels.cells == cells).all())

"""A graph that was exported for one picture takes any number of them.

Its shapes hold the one picture as constants: of a Reshape one axis has to grow with the batch, and a constant beside
the pictures (a class token) has to be repeated. Which axis grows is not written anywhere; it is searched for, with
labels: what becomes of several pictures must hold what becomes of one, and nothing behind may fail.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.graph.adder import Adder
from export.graph.labels import Cells, Labels
from export.graph.nodes import describe
from export.graph.places import BATCH, Places
from saccade.errors import DataError

_STEPS = 50
"""A search gives up after so many times the number of nodes."""


def open_batch(model: ir.Model, size: tuple[int, int]) -> bool:
    """Makes the batch of the graph's one input open; whether its shapes had to be changed. Raises DataError."""
    (pixels,) = model.graph.inputs
    one, several = Places(model, size, 1).follow_all(model), Places(model, size).follow_all(model)
    closed = bool(several.lost.keys() - one.lost.keys())
    if closed:
        _Search(model, size, one).open()
    pixels.shape = ir.Shape(["batch", 3, *size])
    for value in (*model.graph.outputs, *(value for node in model.graph for value in node.outputs)):
        value.shape = None
    return closed


@dataclass
class _Choice:
    """A Reshape, the axis of its result that grows for now, and what else could."""

    index: int
    axis: int
    others: Iterator[tuple[int, Cells]]


class _Search:
    def __init__(self, model: ir.Model, size: tuple[int, int], one: Places) -> None:
        self._model, self._one = model, one
        self._nodes = list(model.graph)
        self._several = Places(model, size)
        self._choices: list[_Choice] = []
        self._repeated: dict[tuple[ir.Node, int], ir.Value] = {}
        """Constants of a Concat, and the value that has the batch which they lack."""
        self._tiled: set[tuple[ir.Node, int]] = set()
        """Constants that have an entry for each window, and need one for each window of each picture."""

    def open(self) -> None:
        """Searches, then changes the graph. Raises DataError."""
        index, steps = 0, 0
        while index < len(self._nodes):
            node, steps = self._nodes[index], steps + 1
            try:
                followed = self._follow(index)
            except ValueError:  # shapes that do not fit: a choice before was wrong, or the graph never worked
                followed = False
            if followed:
                index += 1
                continue
            lost = next((self._several.lost[value] for value in node.outputs if value in self._several.lost), None)
            index = self._back()
            if index < 0 or steps > _STEPS * len(self._nodes):
                raise DataError(
                    f"the graph takes one picture, and it could not be opened for more: {lost or describe(node)}"
                )
        self._change()

    def _follow(self, index: int) -> bool:
        node, several = self._nodes[index], self._several
        for value in node.outputs:
            several.lost.pop(value, None)
        data = node.inputs[0] if node.inputs else None
        if node.op_type == "Reshape" and data in several.labels and node.outputs[0] in self._one.labels:
            if self._choices and self._choices[-1].index == index:
                return True  # the axis was just taken in its turn
            self._choices.append(_Choice(index, -1, self._growing(node)))
            return self._next(self._choices[-1])
        if node.op_type == "Concat":
            self._repeat(node)
            given = [self._repeated.get((node, at), value) for at, value in enumerate(node.inputs)]
            if given != list(node.inputs):
                several.labels[node.outputs[0]] = self._side_by_side(node)
                return True
        if node.op_type in ("Add", "Sub", "Mul", "Where") and self._tile(node):
            return True
        several.follow(node)
        return all(value not in several.lost or value in self._one.lost for value in node.outputs)

    def _back(self) -> int:
        """The node to go on from with another choice; -1 where there is none left."""
        while self._choices:
            if self._next(self._choices[-1]):
                return self._choices[-1].index
            self._choices.pop()
        return -1

    def _next(self, choice: _Choice) -> bool:
        choice.axis, cells = next(choice.others, (-1, None))
        if cells is None:
            return False
        node = self._nodes[choice.index]
        data = node.inputs[0]
        assert data is not None
        self._several.labels[node.outputs[0]] = Labels(self._several.labels[data].frame, cells)
        return True

    def _growing(self, node: ir.Node) -> Iterator[tuple[int, Cells]]:
        """Axes that may grow, with the labels then: first those where the pictures follow each other."""
        data = node.inputs[0]
        assert data is not None
        cells, target = self._several.labels[data].cells, self._one.labels[node.outputs[0]].cells
        if cells.size != target.size * BATCH:
            return
        for inner in (False, True):
            for axis, length in enumerate(target.shape):
                split = [BATCH, length] if not inner else [length, BATCH]
                moved = cells.reshape(*target.shape[:axis], *split, *target.shape[axis + 1 :])
                if np.array_equal(moved.take(0, axis + inner), target):
                    yield axis, moved.reshape(*target.shape[:axis], length * BATCH, *target.shape[axis + 1 :])

    def _tile(self, node: ir.Node) -> bool:
        """A mask of windows on an axis of windows of one picture, which is one of pictures times windows now."""
        several = self._several
        values = [value for value in node.inputs if value is not None and several.shape(value) is not None]
        shapes = [several.shape_of(value) for value in values]
        rank, longest = max(map(len, shapes), default=0), max((shape[0] for shape in shapes if shape), default=0)
        short = [
            at
            for at, (value, shape) in enumerate(zip(values, shapes, strict=True))
            if value not in several.labels and len(shape) == rank > 0 and 1 < shape[0] == longest // BATCH
        ]
        if not short or len(values) < len(node.inputs):
            return False
        placed = [several.labels[value] for value in values if value in several.labels]
        whole = [(longest, *shape[1:]) if at in short else shape for at, shape in enumerate(shapes)]
        several.labels[node.outputs[0]] = several.grids.joined(placed, np.broadcast_shapes(*whole))
        self._tiled |= {(node, at) for at in short}
        return True

    def _repeat(self, node: ir.Node) -> None:
        labelled = next((value for value in node.inputs if value in self._several.labels), None)
        if labelled is None:
            return
        shape = self._several.labels[labelled].shape
        axis = node.attributes["axis"].as_int() % len(shape)
        for index, value in enumerate(node.inputs):
            constant = self._several.constant(value)
            if constant is not None and any(
                at != axis and length != shape[at] for at, length in enumerate(constant.shape)
            ):
                self._repeated[node, index] = labelled

    def _side_by_side(self, node: ir.Node) -> Labels:
        """Labels of a Concat with its constants repeated."""
        parts: list[Labels | NDArray[Any]] = []
        for at, value in enumerate(node.inputs):
            constant = self._several.constant(value)
            if constant is None:
                assert value is not None
                parts.append(self._several.labels[value])
                continue
            if (node, at) in self._repeated:
                shape = list(self._several.labels[self._repeated[node, at]].shape)
                axis = node.attributes["axis"].as_int() % len(shape)
                shape[axis] = constant.shape[axis]
                constant = np.broadcast_to(constant, shape)
            parts.append(constant)
        return self._several.grids.concatenated(parts, node.attributes["axis"].as_int() % len(parts[0].shape))

    def _change(self) -> None:
        add = Adder(self._model)
        for choice in self._choices:
            node = self._nodes[choice.index]
            shape = self._one.labels[node.outputs[0]].shape
            target = [-1 if at == choice.axis else length for at, length in enumerate(shape)]
            node.replace_input_with(1, add.constant(np.array(target)))
            node.attributes.pop("allowzero", None)
        for node, index in self._tiled:
            constant = node.inputs[index]
            shape = self._several.shape_of(constant)
            add.before = node
            whole = add("Concat", add("Shape", self._model.graph.inputs[0], start=0, end=1), list(shape), axis=0)
            tiled = add("Expand", add("Unsqueeze", constant, [0]), whole)
            node.replace_input_with(index, add("Reshape", tiled, [-1, *shape[1:]]))
        for (node, index), beside in self._repeated.items():
            constant = node.inputs[index]
            length = self._several.shape_of(constant)[node.attributes["axis"].as_int()]
            rank = len(self._several.shape_of(constant))
            axis = node.attributes["axis"].as_int() % rank
            add.before = node
            before, after = add("Shape", beside, start=0, end=axis), add("Shape", beside, start=axis + 1)
            whole = add("Concat", before, [length], after, axis=0)
            node.replace_input_with(index, add("Expand", constant, whole))

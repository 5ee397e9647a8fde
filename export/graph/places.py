"""Which place of the picture each number of a graph is about, found by following labels instead of numbers.

Each pixel is labelled with its cell of the grid of pixels, and the labels go through the graph: what moves numbers
(Reshape, Transpose, Slice, …) moves labels, what works on each place by itself (norms, activations, a product with a
weight) keeps them, a convolution or a pool begins a coarser grid, and so does a sum over the pixels of a patch.
Attention keeps a token's label: its result is about the query. Whatever the exporter wrote, the labels of an attention
matrix then say which row is which cell of which grid, and which rows are none.

A batch of several pictures is followed, so that an axis of batch times heads or windows can be told apart.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.graph.evaluate import evaluate
from export.graph.labels import Grids, Labels
from export.graph.nodes import describe, integer
from export.graph.rules import follow

BATCH = 3
"""Exporters are shown one picture or two, and what they took for a constant must not pass for a batch."""


class Places:
    """Labels of every value of a graph of standard operators; `lost` says where a value could not be followed."""

    def __init__(self, model: ir.Model, size: tuple[int, int], batch: int = BATCH) -> None:
        """Begins at the graph's one input, (batch, 3, height, width)."""
        self.batch = batch
        self.labels: dict[ir.Value, Labels] = {}
        self.lost: dict[ir.Value, str] = {}
        self._constants: dict[ir.Value, NDArray[Any]] = {}
        self.grids = Grids(batch)
        (pixels,) = model.graph.inputs
        self.labels[pixels] = self.grids.fresh((batch, 3, *size))

    def shape_of(self, value: ir.Value | None) -> tuple[int, ...]:
        """Raises ValueError where it is lost."""
        shape = None if value is None else self.shape(value)
        if shape is None:
            raise ValueError(f"the shape of {value and value.name} could not be followed")
        return shape

    def rank(self, value: ir.Value | None) -> int:
        """Raises ValueError where it is lost."""
        return len(self.shape_of(value))

    def follow_all(self, model: ir.Model) -> "Places":
        for node in model.graph:
            self.follow(node)
        return self

    def follow(self, node: ir.Node) -> None:
        """Takes the labels through a node whose inputs were followed."""
        inputs = [value for value in node.inputs if value is not None]
        reason = next((self.lost[value] for value in inputs if value in self.lost), None)
        if reason is None:
            try:
                results = self._results(node)
            except Exception as error:  # an operator's own complaint; onnx's exceptions share no base class
                line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                reason = f"{describe(node)} could not be followed: {line[:200]}"
        if reason is not None:
            self.lost.update(dict.fromkeys(node.outputs, reason))
            return
        for value, result in zip(node.outputs, results, strict=False):
            if isinstance(result, Labels):
                self.labels[value] = result
            elif isinstance(result, np.ndarray):
                self._constants[value] = result

    def tell(self, model: ir.Model, value: ir.Value, axis: int, grid: tuple[int, int]) -> None:
        """Takes it from the caller which places the tokens of a value are, and follows all that hangs on it again."""
        self.labels[value] = self.grids.told(self.shape_of(value), axis, grid)
        hanging = {value}
        for node in model.graph:
            if value not in node.outputs and any(one in hanging for one in node.inputs):
                self.follow(node)
                hanging |= set(node.outputs)

    def constant(self, value: ir.Value | None) -> NDArray[Any] | None:
        """The numbers of a value that depends on no picture."""
        if value is None:
            return None
        return self._constants.get(value) if value.const_value is None else value.const_value.numpy()

    def shape(self, value: ir.Value) -> tuple[int, ...] | None:
        """For `batch` pictures; None where it is lost."""
        if value in self.labels:
            return self.labels[value].shape
        constant = self.constant(value)
        return None if constant is None else constant.shape

    def _results(self, node: ir.Node) -> list[Labels] | list[NDArray[Any]]:
        constants = [self.constant(value) for value in node.inputs]
        labels = [None if value is None else self.labels.get(value) for value in node.inputs]
        if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
               for attribute in node.attributes.values()):  # fmt: skip
            raise ValueError("it is a branch or a loop that depends on the picture")
        if all(label is None for label in labels):
            return evaluate(node, constants)
        if node.op_type in ("Shape", "Size") and labels[0] is not None:
            shape = np.array(labels[0].shape, np.int64)
            part = shape[integer(node, "start", 0) : integer(node, "end", len(shape))]
            return [part if node.op_type == "Shape" else np.asarray(shape.prod())]
        given = [constant if label is None else label for label, constant in zip(labels, constants, strict=True)]
        return follow(self.grids, node, given)

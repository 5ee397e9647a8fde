"""Adds nodes, constants and outputs to a graph, and keeps its names apart."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


class Adder:
    """Appends to a graph: a call makes a node of one float32 output; its inputs may be arrays or lists."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._theirs = list(model.graph.outputs)
        self.before: ir.Node | None = None
        """The node before which the next ones are put; None: at the end."""
        self.made: list[ir.Node] = []
        self._names = {value.name: value for value in _values(model.graph) if value.name}
        self._nodes = {node.name for node in model.graph}
        self._count = 0

    def __call__(
        self, operator: str, *inputs: ir.Value | NDArray[Any] | list[int] | None, **attributes: Any
    ) -> ir.Value:
        values = [one if one is None or isinstance(one, ir.Value) else self.constant(np.array(one)) for one in inputs]
        node = ir.node(operator, values, attributes, name=self._new_name(operator))
        self.made.append(node)
        self._put(node)
        result = node.outputs[0]
        self._take(result, self._new_name(operator.lower()))
        return result

    def output(self, node: ir.Node, place: int) -> ir.Value:
        """An output of a node of the graph that it leaves out so far, or has already."""
        if place >= len(node.outputs):
            node.resize_outputs(place + 1)
        for value in node.outputs:
            if not value.name:
                self._take(value, self._new_name(node.op_type.lower()))
        return node.outputs[place]

    def keep(self, value: ir.Value) -> None:
        """Takes in an initializer of another graph; where its name is taken it gets a new one."""
        self._take(value, self._unused(value.name, "constant"))
        self._graph.register_initializer(value)

    def move(self, node: ir.Node) -> None:
        """Takes in a node of another graph; where its names are taken it gets new ones."""
        for value in node.outputs:
            self._take(value, self._unused(value.name, node.op_type.lower()))
        if node.name is None or node.name in self._nodes:
            node.name = self._new_name(node.op_type)
        self._nodes.add(node.name)
        self._put(node)

    def constant(self, array: NDArray[Any], name: str | None = None) -> ir.Value:
        """A new initializer, float32 or int64."""
        kept = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        value = ir.Value(name=None, shape=ir.Shape(kept.shape), const_value=ir.tensor(kept))
        self._take(value, self._unused(name, "constant"))
        assert value.const_value is not None
        value.const_value.name = value.name
        value.type = ir.TensorType(value.const_value.dtype)
        self._graph.initializers[value.name or ""] = value
        return value

    def number(self, value: float) -> ir.Value:
        """A new scalar, float32."""
        return self.constant(np.array(value, np.float32))

    def initializer(self, array: NDArray[Any], source: ir.Value) -> ir.Value:
        """The initializer that holds `array`, of which `source` was made by transposing, or else a new one."""
        root = source
        while (node := root.producer()) is not None and node.inputs and node.inputs[0] is not None:
            root = node.inputs[0]
        held = root.const_value
        if root.is_initializer() and held is not None and np.array_equal(held.numpy(), array):
            return root
        return self.constant(array, None if root.name is None else f"{root.name}_by_class")

    def named(self, value: ir.Value, name: str, *, keep: bool = True) -> ir.Value:
        """The value under this name; what had it gets another. To `keep` an output of theirs, its copy is named."""
        if value.name == name:
            return value
        if keep and value in self._theirs:
            value = self("Identity", value)
        self.free(name)
        _rename(self._graph, value, name)
        self._names[name] = value
        return value

    def free(self, name: str) -> None:
        """A value that has the name gets another."""
        before = self._names.pop(name, None)
        if before is not None:
            _rename(self._graph, before, self._new_name(name))
            self._names[before.name or ""] = before

    def outputs(self, ours: Mapping[ir.Value, tuple[int, ...]], instead_of: ir.Value) -> None:
        """Makes these float32 values, given with their shapes but for the batch, the outputs; theirs stand behind."""
        for value, shape in ours.items():
            value.shape = ir.Shape(["batch", *shape])
            value.type = ir.TensorType(ir.DataType.FLOAT)
        self._graph.outputs[:] = [*ours, *(value for value in self._theirs if value is not instead_of)]

    def _put(self, node: ir.Node) -> None:
        if self.before is None:
            self._graph.append(node)
        else:
            self._graph.insert_before(self.before, node)

    def _take(self, value: ir.Value, name: str) -> None:
        value.name = name
        self._names[name] = value

    def _unused(self, name: str | None, stem: str) -> str:
        return self._new_name(stem) if not name or name in self._names else name

    def _new_name(self, stem: str) -> str:
        while True:
            self._count += 1
            name = f"{stem}_{self._count}"
            if name not in self._names and name not in self._nodes:
                return name


def _rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    if value.is_initializer():
        graph.initializers.pop(value.name or "")
        value.name = name
        graph.initializers[name] = value
    else:
        value.name = name


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]

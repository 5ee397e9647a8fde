"""An If whose condition hangs on no picture is no choice any more: the branch that is always taken stands in its place.

Exporters write them where a shape decides (a squeeze that may not apply) or a flag (training or not).
"""

import onnx_ir as ir

from export.graph.adder import Adder
from export.graph.nodes import replace
from export.graph.places import Places


def take_branches(model: ir.Model, size: tuple[int, int]) -> None:
    """Puts branches in place of their If, in place; one that hangs on the pictures, or on how many, stays."""
    if any(node.op_type == "If" and node.domain == "" for node in model.graph):
        _Taker(model, size).take(list(model.graph))


class _Taker:
    def __init__(self, model: ir.Model, size: tuple[int, int]) -> None:
        self._model, self._add = model, Adder(model)
        self._one, self._several = Places(model, size, 1), Places(model, size)

    def take(self, nodes: list[ir.Node]) -> None:
        """Follows nodes of the graph, and those of the branches that it puts there."""
        for node in nodes:
            branch = self._taken(node) if node.op_type == "If" and node.domain == "" else None
            if branch is None:
                self._one.follow(node)
                self._several.follow(node)
            else:
                self.take(self._inline(node, branch))

    def _taken(self, node: ir.Node) -> ir.Graph | None:
        (condition,) = node.inputs
        one, several = self._one.constant(condition), self._several.constant(condition)
        if several is None and condition in self._several.lost:
            several = one  # of a graph that takes one picture only
        if one is None or several is None or one.item() != several.item():
            return None
        return node.attributes["then_branch" if one.item() else "else_branch"].as_graph()

    def _inline(self, node: ir.Node, branch: ir.Graph) -> list[ir.Node]:
        """The nodes that stand where the If stood."""
        self._add.before, self._add.made = node, []
        results, inside = list(branch.outputs), list(branch)
        branch.outputs.clear()
        for name in list(branch.initializers):
            self._add.keep(branch.initializers.pop(name))
        branch.remove(inside)
        for one in inside:
            self._add.move(one)
        replace(self._model, node, [self._add("Identity", value) for value in results])
        for attribute in node.attributes.values():
            _let_go(attribute.as_graph())
        return [*inside, *self._add.made]


def _let_go(branch: ir.Graph) -> None:
    """What nobody takes uses no value of the graph any more."""
    for node in ir.traversal.RecursiveGraphIterator(branch):
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)

"""Reverse-mode differentiation of a graph: the nodes of its vector-Jacobian products are appended to it.

No source of the model is needed, the batch stays open, and what comes out is an ordinary graph of opset 20. The
gradient flows only where it must: through nodes that lie between a wanted value and a seed, and of these only into
inputs that hang on a wanted value; never into weights, and not into what comes before the first attention.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from export.explain.gradients import BY_CONSTANTS, NO_GRADIENT, PLACES_TOO, RULES
from export.explain.gradients.partial import PARTIAL
from export.explain.known import Known, said
from export.explain.tape import Contribution, Tape
from export.graph.nodes import describe, graphs, used
from saccade.errors import BundleError


def differentiate(
    model: ir.Model,
    seeds: Mapping[ir.Value, ir.Value],
    wanted: Sequence[ir.Value],
    *,
    fixed: Collection[ir.Value] = (),
) -> dict[ir.Value, ir.Value]:
    """Gradients of the `wanted` values, in place: d sum(seed * value) / d wanted, summed over the seeds.

    `seeds` maps a value of shape (B, …), as the logits are, to its gradient (k, B, …); that of a wanted value of shape
    (B, …) has the shape (k, B, …). Of a value between others it is the whole gradient: what goes through it to earlier
    wanted values is counted there too; but what uses one of `fixed` takes it for a constant. `model` has plain
    operators of opset 20 (see `export.graph.prepare`).

    Raises BundleError, before anything is changed, where there is nothing to differentiate by or an operator on the
    way has no rule; and while it is changed, where a rule does not know an operator in this form.
    """
    if not wanted:
        raise BundleError("the graph has no attention, so there is nothing that a gradient could be taken by")
    path = _path(model, seeds, wanted, fixed)
    path.check()
    settings = [value for node in path.nodes if node.op_type in BY_CONSTANTS for value in node.inputs[1:]]
    constants = {value for value in settings if value is not None and value not in path.values}
    values = {
        value for node in path.nodes for value in (*node.inputs, *node.outputs) if value is not None and value.name
    }
    tape = Tape(model, Known(model, values | set(wanted), constants), seeds)
    for number, node in reversed([*enumerate(path.nodes, 1)]):
        try:
            _through(tape, node, path.into(node))
        except BundleError as error:
            raise BundleError(f"{error}; it is {path.place(number)}") from error
    return {value: _whole(tape, value) for value in wanted}


class _Path(NamedTuple):
    """What lies between the wanted values and the seeds."""

    nodes: list[ir.Node]
    values: set[ir.Value]
    wanted: Sequence[ir.Value]
    seeds: Collection[ir.Value]
    fixed: Collection[ir.Value]

    def into(self, node: ir.Node) -> set[ir.Value]:
        """The inputs that a gradient is wanted of."""
        return {value for value in carried(node) if value in self.values and value not in self.fixed}

    def place(self, number: int) -> str:
        """Of a node, counted from 1."""
        ends = ", ".join(repr(value.name) for value in self.seeds)
        return f"node {number} of {len(self.nodes)} on the way from {said(self.wanted[0])} to {ends}"

    def check(self) -> None:
        """Raises BundleError."""
        ends = ", ".join(repr(value.name) for value in self.seeds)
        for value in self.wanted:
            if value not in self.values:
                raise BundleError(f"{ends} does not hang on {said(value)}: there is no gradient by it")
        for number, node in enumerate(self.nodes, 1):
            if node.domain == "" and node.op_type in RULES:
                continue
            inner = next(graphs(node), None)
            why = "no gradient is known for" if inner is None else "no gradient is taken through branches and loops:"
            raise BundleError(f"{why} {describe(node)}, {self.place(number)}")


def _path(
    model: ir.Model, seeds: Collection[ir.Value], wanted: Sequence[ir.Value], fixed: Collection[ir.Value]
) -> _Path:
    reached, behind = set(wanted), []
    for node in model.graph:
        if not is_flat(node) and any(value in reached and value not in fixed for value in carried(node)):
            behind.append(node)
            reached |= set(node.outputs[:1] if node.op_type in PLACES_TOO else node.outputs)
    needed, nodes = set(seeds) & reached, []
    for node in reversed(behind):
        if any(value in needed for value in node.outputs):
            nodes.append(node)
            needed |= {value for value in carried(node) if value in reached and value not in fixed}
    return _Path(nodes[::-1], needed, wanted, seeds, fixed)


def is_flat(node: ir.Node) -> bool:
    """Whether small changes of its inputs change nothing."""
    if node.op_type == "Cast":
        return not ir.DataType(node.attributes["to"].as_int()).is_floating_point()
    return node.domain == "" and node.op_type in NO_GRADIENT


def carried(node: ir.Node) -> Collection[ir.Value]:
    """What a gradient may flow into: of CastLike not the second input, which only lends its type."""
    values = list(used(node))
    return values[:1] if node.op_type == "CastLike" else values


def _through(tape: Tape, node: ir.Node, wanted: Collection[ir.Value]) -> None:
    """Takes the gradient of a node's result to those of its inputs."""
    if _by_part(tape, node, wanted):
        return
    gradients = [tape.gradient(value) for value in node.outputs]
    if node.op_type != "Split" and any(one is not None for one in gradients[1:]):
        raise BundleError(f"more than the first output of {describe(node)} is used")
    gradient = next((one for one in gradients if one is not None), None)
    for index, value in enumerate(node.inputs):
        if gradient is not None and value is not None and value in wanted:
            given = RULES[node.op_type](tape, node, index, gradient)
            for contribution in given if isinstance(given, list) else [given]:
                tape.give(value, contribution)


def _by_part(tape: Tape, node: ir.Node, wanted: Collection[ir.Value]) -> bool:
    """Whether that could be done with the one part that the gradient is."""
    part, rule = tape.part(node.outputs[0]), PARTIAL.get(node.op_type)
    if part is None or rule is None:
        return False
    given: list[tuple[ir.Value, Contribution]] = []
    for index, value in enumerate(node.inputs):
        if value is not None and value in wanted:
            contribution = rule(tape, node, index, part)
            if contribution is None:
                return False
            given.append((value, contribution))
    for value, contribution in given:
        tape.give(value, contribution)
    return True


def _whole(tape: Tape, value: ir.Value) -> ir.Value:
    gradient = tape.gradient(value)
    assert gradient is not None
    return gradient

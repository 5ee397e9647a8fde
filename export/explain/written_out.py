"""GELU as graphs write it out that were made before opset 20 had an operator for it: x (1 + erf(x / √2)) / 2."""

import math
from collections.abc import Collection
from typing import NamedTuple

import onnx_ir as ir

from export.graph.adder import Adder
from export.graph.nodes import replace

_NEAR = 1e-6
"""Relative; the numbers are of float32."""


class _Written(NamedTuple):
    data: ir.Value
    nodes: list[ir.Node]
    """In the order of the graph; the last one gives the result, and of the others nobody else takes anything."""


def gather_gelus(model: ir.Model, others: Collection[ir.Value]) -> None:
    """Makes one Gelu of each, in place; not of `others`, see `other_floats`, nor where its result is an output."""
    for node in list(model.graph):
        found = _written(node) if node.op_type == "Erf" and node.outputs[0] not in others else None
        if found is not None and not found.nodes[-1].outputs[0].is_graph_output():
            add, last = Adder(model), found.nodes[-1]
            add.before = last
            replace(model, last, [add("Gelu", found.data)])
            for one in found.nodes[-2::-1]:
                model.graph.remove(one, safe=True)


def _written(erf: ir.Node) -> _Written | None:
    """The factor 1/2 may come first, with x, with 1 + erf, or last."""
    scaled, added = _scaled(erf.inputs[0]), _only_user(erf, "Add")
    if scaled is None or added is None or _other(added, erf.outputs[0]) != 1 or not _near(scaled[1], math.sqrt(0.5)):
        return None
    data, product = scaled[0], _only_user(added, "Mul")
    inner = erf.inputs[0].producer() if erf.inputs[0] is not None else None
    if inner is None or product is None or _only_user(inner, "Erf") is None:
        return None
    nodes, by = [inner, erf, added, product], _other(product, added.outputs[0])
    factor = by if isinstance(by, float) else 1.0
    if isinstance(by, float):
        last = _only_user(product, "Mul")
        if last is None or _other(last, product.outputs[0]) is not data:
            return None
        nodes.append(last)
    elif by is not data:
        halved, node = _scaled(by), None if by is None else by.producer()
        if halved is None or node is None or halved[0] is not data or _only_user(node, "Mul") is None:
            return None
        factor, nodes = halved[1], [node, *nodes]
    if not _near(factor, 0.5):
        last = _only_user(nodes[-1], "Mul") or _only_user(nodes[-1], "Div")
        more = None if last is None else _scaled(last.outputs[0])
        if last is None or more is None or not _near(factor * more[1], 0.5):
            return None
        nodes.append(last)
    return _Written(data, nodes)


def _near(number: float, wanted: float) -> bool:
    return math.isclose(number, wanted, rel_tol=_NEAR)


def _only_user(node: ir.Node, operator: str) -> ir.Node | None:
    value = node.outputs[0]
    users = [user for user, _ in value.uses()]
    return users[0] if len(users) == 1 and users[0].op_type == operator and not value.is_graph_output() else None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | float | None:
    """What an Add or a Mul takes beside the value; a number, where it is one."""
    first, second = node.inputs
    other = second if first is value else first
    number = _number(other)
    return other if number is None else number


def _scaled(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """(what it is a multiple of, how many times)."""
    node = None if value is None else value.producer()
    if node is None or node.op_type not in ("Mul", "Div"):
        return None
    first, second = node.inputs
    by = _number(second)
    if by is None and node.op_type == "Mul":
        first, by = second, _number(first)
    if first is None or not by:
        return None
    return first, by if node.op_type == "Mul" else 1 / by


def _number(value: ir.Value | None) -> float | None:
    held = None if value is None else value.const_value
    if held is None or held.size != 1 or len(held.shape) > 1:  # one of more axes could give its own to the result
        return None
    return float(held.numpy().item())

"""Small things about nodes."""

from collections.abc import Iterator, Sequence

import onnx_ir as ir


def describe(node: ir.Node) -> str:
    """The operator and the name of a node, as a user finds it in a viewer."""
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return f"{operator} {node.name!r}" if node.name else operator


def integer(node: ir.Node, name: str, default: int) -> int:
    """An attribute of a node."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def integers(node: ir.Node, name: str) -> tuple[int, ...]:
    """An attribute of a node; none where it has none."""
    attribute = node.attributes.get(name)
    return () if attribute is None else tuple(attribute.as_ints())


def number(node: ir.Node, name: str, default: float) -> float:
    """An attribute of a node."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def words(node: ir.Node, name: str, default: str) -> str:
    """An attribute of a node."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def used(node: ir.Node) -> Iterator[ir.Value]:
    """Inputs of a node, and what its branches and loops take from around them."""
    yield from (value for value in node.inputs if value is not None)
    for graph in graphs(node):
        for inner in graph:
            yield from used(inner)


def graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Branches and loops of a node."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()


def replace(model: ir.Model, node: ir.Node, results: Sequence[ir.Value | None]) -> None:
    """Puts values in place of a node's outputs, under the names that these had; None: of one that nobody uses."""
    for value, result in zip(node.outputs, results, strict=False):
        if result is not None:
            name, value.name = value.name, None
            if not result.is_initializer() and not result.is_graph_input():
                result.name = name
            value.replace_all_uses_with(result, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)

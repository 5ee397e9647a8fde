"""Whether the residual sums between two layers of attention are those of one block, so that the last one ends it."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import onnx_ir as ir

from export.explain.source import behind
from export.graph.nodes import integer, used
from export.graph.places import Places
from saccade.errors import BundleError

AS_IT_IS = ("Identity", "Dropout", "Cast", "QuantizeLinear", "DequantizeLinear",
            "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")  # fmt: skip
"""Behind them the tokens are the same, in another layout or type."""
PRODUCTS = ("MatMul", "Gemm", "Conv", "Einsum")
_STRAIGHT = (*AS_IT_IS, *PRODUCTS, "Add", "Sub", "Neg", "Concat", "Split", "Slice", "Gather", "Pad", "Expand", "Tile",
             "ReduceMean", "ReduceSum", "AveragePool", "BatchNormalization", "LayerNormalization")  # fmt: skip
"""Without an activation."""
_OF_NORMS = ("Pow", "Sqrt", "Reciprocal", "Div")
"""What they are written out with, beside the above."""


class _Block(NamedTuple):
    weights: ir.Value
    before: Collection[ir.Value]
    """What the weights hang on."""
    after: Collection[ir.Value]
    """What hangs on the weights."""
    places: Places

    def moves(self, value: ir.Value | None) -> bool:
        """Whether it hangs on the picture."""
        return value in self.places.labels


def check_block(
    model: ir.Model, way: Sequence[ir.Node], weights: ir.Value, sums: Sequence[ir.Value], places: Places
) -> None:
    """`sums`: one or two, which all goes through that the weights do, before the next layer. `way`: nodes that a change
    reaches the logits through.

    One is the block's end whatever is added there. Two are so where they are x + attention and x + MLP, one behind the
    other; or where what comes in, attention and an MLP beside it are added up. Raises BundleError where they are
    neither (a block whose MLP stands beside attention, and another MLP behind it, say), and where the weights are used
    by more than one block.
    """
    block = _Block(weights, behind(model, weights), _hanging(way, weights), places)
    _check_used_once(way, block)
    if len(sums) == 1:
        return
    first, last = sums
    if all(one in block.after for one in _added(last) if block.moves(one)):
        if _has_mlp_beside(block, first):
            raise BundleError(
                f"which of the sums behind {weights.name} ends its block is not known: an MLP stands beside its "
                "attention, and something else behind both"
            )
        if not _is_mlp(_between(model, way, first, last), places):
            raise BundleError(
                f"which of the sums behind {weights.name} ends its block is not known: what is added by the second "
                "one comes from no MLP"
            )
    elif not _are_of_one_entry(model, block, sums):
        raise BundleError(
            f"which of the sums behind {weights.name} ends its block is not known: something is added to them that "
            "does not come from what its attention takes"
        )


def _check_used_once(way: Sequence[ir.Node], block: _Block) -> None:
    """By one block: nothing that the weights are used for hangs on another use of them."""
    same, users = {block.weights}, list[ir.Node]()
    for node in way:
        if same.intersection(node.inputs):
            if node.op_type in AS_IT_IS:
                same |= {*node.outputs}
            else:
                users.append(node)
    for user in users:
        if any(node is not user and _hanging(way, user.outputs[0]).intersection(node.inputs) for node in users):
            raise BundleError(f"{block.weights.name} are the weights of more than one block")


def _has_mlp_beside(block: _Block, total: ir.Value) -> bool:
    """Whether an activation is behind what is added to what attention gives, other than by what attention takes."""
    seen: set[ir.Value] = set()
    waiting = [total]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or value in seen or value in block.before or not block.moves(value):
            continue
        seen.add(value)
        if value in block.after:  # a gate on what attention gives is no MLP, nor are the values that it weighs
            factors = node.op_type in ("Mul", "Div", "MatMul", "Where")
            waiting += [one for one in used(node) if not factors or one in block.after]
        elif _bends(node, block.moves):
            if not any(one in block.before for one in node.inputs):  # as of a gate on what comes in
                return True
        else:
            waiting += used(node)
    return False


def _is_mlp(nodes: Sequence[ir.Node], places: Places) -> bool:
    """With an activation, and of each token by itself, or of those next to it in each channel alone."""

    def moves(value: ir.Value | None) -> bool:
        return value in places.labels

    for node in nodes:
        if node.op_type == "Conv":
            kernel = places.shape_of(node.inputs[1])
            if max(kernel[2:]) > 1 and integer(node, "group", 1) != kernel[0]:
                return False
        if node.op_type == "Softmax" or (node.op_type == "MatMul" and all(map(moves, node.inputs))):
            return False
    return any(_bends(node, moves) and not _may_be_of_norm(node, places) for node in nodes)


def _bends(node: ir.Node, moves: Callable[[ir.Value | None], bool]) -> bool:
    """Whether it is neither linear in the picture's numbers nor a norm."""
    if node.op_type in ("Mul", "MatMul"):
        return all(map(moves, node.inputs))
    if node.op_type == "Div":
        return moves(node.inputs[1])
    return node.op_type not in _STRAIGHT


def _may_be_of_norm(node: ir.Node, places: Places) -> bool:
    if node.op_type == "Mul":  # by itself, or by one number a token
        return len({*node.inputs}) < 2 or len({places.shape(one) for one in node.inputs if one is not None}) > 1
    return node.op_type in _OF_NORMS


def _are_of_one_entry(model: ir.Model, block: _Block, sums: Sequence[ir.Value]) -> bool:
    """Whether one value comes in, and all else that is added beside attention hangs on it."""
    added = [one for total in sums for one in _added(total) if block.moves(one) and one not in block.after]
    entries = [root for root in map(_root, added) if root in block.before]
    others = [one for one in added if _root(one) not in block.before]
    return len(entries) == 1 and all(entries[0] in behind(model, one) for one in others)


def _root(value: ir.Value) -> ir.Value:
    """What it is, in another layout, in another scale, or of more tokens."""
    while (node := value.producer()) is not None and node.inputs and node.inputs[0] is not None:
        constants = [one for one in node.inputs[1:] if one is not None and one.const_value is not None]
        scaled = node.op_type in ("Mul", "Div") and len(constants) == 1
        if node.op_type not in (*AS_IT_IS, "Slice", "Gather") and not scaled:
            break
        value = node.inputs[0]
    return value


def _hanging(way: Sequence[ir.Node], start: ir.Value) -> set[ir.Value]:
    """All that hangs on it; itself too."""
    reached = {start}
    for node in way:
        if any(value in reached for value in used(node)):
            reached |= set(node.outputs)
    return reached


def _between(model: ir.Model, way: Sequence[ir.Node], start: ir.Value, end: ir.Value) -> list[ir.Node]:
    """Nodes behind one value and before another, without what makes that."""
    reached, needed = _hanging(way, start), behind(model, end) - {end}
    return [node for node in way if needed.intersection(node.outputs) and reached.intersection(node.inputs)]


def _added(value: ir.Value) -> list[ir.Value]:
    node = value.producer()
    return [] if node is None else [one for one in node.inputs if one is not None]

"""Behind the last attention only the rows that are read: what a classifier drops afterwards is not computed.

A class token is taken out of all tokens at the very end. Taken out before whatever works on each token by itself
(norms, linear layers, the product with the values), it saves the last block all but one row of the work. The softmax
stays whole: it is an output of the bundle.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from export.graph.adder import Adder
from export.graph.nodes import integer
from export.graph.places import Places

_ALL = np.iinfo(np.int32).max
"""Exporters say it, or more, for the end of an axis."""


class Part(NamedTuple):
    """Of an axis of a value, from `start` up to `stop`."""

    axis: int
    start: int
    stop: int


def narrow(model: ir.Model, size: tuple[int, int]) -> int:
    """Moves each choice of few rows (Gather of one, Slice) up to where they come from, in place; outputs are the same.

    `model` is as for `expose`. Gives how many products with a matrix take fewer rows.
    """
    places = Places(model, size).follow_all(model)
    _drop_whole_slices(model, places)
    choices = {node: part for node in model.graph if (part := _choice(node, places)) is not None}
    parts, narrowed = _plan(model, places, choices)
    products = sum(node.op_type == "MatMul" for node in narrowed)
    if products:
        _rewrite(model, places, choices, parts, narrowed)
    common.RemoveUnusedNodesPass()(model)  # ONNX Runtime warns of constants that nobody uses
    return products


def _plan(
    model: ir.Model, places: Places, choices: dict[ir.Node, Part]
) -> tuple[dict[ir.Value, Part], dict[ir.Node, list[Part | None]]]:
    """(what of a value is enough, and of the nodes that will make only that, what they take of each input).

    A node comes after all that use what it makes, so whether they all want a part of it is known.
    """
    outputs = set(model.graph.outputs)
    wanted: dict[ir.Value, list[Part]] = {}
    parts: dict[ir.Value, Part] = {}
    narrowed: dict[ir.Node, list[Part | None]] = {}
    for node in reversed(list(model.graph)):
        value = node.outputs[0]
        asked = wanted.get(value, [])
        taken = _taken(node, _union(asked), places) if asked and _readers(value) == len(asked) else None
        if (
            taken is not None
            and not outputs.intersection(node.outputs)
            and not any(one.uses() for one in node.outputs[1:])
        ):
            parts[value], narrowed[node] = _union(asked), taken
        elif node in choices:
            taken = [choices[node]]
        else:
            continue
        for given, part in zip(node.inputs, taken, strict=False):
            if given is not None and part is not None:
                wanted.setdefault(given, []).append(part)
    return parts, narrowed


def _readers(value: ir.Value) -> int:
    """How many read its numbers; what asks for its shape is told the one that it had, see `_rewrite`."""
    return sum(not _asks_for_shape(user) for user, _ in value.uses())


def _asks_for_shape(node: ir.Node) -> bool:
    return node.op_type == "Shape" and not node.attributes


def _union(asked: Sequence[Part]) -> Part:
    """Parts of several axes have none: what is asked then is all, and no rule takes that."""
    if len({part.axis for part in asked}) > 1:
        return Part(-1, 0, 0)
    return Part(asked[0].axis, min(part.start for part in asked), max(part.stop for part in asked))


def _rewrite(
    model: ir.Model,
    places: Places,
    choices: dict[ir.Node, Part],
    parts: dict[ir.Value, Part],
    narrowed: dict[ir.Node, list[Part | None]],
) -> None:
    add = Adder(model)
    sliced: dict[tuple[ir.Value, Part], ir.Value] = {}
    # before anything changes: of what is made here nothing is known
    targets = {node: places.constant(node.inputs[1]) for node in narrowed if node.op_type == "Reshape"}

    def part_of(value: ir.Value, part: Part) -> ir.Value:
        """That part of what `value` was, which may be a part itself by now."""
        has = parts.get(value, part._replace(start=0, stop=places.shape_of(value)[part.axis]))
        start, stop = part.start - has.start, part.stop - has.start
        if (start, stop) == (0, has.stop - has.start):
            return value
        if (value, part) not in sliced:
            sliced[value, part] = add("Slice", value, [start], [stop], [part.axis])
            sliced[value, part].type = value.type
            _set_length(sliced[value, part], value.shape, part)
        return sliced[value, part]

    for node in list(model.graph):
        add.before = node
        for index, part in enumerate(narrowed.get(node, [])):
            value = node.inputs[index]
            if value is not None and part is not None:
                node.replace_input_with(index, part_of(value, part))
        if node in narrowed:
            part = parts[node.outputs[0]]
            _set_length(node.outputs[0], node.outputs[0].shape, part)
            if node.op_type == "Reshape":
                node.replace_input_with(1, _target(add, node.inputs[1], targets[node], part))
        elif _asks_for_shape(node) and node.inputs[0] in parts:
            part, value = parts[node.inputs[0]], node.inputs[0]
            before = [places.shape_of(value)[part.axis]]
            node.outputs[0].replace_all_uses_with(
                add("ScatterElements", add("Shape", value), [part.axis], before, axis=0)
            )
        elif node in choices and node.inputs[0] in parts:
            _choose(add, node, choices[node], parts[node.inputs[0]])


def _target(add: Adder, target: ir.Value | None, known: NDArray[Any] | None, part: Part) -> ir.Value:
    """The shape that a Reshape is told, with the new length; one that is worked out while it runs is changed then."""
    assert target is not None
    assert known is not None
    if known[part.axis] <= 0:
        return target
    length = part.stop - part.start
    if target.const_value is None:
        return add("ScatterElements", target, [part.axis], [length], axis=0)
    changed = np.array(known)
    changed[part.axis] = length
    return add.constant(changed)


def _choose(add: Adder, node: ir.Node, part: Part, has: Part) -> None:
    """The node's choice, out of what there is now."""
    start, stop = part.start - has.start, part.stop - has.start
    if node.op_type == "Gather":
        node.replace_input_with(1, add.constant(np.array(start)))
    else:
        for index, value in enumerate(([start], [stop], [part.axis], [1]), 1):
            if index < len(node.inputs):
                node.replace_input_with(index, add.constant(np.array(value)))


def _set_length(value: ir.Value, shape: ir.Shape | None, part: Part) -> None:
    if shape is not None:
        lengths = list(shape)
        lengths[part.axis] = part.stop - part.start
        value.shape = ir.Shape(lengths)


def _drop_whole_slices(model: ir.Model, places: Places) -> None:
    """Exporters write x[:, :, 0] as a slice of everything, and then the choice."""
    for node in list(model.graph):
        data = node.inputs[0] if node.inputs else None
        if node.op_type != "Slice" or data is None or node.outputs[0] in model.graph.outputs:
            continue
        shape = places.shape(data)
        ends, axes, steps = (places.constant(value) for value in (*node.inputs[2:], None, None)[:3])
        if shape is None or shape != places.shape(node.outputs[0]) or ends is None or axes is None:
            continue
        # of the pictures there may be more than were followed
        all_pictures = all(axis % len(shape) or end >= _ALL for axis, end in zip(axes, ends, strict=True))
        if all_pictures and (len(node.inputs) < 5 or (steps is not None and (steps > 0).all())):
            node.outputs[0].replace_all_uses_with(data)
            model.graph.remove(node, safe=True)


def _choice(node: ir.Node, places: Places) -> Part | None:
    """What a Gather of one, or a Slice of one axis, takes of its input, at most half and never of the pictures."""
    data = node.inputs[0] if node.inputs else None
    shape = None if data is None or data not in places.labels else places.shape(data)
    if shape is None or node.op_type not in ("Gather", "Slice"):
        return None
    constants = [places.constant(value) for value in node.inputs[1:]]
    if any(constant is None or constant.size != 1 for constant in constants):
        return None
    numbers = [int(constant.reshape(())) for constant in constants if constant is not None]
    if node.op_type == "Gather":
        axis = integer(node, "axis", 0) % len(shape)
        start = numbers[0] % shape[axis]
        part = Part(axis, start, start + 1)
        if constants[0] is None or constants[0].ndim:
            return None
    else:
        start, stop, axis, step = (*numbers, *(0, 1)[len(numbers) - 2 :])
        axis %= len(shape)
        if step != 1:
            return None
        part = Part(axis, *slice(start, stop).indices(shape[axis])[:2])
    return part if part.axis and 0 < 2 * (part.stop - part.start) <= shape[part.axis] else None


def _taken(node: ir.Node, part: Part, places: Places) -> list[Part | None] | None:
    """What the node needs of its inputs to make that part of its output; None where it needs all, or is not known."""
    rule = _RULES.get(node.op_type) if node.domain == "" else None
    shape = places.shape(node.outputs[0])
    if rule is None or shape is None or part.axis < 0 or any(one in places.lost for one in node.inputs if one):
        return None
    return rule(node, part, places, shape)


_Rule = Callable[[ir.Node, Part, Places, tuple[int, ...]], list[Part | None] | None]


def _each(node: ir.Node, part: Part, places: Places, shape: tuple[int, ...]) -> list[Part | None]:
    """Each number by itself, broadcast over the inputs."""
    taken: list[Part | None] = []
    for value in node.inputs:
        theirs = None if value is None else places.shape_of(value)
        axis = -1 if theirs is None else part.axis - len(shape) + len(theirs)
        taken.append(part._replace(axis=axis) if axis >= 0 and theirs is not None and theirs[axis] > 1 else None)
    return taken


def _first(node: ir.Node, part: Part, _: Places, shape: tuple[int, ...]) -> list[Part | None] | None:
    """Along the last axis, or from `axis` on, all numbers belong together."""
    axis = integer(node, "axis", -1) % len(shape)
    one_axis = node.op_type in ("Softmax", "LogSoftmax")
    return None if part.axis == axis or (part.axis > axis and not one_axis) else [part]


def _reduces(node: ir.Node, part: Part, places: Places, shape: tuple[int, ...]) -> list[Part | None] | None:
    axes = places.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or not integer(node, "keepdims", 1) or part.axis in {int(axis) % len(shape) for axis in axes}:
        return None
    return [part]


def _multiplies(node: ir.Node, part: Part, places: Places, shape: tuple[int, ...]) -> list[Part | None] | None:
    left, right = (places.shape_of(value) for value in node.inputs)
    if min(len(left), len(right)) < 2 or part.axis < len(shape) - 2:
        return None
    at = part.axis - len(shape)
    return [part._replace(axis=at + len(left)), None] if at == -2 else [None, part._replace(axis=at + len(right))]


def _transposes(node: ir.Node, part: Part, _: Places, shape: tuple[int, ...]) -> list[Part | None]:
    order = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(len(shape))[::-1]
    return [part._replace(axis=order[part.axis])]


def _reshapes(node: ir.Node, part: Part, places: Places, shape: tuple[int, ...]) -> list[Part | None] | None:
    """Where the axis is one of the input's too, with as much before it."""
    theirs, target = places.shape_of(node.inputs[0]), places.constant(node.inputs[1])
    before = math.prod(shape[: part.axis])
    axis = next((at for at, length in enumerate(theirs)
                 if length == shape[part.axis] and math.prod(theirs[:at]) == before), None)  # fmt: skip
    if axis is None or target is None:
        return None
    copied = {at for at, length in enumerate(target) if length == 0 and not integer(node, "allowzero", 0)}
    if axis != part.axis and copied & {axis, part.axis}:  # a length copied from, or to, another axis
        return None
    return [part._replace(axis=axis), None]


def _squeezes(node: ir.Node, part: Part, places: Places, shape: tuple[int, ...]) -> list[Part | None] | None:
    """Also Unsqueeze: axes of length 1 come and go, the others keep their order."""
    theirs = places.shape_of(node.inputs[0])
    if shape[part.axis] == 1 or len(node.inputs) < 2:  # without axes, one of length 1 would go too
        return None
    order = sum(length > 1 for length in shape[: part.axis])
    return [part._replace(axis=[at for at, length in enumerate(theirs) if length > 1][order]), None]


_RULES: dict[str, _Rule] = {}
for _rule, _names in (
    (_each, "Add Sub Mul Div Pow Min Max Where Abs Neg Sqrt Reciprocal Exp Log Erf Tanh Sigmoid HardSigmoid Relu "
            "LeakyRelu Elu Selu Gelu HardSwish Mish Softplus Identity Cast Dropout Clip"),
    (_first, "LayerNormalization Softmax LogSoftmax"),
    (_reduces, "ReduceMean ReduceSum ReduceL2"),
    (_multiplies, "MatMul"),
    (_transposes, "Transpose"),
    (_reshapes, "Reshape"),
    (_squeezes, "Squeeze Unsqueeze"),
):  # fmt: skip
    _RULES.update(dict.fromkeys(_names.split(), _rule))

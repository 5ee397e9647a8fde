"""Fused operators -> plain ones of opset 20, so that attention has a Softmax again.

They come from newer opsets, from the optimizers of ONNX Runtime and of `onnxruntime.transformers`, and from exporters.
Each rewrite says what its operator does, by the specification of ONNX or of com.microsoft (docs/ContribOperators.md of
ONNX Runtime); tests hold it to ONNX Runtime's own kernel.
"""

import re
from collections.abc import Callable, Collection, Sequence

import numpy as np
import onnx_ir as ir

from export.graph import fused_attention
from export.graph.adder import Adder
from export.graph.nodes import describe, integer, number, replace, words
from export.graph.places import Places
from export.graph.rules import reduced_axes
from saccade.errors import DataError

MICROSOFT = "com.microsoft"
_KEPT = frozenset(("Einsum", "SplitToSequence", "Div"))
"""Operators of opset 20, which stay as they are where no plainer one does the same."""
Rewrite = Callable[[Adder, Places, ir.Node], list[ir.Value | None]]
"""Adds the plain nodes and gives the values of the outputs, None for one that it cannot give. Raises ValueError."""


def decompose(model: ir.Model, size: tuple[int, int], only: Collection[str] | None = None) -> list[str]:
    """Rewrites every fused operator of the graph, or `only` those of ONNX's own of these types, in place; gives the
    operators rewritten.

    Raises DataError naming an operator that cannot be undone.
    """
    check_operators(model)
    model.opset_imports.pop("ai.onnx", None)
    for node in model.graph:
        node.domain = "" if node.domain == "ai.onnx" else node.domain
    rewrites = REWRITES if only is None else {("", kind): REWRITES["", kind] for kind in only}
    if not any((node.domain, node.op_type) in rewrites for node in model.graph):
        return []
    places = Places(model, size, 1)
    add = Adder(model)
    rewritten: set[str] = set()
    for node in list(model.graph):
        rewrite = rewrites.get((node.domain, node.op_type))
        if rewrite is None:
            places.follow(node)
            continue
        add.before, add.made = node, []
        try:
            results = rewrite(add, places, node)
            missing = [index for index, value in enumerate(node.outputs)
                       if (value.uses() or value in model.graph.outputs) and _at(results, index) is None]  # fmt: skip
            if missing:
                raise ValueError(f"its output {missing[0]} is used")
        except ValueError as error:
            if node.op_type in _KEPT:
                places.follow(node)
                continue
            raise DataError(f"{describe(node)} cannot be undone: {error}") from error
        for made in add.made:
            places.follow(made)
        replace(model, node, results)
        rewritten.add(describe(node).split()[0])
    return sorted(rewritten)


def check_operators(model: ir.Model) -> None:
    """Raises DataError naming an operator that is neither ONNX's, nor the model's own function, nor to be undone, or
    that makes answers depend on each other.
    """
    functions = {(domain, name) for domain, name, _ in model.functions}
    for node in model.graph:
        if node.op_type.startswith("Dynamic") and "Quant" in node.op_type:
            raise DataError(f"{describe(node)} quantises dynamically: the scale of its activations is that of the "
                            "whole batch, so that an answer would depend on its neighbours; "
                            "export QDQ (static) or float32")  # fmt: skip
        if node.domain in ("", "ai.onnx") or {(node.domain, node.op_type)} & (functions | REWRITES.keys()):
            continue
        if node.domain == "com.microsoft.nchwc":
            raise DataError(f"{describe(node)} is laid out for one kind of processor and cannot be undone: "
                            "optimise no further than ONNX Runtime's extended level")  # fmt: skip
        raise DataError(f"{describe(node)} is no operator of ONNX and cannot be undone: export without it")


def _at(results: list[ir.Value | None], index: int) -> ir.Value | None:
    return results[index] if index < len(results) else None


def _skip_layer_norm(add: Adder, _: Places, node: ir.Node) -> list[ir.Value | None]:
    """LayerNormalization(input + skip + bias); the sum is the fourth output."""
    data, skip, gamma, beta, bias = (*node.inputs, None, None)[:5]
    total = add("Add", data, skip)
    if bias is not None:
        total = add("Add", total, bias)
    epsilon = number(node, "epsilon", 1e-12)
    normed = add("LayerNormalization", total, gamma, *([] if beta is None else [beta]), axis=-1, epsilon=epsilon)
    return [normed, None, None, total]


def _skip_rms_norm(add: Adder, _: Places, node: ir.Node) -> list[ir.Value | None]:
    """The same without a mean: RMSNormalization(input + skip + bias)."""
    data, skip, gamma, bias = (*node.inputs, None)[:4]
    total = add("Add", data, skip)
    if bias is not None:
        total = add("Add", total, bias)
    return [_rms(add, total, gamma, -1, number(node, "epsilon", 1e-12)), None, None, total]


def _rms_norm(add: Adder, places: Places, node: ir.Node) -> list[ir.Value | None]:
    """Gives x / sqrt(mean(x²) + epsilon) times a scale, over the axes from `axis` on."""
    return [_rms(add, node.inputs[0], node.inputs[1], _from_end(node, places), number(node, "epsilon", 1e-5))]


def _rms(add: Adder, data: ir.Value | None, gamma: ir.Value | None, axis: int, epsilon: float) -> ir.Value:
    mean = add("ReduceMean", add("Mul", data, data), list(range(axis, 0)), keepdims=1)
    return add("Mul", add("Div", data, add("Sqrt", add("Add", mean, add.number(epsilon)))), gamma)


def _from_end(node: ir.Node, places: Places) -> int:
    axis = integer(node, "axis", -1)
    return axis if axis < 0 else axis - places.rank(node.inputs[0])


def _group_norm(add: Adder, places: Places, node: ir.Node) -> list[ir.Value | None]:
    """Each group of channels is normalised as one, then scaled: of opset 18 by group, of opset 21 by channel."""
    data, groups = node.inputs[0], integer(node, "num_groups", 1)
    channels, *behind = places.shape_of(data)[1:]
    ones, zeros = (add.constant(np.full(groups, value, np.float32)) for value in (1, 0))
    flat = add("Reshape", data, [0, groups, -1])
    normed = add("InstanceNormalization", flat, ones, zeros, epsilon=number(node, "epsilon", 1e-5))
    scale, bias = (_by_channel(add, places, value, channels) for value in node.inputs[1:])
    scaled = add("Mul", add("Reshape", normed, add("Shape", data)), add("Reshape", scale, [-1, *[1] * len(behind)]))
    return [add("Add", scaled, add("Reshape", bias, [-1, *[1] * len(behind)]))]


def _by_channel(add: Adder, places: Places, value: ir.Value | None, channels: int) -> ir.Value | None:
    """(groups,) or (channels,) -> (channels,)."""
    (groups,) = places.shape_of(value)
    if groups == channels:
        return value
    spread = add("Expand", add("Unsqueeze", value, [1]), [groups, channels // groups])
    return add("Reshape", spread, [channels])


def _gelu(add: Adder, _: Places, node: ir.Node) -> list[ir.Value | None]:
    """Gives x Φ(x), after a bias where there is one; FastGelu by its tanh form."""
    data = node.inputs[0]
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        data = add("Add", data, node.inputs[1])
    return [add("Gelu", data, approximate="tanh" if node.op_type == "FastGelu" else "none")]


def _quick_gelu(add: Adder, _: Places, node: ir.Node) -> list[ir.Value | None]:
    """Gives x sigmoid(alpha x)."""
    (data,) = node.inputs
    return [add("Mul", data, add("Sigmoid", add("Mul", data, add.number(number(node, "alpha", 1.702)))))]


def _swish(add: Adder, _: Places, node: ir.Node) -> list[ir.Value | None]:
    """Gives x sigmoid(alpha x), of opset 24."""
    (data,) = node.inputs
    return [add("Mul", data, add("Sigmoid", add("Mul", data, add.number(number(node, "alpha", 1.0)))))]


def _fused_matmul(add: Adder, places: Places, node: ir.Node) -> list[ir.Value | None]:
    """Gives alpha A B, each side transposed as said."""
    sides = []
    for value, name in zip(node.inputs, ("A", "B"), strict=True):
        if integer(node, f"transBatch{name}", 0):
            raise ValueError(f"transBatch{name} moves its batch")
        rank = places.rank(value)
        if integer(node, f"trans{name}", 0) and rank > 1:
            value = add("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])  # noqa: PLW2901
        sides.append(value)
    product = add("MatMul", *sides)
    alpha = number(node, "alpha", 1.0)
    return [product if alpha == 1.0 else add("Mul", product, add.number(alpha))]


def _einsum(add: Adder, _: Places, node: ir.Node) -> list[ir.Value | None]:
    """Of two tensors that share batch axes and sum over one: a MatMul between transposes."""
    match = re.fullmatch(r"([a-zA-Z]+),([a-zA-Z]+)->([a-zA-Z]+)", words(node, "equation", "").replace(" ", ""))
    if match is None:
        raise ValueError("it is no product of two tensors")
    left, right, result = match.groups()
    shared = [letter for letter in result if letter in left and letter in right]
    summed = [letter for letter in left if letter in right and letter not in result]
    rows, columns = ([letter for letter in one if letter not in other] for one, other in ((left, right), (right, left)))
    if any(len(group) != 1 for group in (summed, rows, columns)) or len({*left, *right}) != len(shared) + 3:
        raise ValueError("it is no MatMul")
    first = _turned(add, node.inputs[0], [left.index(letter) for letter in [*shared, *rows, *summed]])
    second = _turned(add, node.inputs[1], [right.index(letter) for letter in [*shared, *summed, *columns]])
    given = [*shared, *rows, *columns]
    return [_turned(add, add("MatMul", first, second), [given.index(letter) for letter in result])]


def _turned(add: Adder, value: ir.Value | None, order: Sequence[int]) -> ir.Value | None:
    return value if list(order) == sorted(order) else add("Transpose", value, perm=list(order))


def _quotient(add: Adder, places: Places, node: ir.Node) -> list[ir.Value | None]:
    """Powers by their sum over an axis: a Softmax that was written out."""
    powers, total = (None if value is None else value.producer() for value in node.inputs)
    if powers is None or total is None or (powers.op_type, total.op_type) != ("Exp", "ReduceSum"):
        raise ValueError("it is no Softmax")
    rank = places.rank(node.inputs[0])
    axes = reduced_axes(total, places.constant(total.inputs[1]) if len(total.inputs) > 1 else None, rank)
    if total.inputs[0] is not node.inputs[0] or len(axes) != 1 or not integer(total, "keepdims", 1):
        raise ValueError("its sum is another")
    return [add("Softmax", powers.inputs[0], axis=axes[0] - rank)]


def _split_to_sequence(_: Adder, __: Places, ___: ir.Node) -> list[ir.Value | None]:
    """Nobody uses it any more when each SequenceAt behind it is a Slice."""
    raise ValueError("it is taken apart where its parts are taken")


def _sequence_at(add: Adder, places: Places, node: ir.Node) -> list[ir.Value | None]:
    """One part of a split, as a Slice."""
    sequence, place = node.inputs
    split = None if sequence is None else sequence.producer()
    index = places.constant(place)
    if split is None or split.op_type != "SplitToSequence" or index is None:
        raise ValueError("its sequence is no split")
    sizes = places.constant(split.inputs[1]) if len(split.inputs) > 1 else np.array(1)
    shape = places.shape_of(split.inputs[0])
    axis = integer(split, "axis", 0) % len(shape)
    if sizes is None or (len(split.inputs) == 1 and not integer(split, "keepdims", 1)):
        raise ValueError("its split has no sizes")
    step = np.full(-(-shape[axis] // int(sizes)), int(sizes)) if sizes.ndim == 0 else sizes
    ends = np.cumsum([0, *step]).tolist()
    at = int(index) % len(step)
    return [add("Slice", split.inputs[0], [ends[at]], [ends[at + 1]], [axis])]


def _with_activation(operator: str, beside: int) -> Rewrite:
    """A Conv or Gemm with an activation behind it, and a Conv that adds its fourth input before."""

    def rewrite(add: Adder, _: Places, node: ir.Node) -> list[ir.Value | None]:
        own = {name: attribute for name, attribute in node.attributes.items() if not name.startswith("activation")}
        result = add(operator, *node.inputs[:beside], **own)
        if len(node.inputs) > beside and node.inputs[beside] is not None:
            result = add("Add", result, node.inputs[beside])
        return [_activated(add, result, node)]

    return rewrite


def _activated(add: Adder, value: ir.Value, node: ir.Node) -> ir.Value:
    name = words(node, "activation", "")
    if "activation_params" in node.attributes:
        given = list(node.attributes["activation_params"].as_floats())
    else:
        given = [number(node, f"activation_{key}", default) for key, default in _ACTIVATIONS.get(name, {}).items()
                 if f"activation_{key}" in node.attributes]  # fmt: skip
    if name == "":
        return value
    if name == "Clip":
        return add("Clip", value, add.number(given[0]), add.number(given[1]))
    if name not in _ACTIVATIONS:
        raise ValueError(f"its activation is {name}")
    return add(name, value, **dict(zip(_ACTIVATIONS[name], given, strict=False)))


_ACTIVATIONS: dict[str, dict[str, float]] = {
    "Relu": {}, "Tanh": {}, "Sigmoid": {}, "LeakyRelu": {"alpha": 0.01}, "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
}  # fmt: skip

REWRITES: dict[tuple[str, str], Rewrite] = {
    ("", "Attention"): fused_attention.standard,
    ("", "Div"): _quotient,
    ("", "Einsum"): _einsum,
    ("", "SplitToSequence"): _split_to_sequence,
    ("", "SequenceAt"): _sequence_at,
    ("", "RMSNormalization"): _rms_norm,
    ("", "SimplifiedLayerNormalization"): _rms_norm,
    ("", "Swish"): _swish,
    ("", "GroupNormalization"): _group_norm,
    (MICROSOFT, "Attention"): fused_attention.packed,
    (MICROSOFT, "MultiHeadAttention"): fused_attention.multi_head,
    (MICROSOFT, "SkipLayerNormalization"): _skip_layer_norm,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _skip_rms_norm,
    (MICROSOFT, "Gelu"): _gelu,
    (MICROSOFT, "BiasGelu"): _gelu,
    (MICROSOFT, "FastGelu"): _gelu,
    (MICROSOFT, "QuickGelu"): _quick_gelu,
    (MICROSOFT, "FusedMatMul"): _fused_matmul,
    (MICROSOFT, "TransposeMatMul"): _fused_matmul,
    (MICROSOFT, "FusedConv"): _with_activation("Conv", 3),
    (MICROSOFT, "FusedGemm"): _with_activation("Gemm", 3),
}

"""Attention operators -> MatMul, Softmax, MatMul: that of ONNX (opset 23 and 24) and those of com.microsoft."""

import math
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from export.graph.adder import Adder
from export.graph.nodes import integer, number
from export.graph.places import Places


def standard(add: Adder, places: Places, node: ir.Node) -> list[ir.Value | None]:
    """Attention of ONNX: softmax(softcap(Q Kᵀ scale + mask)) V; 3-D inputs hold the heads beside each other.

    https://onnx.ai/onnx/operators/onnx__Attention.html
    """
    query, key, value, mask, *rest = (*node.inputs, *[None] * 7)[:7]
    if any(one is not None for one in rest):
        raise ValueError("it continues a sequence (a past, or lengths of keys)")
    if integer(node, "is_causal", 0):
        raise ValueError("it is causal")
    flat = places.rank(query) == 3
    if flat:
        heads = integer(node, "q_num_heads", 0)
        if heads != integer(node, "kv_num_heads", heads):
            raise ValueError("its queries have more heads than its keys")
        query, key, value = (_split_heads(add, one, heads) for one in (query, key, value))
    else:
        heads = places.shape_of(query)[1]
        if heads != places.shape_of(key)[1]:
            raise ValueError("its queries have more heads than its keys")
    width = places.shape_of(node.inputs[0])[-1] // (heads if flat else 1)
    product = _scores(add, query, key, number(node, "scale", 1 / math.sqrt(width)))
    mode = integer(node, "qk_matmul_output_mode", 0)
    softcap = number(node, "softcap", 0.0)
    masked = product if mask is None else add("Add", product, _as_bias(add, places, mask))
    capped = masked
    if softcap:
        limit = add.number(softcap)
        capped = add("Mul", add("Tanh", add("Div", masked, limit)), limit)
    weights = add("Softmax", capped, axis=-1)
    result = add("MatMul", weights, value)
    return [_join_heads(add, result) if flat else result, None, None, {0: product, 3: weights}.get(mode)]


def packed(add: Adder, places: Places, node: ir.Node) -> list[ir.Value | None]:
    """Attention of com.microsoft: (batch, N, width) times weights of query, key and value beside each other."""
    data, weight, bias, *rest = (*node.inputs, *[None] * 7)[:7]
    mask, past, attention_bias, length = rest
    _refuse(node, mask=mask, past=past, length=length)
    heads = integer(node, "num_heads", 0)
    projected = add("MatMul", data, weight)
    if bias is not None:
        projected = add("Add", projected, bias)
    total = places.shape_of(weight)[-1]
    sizes = [total // 3] * 3
    if "qkv_hidden_sizes" in node.attributes and node.attributes["qkv_hidden_sizes"].as_ints():
        sizes = list(node.attributes["qkv_hidden_sizes"].as_ints())
    ends = np.cumsum([0, *sizes]).tolist()
    parts = [add("Slice", projected, [begin], [end], [2]) for begin, end in pairwise(ends)]
    query, key, value = (_split_heads(add, part, heads) for part in parts)
    scale = number(node, "scale", 0.0) or 1 / math.sqrt(sizes[0] // heads)
    return [_attended(add, query, key, value, scale, attention_bias)]


def multi_head(add: Adder, places: Places, node: ir.Node) -> list[ir.Value | None]:
    """MultiHeadAttention of com.microsoft: queries, keys and values (batch, N, width), a bias for all three."""
    query, key, value, bias, mask, attention_bias, *rest = (*node.inputs, *[None] * 10)[:10]
    _refuse(node, mask=mask, past=next((one for one in rest if one is not None), None))
    heads = integer(node, "num_heads", 0)
    if query is None:
        raise ValueError("it has no queries")
    shape = places.shape_of(query)
    flat = [query, key, value]
    if key is None or value is None or [places.rank(one) for one in flat] != [3, 3, 3]:
        raise ValueError("its queries, keys and values are not three times (batch, N, width)")
    if bias is not None:
        ends = np.cumsum([0, *(places.shape_of(one)[-1] for one in flat)]).tolist()
        flat = [add("Add", one, add("Slice", bias, [begin], [end], [0]))
                for one, (begin, end) in zip(flat, pairwise(ends), strict=True)]  # fmt: skip
    moved = [_split_heads(add, one, heads) for one in flat]
    width = shape[-1] // heads
    scale = number(node, "scale", 0.0) or 1 / math.sqrt(width)
    return [_attended(add, moved[0], moved[1], moved[2], scale, attention_bias)]


def _refuse(node: ir.Node, **inputs: ir.Value | None) -> None:
    given = [name for name, value in inputs.items() if value is not None]
    if given:
        raise ValueError(f"it has a {given[0]}")
    if integer(node, "unidirectional", 0):
        raise ValueError("it is causal")
    if integer(node, "do_rotary", 0):
        raise ValueError("it turns queries and keys (rotary positions)")


def _attended(
    add: Adder, query: ir.Value, key: ir.Value, value: ir.Value, scale: float, bias: ir.Value | None
) -> ir.Value:
    scores = _scores(add, query, key, scale)
    if bias is not None:
        scores = add("Add", scores, bias)
    return _join_heads(add, add("MatMul", add("Softmax", scores, axis=-1), value))


def _scores(add: Adder, query: ir.Value | None, key: ir.Value | None, scale: float) -> ir.Value:
    """(batch, heads, N, d) twice -> Q Kᵀ scale."""
    return add("Mul", add("MatMul", query, add("Transpose", key, perm=[0, 1, 3, 2])), add.number(scale))


def _split_heads(add: Adder, value: ir.Value | None, heads: int) -> ir.Value:
    """(batch, N, heads * d) -> (batch, heads, N, d)."""
    if heads < 1:
        raise ValueError("it does not say how many heads it has")
    return add("Transpose", add("Reshape", value, [0, 0, heads, -1]), perm=[0, 2, 1, 3])


def _join_heads(add: Adder, value: ir.Value) -> ir.Value:
    """(batch, heads, N, d) -> (batch, N, heads * d)."""
    return add("Reshape", add("Transpose", value, perm=[0, 2, 1, 3]), [0, 0, -1])


def _as_bias(add: Adder, places: Places, mask: ir.Value) -> ir.Value:
    """What is added to the scores: a mask of booleans keeps where it is true."""
    constant = places.constant(mask)
    kind = mask.type.dtype if mask.type is not None else None
    is_boolean = constant.dtype == np.bool_ if constant is not None else kind == ir.DataType.BOOL
    if constant is None and kind is None:
        raise ValueError("its mask is of an unknown type")
    if not is_boolean:
        return mask
    return add("Where", mask, add.number(0.0), add.number(-math.inf))

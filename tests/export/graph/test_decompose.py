"""Each fused operator, taken apart, gives what ONNX Runtime's own kernel gives."""

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.graph.decompose import decompose
from export.graph.opset import convert_opset
from saccade.errors import DataError

BATCH, TOKENS, WIDTH, HEADS = 1, 6, 8, 2
SIZE = (4, 4)  # 3 * 4 * 4 = 6 * 8 numbers


def constant(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def graph(
    nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], outputs: list[str], opset: int = 20
) -> onnx.ModelProto:
    """Nodes that take `x`, the picture as (1, 6, 8)."""
    reshape = helper.make_node("Reshape", ["pixels", "shape"], ["x"], name="reshape")
    given = {"shape": np.array([BATCH, TOKENS, WIDTH]), **constants}
    body = helper.make_graph(
        [reshape, *nodes],
        "one",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [BATCH, 3, *SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in given.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(body, opset_imports=imports, ir_version=10)


def run(model: onnx.ModelProto, *, optimised: bool) -> list[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": constant(BATCH, 3, *SIZE, seed=9)})


def microsoft(operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, name="fused", domain="com.microsoft", **attributes)


def standard(operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, name="fused", **attributes)


TO_HEADS = [
    helper.make_node("Reshape", ["x", "by_head"], ["split"], name="split"),
    helper.make_node("Transpose", ["split"], ["heads"], perm=[0, 2, 1, 3], name="turn"),
]
BY_HEAD = {"by_head": np.array([0, 0, HEADS, WIDTH // HEADS])}
PACKED = {"w": constant(WIDTH, 3 * WIDTH, seed=1), "b": constant(3 * WIDTH, seed=2)}
NORM = {"gamma": constant(WIDTH, seed=3), "beta": constant(WIDTH, seed=4), "skip": constant(1, TOKENS, WIDTH, seed=5)}
PICTURE = [helper.make_node("Reshape", ["x", "chw"], ["picture"], name="picture")]
CONV = {"chw": np.array([1, 3, 4, 4]), "k": constant(5, 3, 3, 3, seed=1), "kb": constant(5, seed=2)}
MASK = np.arange(TOKENS)[:, None] >= np.arange(TOKENS)[None] - 2

CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, NDArray[Any]], list[str], int]] = {
    "GroupNormalization of opset 18": (
        [standard("GroupNormalization", ["x", "by_group", "by_group_too"], ["y"], num_groups=3, epsilon=0.01)],
        {"by_group": constant(3, seed=1), "by_group_too": constant(3, seed=2)}, ["y"], 20,
    ),
    "GroupNormalization of opset 21": (
        [helper.make_node("Reshape", ["x", "planes"], ["channels"], name="planes"),
         standard("GroupNormalization", ["channels", "gamma", "beta"], ["y"], num_groups=2)],
        {**NORM, "planes": np.array([1, WIDTH, 2, 3])}, ["y"], 21,
    ),
    "Attention, 4-D": ([*TO_HEADS, standard("Attention", ["heads", "heads", "heads"], ["y"])], BY_HEAD, ["y"], 23),
    "Attention, 3-D, scaled": (
        [standard("Attention", ["x", "x", "x"], ["y"], q_num_heads=HEADS, kv_num_heads=HEADS, scale=0.3)],
        {}, ["y"], 23,
    ),
    "Attention, capped": (
        [*TO_HEADS, standard("Attention", ["heads", "heads", "heads"], ["y"], softcap=1.5)], BY_HEAD, ["y"], 23,
    ),
    "Attention, a bias": (
        [*TO_HEADS, standard("Attention", ["heads", "heads", "heads", "bias"], ["y"])],
        {**BY_HEAD, "bias": constant(HEADS, TOKENS, TOKENS, seed=3)}, ["y"], 23,
    ),
    "Attention, a mask": (
        [*TO_HEADS, standard("Attention", ["heads", "heads", "heads", "mask"], ["y"])],
        {**BY_HEAD, "mask": MASK}, ["y"], 23,
    ),
    "Attention, its weights": (
        [*TO_HEADS,
         standard("Attention", ["heads", "heads", "heads"], ["y", "", "", "weights"], qk_matmul_output_mode=3)],
        BY_HEAD, ["y", "weights"], 23,
    ),
    "Attention, its scores": (
        [*TO_HEADS, standard("Attention", ["heads", "heads", "heads"], ["y", "", "", "scores"])],
        BY_HEAD, ["y", "scores"], 23,
    ),
    "RMSNormalization": ([standard("RMSNormalization", ["x", "gamma"], ["y"], epsilon=1e-3)], NORM, ["y"], 23),
    "Swish": ([standard("Swish", ["x"], ["y"], alpha=1.3)], {}, ["y"], 24),
    "com.microsoft Attention": (
        [microsoft("Attention", ["x", "w", "b"], ["y"], num_heads=HEADS)], PACKED, ["y"], 20,
    ),
    "com.microsoft Attention, a bias on the scores, scaled": (
        [microsoft("Attention", ["x", "w", "b", "", "", "bias"], ["y"], num_heads=HEADS, scale=0.4)],
        {**PACKED, "bias": constant(1, HEADS, TOKENS, TOKENS, seed=3)}, ["y"], 20,
    ),
    "com.microsoft Attention, widths of its own": (
        [microsoft("Attention", ["x", "w", "b"], ["y"], num_heads=HEADS, qkv_hidden_sizes=[4, 4, 8])],
        {"w": constant(WIDTH, 16, seed=1), "b": constant(16, seed=2)}, ["y"], 20,
    ),
    "MultiHeadAttention": (
        [microsoft("MultiHeadAttention", ["x", "x", "skip"], ["y"], num_heads=HEADS)], NORM, ["y"], 20,
    ),
    "MultiHeadAttention, biases": (
        [microsoft("MultiHeadAttention", ["x", "x", "x", "b", "", "bias"], ["y"], num_heads=HEADS)],
        {**PACKED, "bias": constant(1, HEADS, TOKENS, TOKENS, seed=3)}, ["y"], 20,
    ),
    "SkipLayerNormalization": (
        [microsoft("SkipLayerNormalization", ["x", "skip", "gamma", "beta"], ["y"], epsilon=1e-3)], NORM, ["y"], 20,
    ),
    "SkipLayerNormalization, its sum": (
        [microsoft("SkipLayerNormalization", ["x", "skip", "gamma", "beta", "beta"], ["y", "", "", "sum"])],
        NORM, ["y", "sum"], 20,
    ),
    "SkipSimplifiedLayerNormalization": (
        [microsoft("SkipSimplifiedLayerNormalization", ["x", "skip", "gamma"], ["y"], epsilon=1e-3)], NORM, ["y"], 20,
    ),
    "Gelu": ([microsoft("Gelu", ["x"], ["y"])], {}, ["y"], 20),
    "BiasGelu": ([microsoft("BiasGelu", ["x", "beta"], ["y"])], NORM, ["y"], 20),
    "FastGelu": ([microsoft("FastGelu", ["x", "beta"], ["y"])], NORM, ["y"], 20),
    "FastGelu, no bias": ([microsoft("FastGelu", ["x"], ["y"])], {}, ["y"], 20),
    "QuickGelu": ([microsoft("QuickGelu", ["x"], ["y"], alpha=1.5)], {}, ["y"], 20),
    "FusedMatMul": (
        [microsoft("FusedMatMul", ["x", "x"], ["y"], transB=1, alpha=0.5)], {}, ["y"], 20,
    ),
    "FusedMatMul, the left turned": ([microsoft("FusedMatMul", ["x", "x"], ["y"], transA=1)], {}, ["y"], 20),
    "TransposeMatMul": ([microsoft("TransposeMatMul", ["x", "x"], ["y"], transB=1, alpha=2.0)], {}, ["y"], 20),
    **{
        f"FusedConv, {activation}": (
            [*PICTURE, microsoft("FusedConv", ["picture", "k", "kb"], ["y"], activation=activation, **given)],
            CONV, ["y"], 20,
        )
        for activation, given in (
            ("Tanh", {}), ("Sigmoid", {}), ("LeakyRelu", {"activation_params": [0.3]}),
            ("HardSigmoid", {"activation_params": [0.3, 0.4]}),
        )
    },
    "FusedConv, Relu": (
        [*PICTURE, microsoft("FusedConv", ["picture", "k", "kb"], ["y"], pads=[1] * 4, activation="Relu")],
        CONV, ["y"], 20,
    ),
    "FusedConv, Clip, a sum": (
        [*PICTURE, microsoft("FusedConv", ["picture", "k", "kb", "z"], ["y"], activation="Clip",
                             activation_params=[-0.5, 0.5])],
        {**CONV, "z": constant(1, 5, 2, 2, seed=7)}, ["y"], 20,
    ),
    "FusedGemm, LeakyRelu": (
        [helper.make_node("Reshape", ["x", "flat"], ["rows"], name="flat"),
         microsoft("FusedGemm", ["rows", "w", "b"], ["y"], activation="LeakyRelu", activation_alpha=0.3)],
        {**PACKED, "flat": np.array([TOKENS, WIDTH])}, ["y"], 20,
    ),
    "Einsum": (
        [*TO_HEADS, standard("Einsum", ["heads", "heads"], ["y"], equation="bhid,bhjd->bhij")], BY_HEAD, ["y"], 20,
    ),
    "Softmax, written out": (
        [standard("Exp", ["x"], ["powers"]), helper.make_node("ReduceSum", ["powers", "axes"], ["sum"], name="sum"),
         helper.make_node("Div", ["powers", "sum"], ["y"], name="by")],
        {"axes": np.array([-2])}, ["y"], 20,
    ),
    "Einsum, turned": (
        [*TO_HEADS, standard("Einsum", ["heads", "heads"], ["y"], equation="bhdi,bhdj->jbih")], BY_HEAD, ["y"], 20,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_taken_apart_it_gives_the_same(name: str) -> None:
    """Within 1e-5 of the kernel, in plain operators of opset 20, under the names that its outputs had."""
    nodes, constants, outputs, opset = CASES[name]
    proto = graph(nodes, constants, outputs, opset)
    expected = run(proto, optimised=False)
    model = convert_opset(ir.from_proto(proto))
    assert len(decompose(model, SIZE)) == 1
    del model.opset_imports["com.microsoft"]
    plain = ir.to_proto(model)
    for output in plain.graph.output:
        output.type.Clear()
        output.type.tensor_type.elem_type = TensorProto.FLOAT
    assert {(one.domain, one.version) for one in plain.opset_import} == {("", 20)}
    assert not {"Attention", "Swish", "RMSNormalization", "Einsum"} & {node.op_type for node in plain.graph.node}
    assert [output.name for output in plain.graph.output] == outputs
    for seen, wanted in zip(run(plain, optimised=True), expected, strict=True):
        assert seen.shape == wanted.shape
        np.testing.assert_allclose(seen, wanted, atol=1e-5)


REFUSED = {
    "queries, keys and values packed, which CPUs do not run": (
        [helper.make_node("MatMul", ["x", "w"], ["qkv"], name="project"),
         helper.make_node("Reshape", ["qkv", "five"], ["packed"], name="pack"),
         microsoft("MultiHeadAttention", ["packed"], ["y"], num_heads=HEADS)],
        {**PACKED, "five": np.array([0, 0, HEADS, 3, WIDTH // HEADS])}, "are not three times",
    ),
    "a mask of lengths": (
        [microsoft("Attention", ["x", "w", "b", "lengths"], ["y"], num_heads=HEADS)],
        {**PACKED, "lengths": np.array([5], np.int32)},
        r"com\.microsoft::Attention 'fused' cannot be undone: it has a mask",
    ),
    "causal": (
        [microsoft("Attention", ["x", "w", "b"], ["y"], num_heads=HEADS, unidirectional=1)], PACKED, "it is causal",
    ),
    "an operator of its own": (
        [microsoft("MatMulNBits", ["x", "w"], ["y"])], PACKED, "MatMulNBits 'fused' is no operator of ONNX",
    ),
    "another domain": (
        [helper.make_node("Mine", ["x"], ["y"], name="fused", domain="my.own")],
        {}, r"my\.own::Mine 'fused' is no operator",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_undone_is_named(name: str) -> None:
    """Operator, name and reason, so that whoever exported it finds it."""
    nodes, constants, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        decompose(ir.from_proto(graph(nodes, constants, ["y"])), SIZE)


def test_attention_keeps_the_default_scale() -> None:
    """One by the root of the width of a head, as both specifications say: typed anew in float64."""
    nodes, constants, outputs, _ = CASES["com.microsoft Attention"]
    model = ir.from_proto(graph(nodes, constants, outputs))
    decompose(model, SIZE)
    del model.opset_imports["com.microsoft"]
    (seen,) = run(ir.to_proto(model), optimised=True)
    x = constant(BATCH, 3, *SIZE, seed=9).reshape(TOKENS, WIDTH).astype(np.float64)
    query, key, value = np.split(x @ PACKED["w"] + PACKED["b"], 3, 1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        powers = np.exp(query[:, part] @ key[:, part].T / math.sqrt(4))
        heads.append(powers / powers.sum(1, keepdims=True) @ value[:, part])
    np.testing.assert_allclose(seen[0], np.concatenate(heads, 1), atol=1e-5)

"""Only what is read of the last block is computed, and no answer changes."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper

from export.graph.narrow import narrow
from tests.export.graph.conftest import Case, answers, exposed, noise

READS_ONE = {"Vit": 4, "PooledVit": 4, "Distilled": 4, "LastTokens": 2}
"""Of the last block: attention x values, the layer behind it, the two of the MLP, which one net has not."""


@pytest.mark.parametrize(("name", "how"), [*((name, "script") for name in READS_ONE), ("Vit", "fixed"), ("Vit", "raw")])
def test_a_class_token_takes_its_row_alone_through_the_last_block(
    case: Callable[[str, str], Case], name: str, how: str
) -> None:
    """Logits are the eager net's, attention and rollout as before, whole, for any batch; rows are one, or two."""
    net, path = case(name, how)
    model, _ = exposed(path, net.size)
    before = ir.to_proto(model)
    assert narrow(model, net.size) == READS_ONE[name]
    assert all(value.uses() for value in model.graph.initializers.values())
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    for count in (1, 2, 5):
        pixels = noise(count, net.size)
        seen, whole = answers(proto, pixels), answers(before, pixels)
        assert seen.keys() == whole.keys()
        for output, values in whole.items():
            np.testing.assert_allclose(seen[output], values, atol=1e-6)
        with torch.inference_mode():
            logits = net(torch.from_numpy(pixels)).numpy()
        ours = torch.softmax(torch.from_numpy(seen["logits"]), -1).numpy() if name == "PooledVit" else seen["logits"]
        np.testing.assert_allclose(ours, logits, atol=1e-4)
    assert _rows_of_the_last_product(proto, noise(2, net.size)) == (2 if name == "Distilled" else 1)


@pytest.mark.parametrize("name", ["MeanOfPatches", "SeqPool", "MeanOfAll", "Registers", "Swin", "Convolutions"])
def test_where_all_tokens_are_read_nothing_is_changed(case: Callable[[str, str], Case], name: str) -> None:
    """A mean, learned pooling, a class token beside a mean: every row is needed."""
    net, path = case(name, "script")
    model, _ = exposed(path, net.size)
    assert narrow(model, net.size) == 0
    assert all(value.uses() for value in model.graph.initializers.values())
    pixels = noise(2, net.size)
    with torch.inference_mode():
        np.testing.assert_allclose(answers(model, pixels)["logits"], net(torch.from_numpy(pixels)).numpy(), atol=1e-4)


def _rows_of_the_last_product(proto: onnx.ModelProto, pixels: np.ndarray) -> int:
    """Of the last linear layer that works on tokens, when it is run."""
    watched = onnx.ModelProto.FromString(proto.SerializeToString())
    products = [node for node in proto.graph.node if node.op_type == "MatMul"]
    names = {name for node in products for name in (node.input[1], node.output[0])}
    there = {one.name for one in (*proto.graph.output, *proto.graph.initializer)}
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names - there)
    seen = answers(watched, pixels) | {one.name: onnx.numpy_helper.to_array(one) for one in proto.graph.initializer}
    return [seen[node.output[0]].shape[-2] for node in products if seen[node.input[1]].ndim == 2][-1]


X = np.random.default_rng(5).standard_normal((4, 3, 6, 5)).astype(np.float32)
W = np.random.default_rng(6).standard_normal((5, 5)).astype(np.float32)


def _chain(*nodes: onnx.NodeProto, also: tuple[str, ...] = (), **constants: np.ndarray) -> ir.Model:
    """pixel_values (n, 3, 6, 5) through nodes whose last output is `y`."""
    arrays = {"w": W, "axis": np.array([2]), "first": np.array([1]), "last": np.array([3]), **constants}
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["n", 3, 6, 5])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", *also)],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def _node(operator: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


PRODUCT = _node("MatMul", "pixel_values w", "a")
SLICE = _node("Slice", "b first last axis", "y")
CHAINS: dict[str, tuple[ir.Model, int]] = {
    "each number by itself": (_chain(PRODUCT, _node("Relu", "a", "b"), SLICE), 1),
    "residual": (_chain(PRODUCT, _node("Add", "a pixel_values", "b"), SLICE), 1),
    "an operand that is broadcast": (
        _chain(PRODUCT, _node("Add", "a c", "b"), SLICE, c=np.ones((1, 1, 1, 5), np.float32)), 1),
    "an operand of full length": (
        _chain(PRODUCT, _node("Mul", "a c", "b"), SLICE, c=np.arange(30, dtype=np.float32).reshape(6, 5)), 1),
    "turned and folded": (
        _chain(PRODUCT, _node("Transpose", "a", "t", perm=[2, 0, 1, 3]), _node("Reshape", "t s", "r"),
               _node("Transpose", "r", "b", perm=[1, 2, 0]), SLICE,
               s=np.array([6, -1, 15]), axis=np.array([2])), 1),
    "a sum over other axes": (
        _chain(PRODUCT, _node("ReduceMean", "a m", "b", keepdims=1), SLICE, m=np.array([3])), 1),
    "axes of one come and go": (
        _chain(PRODUCT, _node("Unsqueeze", "a m", "u"), _node("Squeeze", "u m", "b"), SLICE, m=np.array([1])), 1),
    "columns": (
        _chain(PRODUCT, _node("Identity", "a", "b"), SLICE, axis=np.array([3])), 1),
    "a shape read from what is chosen of": (
        _chain(PRODUCT, _node("Relu", "a", "b"), _node("Shape", "b", "s"), _node("Reshape", "b s", "c"),
               _node("Slice", "c first last axis", "y")), 1),
    "a length copied from its own place": (
        _chain(PRODUCT, _node("Reshape", "a s", "b"), SLICE, s=np.array([-1, 3, 0, 5])), 1),
    "a length copied from another place": (
        _chain(_node("MatMul", "pixel_values w", "a"), _node("Slice", "a zero four axis", "square"),
               _node("Reshape", "square s", "r"), _node("Gather", "r first", "y", axis=1), w=W[:, :4],
               zero=np.array([0]), four=np.array([4]), s=np.array([-1, 4, 0]), first=np.array(1)), 0),
    "axes of one, whichever they are": (
        _chain(PRODUCT, _node("Unsqueeze", "a m", "u"), _node("Squeeze", "u", "b"),
               _node("Gather", "b zero", "y", axis=-2), m=np.array([1]), zero=np.array(0)), 0),
    "the first pictures": (
        _chain(PRODUCT, _node("Slice", "a zero three zero", "b"), SLICE, zero=np.array([0]), three=np.array([3])), 0),
    "an output before": (_chain(PRODUCT, _node("Relu", "a", "b"), SLICE, also=("b",)), 0),
    "read whole elsewhere": (
        _chain(PRODUCT, _node("Relu", "a", "b"), _node("Slice", "b first last axis", "c"),
               _node("ReduceMean", "b m", "d", keepdims=1), _node("Add", "c d", "y"), m=np.array([2, 3])), 0),
    "mixed along the axis": (_chain(PRODUCT, _node("Softmax", "a", "b", axis=2), SLICE), 0),
    "normed over the axis": (
        _chain(PRODUCT, _node("LayerNormalization", "a c", "b", axis=2), SLICE, c=np.ones((6, 5), np.float32)), 0),
    "more than half": (_chain(PRODUCT, _node("Relu", "a", "b"), SLICE, last=np.array([5])), 0),
    "of the pictures": (
        _chain(PRODUCT, _node("Relu", "a", "b"), SLICE, axis=np.array([0]),
               first=np.array([0]), last=np.array([1])), 0),
    "two ranges of one axis": (
        _chain(PRODUCT, _node("Relu", "a", "b"), _node("Slice", "b first last axis", "c"),
               _node("Gather", "b zero", "d", axis=2), _node("Unsqueeze", "d axis", "e"), _node("Add", "c e", "y"),
               zero=np.array(0)), 1),
    "two axes": (
        _chain(PRODUCT, _node("Relu", "a", "b"), _node("Gather", "b zero", "c", axis=2),
               _node("Gather", "b zero", "d", axis=1), _node("ReduceSum", "c", "e", keepdims=0),
               _node("Add", "d e", "y"), zero=np.array(0)), 0),
    "counted from the end": (
        _chain(PRODUCT, _node("Relu", "a", "b"), _node("Gather", "b last", "y", axis=-2), last=np.array(-1)), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_a_choice_moves_only_over_what_does_not_mix_what_it_chooses_from(name: str) -> None:
    """The numbers are those of the graph as it was; how many products get smaller is known."""
    model, products = CHAINS[name]
    before = ir.to_proto(model)
    assert narrow(model, (6, 5)) == products
    proto = ir.to_proto(model)
    for count in (1, 4):
        for ours, theirs in zip(answers(proto, X[:count]).values(), answers(before, X[:count]).values(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)

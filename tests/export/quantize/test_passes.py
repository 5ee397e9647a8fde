"""The parts: rank correlation, the float graph, steps of 8 bits, half precision."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import spearmanr

from export.quantize.agreement import rank_correlation
from export.quantize.float_graph import float_graph, weighted_nodes
from export.quantize.int8 import calibrated_values, to_int8
from export.quantize.ranges import measured_steps, step_between
from export.runtime import open_graph
from saccade.bundle import Bundle, open_bundle
from tests.export.conftest import noise


def test_rank_correlation_is_spearmans() -> None:
    """As scipy has it, ties among them."""
    generator = np.random.default_rng(0)
    ours, theirs = generator.integers(0, 9, (2, 5, 4, 30))
    found = rank_correlation(ours, theirs)
    expected = [
        np.mean([spearmanr(a, b).statistic for a, b in zip(*both, strict=True)])
        for both in zip(ours, theirs, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_maps_without_an_order_agree_with_each_other_only() -> None:
    """A map of equal numbers says nothing of where to look."""
    flat, other = np.full((1, 1, 6), 0.5), np.arange(6.0)[None, None]
    assert rank_correlation(flat, flat) == 1
    assert rank_correlation(flat, other) == rank_correlation(other, flat) == 0


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (-1.0, 0.0), (-2.5, 4.0), (0.0, 0.0), (-1e-30, 1e30)])
def test_a_step_covers_its_range_and_has_a_code_for_0(low: float, high: float) -> None:
    """Both ends are within half a step of a code from 0 to 255; 0 is one of them."""
    scale, zero = step_between(low, high)
    assert 0 < scale < np.inf
    for value in (low, high, 0.0):
        code = np.clip(np.rint(value / np.float64(scale)) + float(zero), 0, 255)
        assert abs((code - float(zero)) * np.float64(scale) - value) <= 0.51 * scale * (1 if value else 0)


def test_the_float_graph_answers_as_the_bundle_does(bundle: Bundle) -> None:
    """Folded norms, turned weights: another way to the same numbers."""
    pixels = noise(bundle.manifest.name, 3).numpy()
    model = float_graph(bundle)
    seen = open_graph(ir.to_proto(model).SerializeToString())(pixels)
    for name, expected in open_graph(bundle.graph)(pixels).items():
        np.testing.assert_allclose(seen[name], expected, atol=1e-4)
    assert not [
        node
        for node in model.graph
        if node.op_type == "BatchNormalization" and node.inputs[0].producer().op_type == "Conv"
    ]
    assert "head.weight" not in [one.name for one in weighted_nodes(model)]


def parts_of_a_graph(folder: Path) -> Bundle:
    """Linear layers as other exporters write them: Gemm with and without transB, a weight that two nodes share."""
    generator = np.random.default_rng(3)
    weights = {
        "first": generator.normal(size=(48, 32)), "shared": generator.normal(size=(32, 32)) / 6,
        "bias": generator.normal(size=32), "head": generator.normal(size=(5, 32)),
    }  # fmt: skip
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Flatten", ["pixel_values"], ["flat"]),
            node("Gemm", ["flat", "first", "bias"], ["a"]),
            node("Relu", ["a"], ["b"]),
            node("Gemm", ["b", "shared", "bias"], ["c"], transB=1),
            node("Relu", ["c"], ["d"]),
            node("MatMul", ["d", "shared"], ["e"]),
            node("Gemm", ["e", "head"], ["logits"], transB=1),
        ],
        "net",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return Bundle(folder, None)  # type: ignore[arg-type]  # the passes read the graph alone


def test_gemms_and_shared_weights_are_quantised_too(tmp_path: Path) -> None:
    """The sums are those of numpy's integers, typed anew."""
    bundle = parts_of_a_graph(tmp_path)
    pixels = np.random.default_rng(4).normal(size=(6, 3, 4, 4)).astype(np.float32)
    expected = open_graph(bundle.graph)(pixels)["logits"]
    model = float_graph(bundle)
    nodes = weighted_nodes(model)
    assert len(nodes) == 3
    steps = measured_steps(model, calibrated_values(nodes), [pixels])
    to_int8(model, steps)
    proto = ir.to_proto(model)
    assert (
        len([tensor for tensor in proto.graph.initializer if tensor.data_type == TensorProto.INT8 and tensor.dims[1:]])
        == 3
    )
    seen = open_graph(proto.SerializeToString())(pixels)["logits"]
    weights = {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float64)
        for tensor in onnx.load(bundle.graph).graph.initializer
    }

    def product(data: np.ndarray, weight: np.ndarray) -> np.ndarray:
        scale, zero = step_between(min(data.min(), 0), max(data.max(), 0))
        codes = np.clip(np.rint(data / scale) + zero, 0, 255) - zero
        steps = np.abs(weight).max(0) / 63
        return codes.astype(np.int64) @ np.rint(weight / steps).astype(np.int64) * (np.float64(scale) * steps)

    x = np.maximum(product(pixels.reshape(6, -1).astype(np.float64), weights["first"]) + weights["bias"], 0)
    x = np.maximum(product(x, weights["shared"].T) + weights["bias"], 0)
    typed = product(x, weights["shared"]) @ weights["head"].T
    largest = np.abs(expected).max()
    assert (
        np.abs(seen - typed).max() < 0.02 * largest
    )  # ranges were measured on the float net, here on what is left of it
    assert np.abs(seen - expected).max() < 0.1 * largest


def test_half_precision_leaves_softmax_and_the_end_in_float32(variants: Path) -> None:
    """No value of float16 reaches a softmax, the head or an output; large products are all in float16."""
    for name in ("tiny-cct", "tiny-vit", "tiny-hybrid"):
        proto = onnx.load(open_bundle(variants / f"{name}-float16" / "1").graph)
        kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(proto)
        kinds |= {
            value.name: value.type.tensor_type.elem_type
            for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
        }
        assert {kinds[output.name] for output in proto.graph.output} == {TensorProto.FLOAT}
        for node in proto.graph.node:
            if node.op_type == "Softmax" or "logits" in node.output:
                assert {kinds[name] for name in node.input} == {TensorProto.FLOAT}
            if node.op_type == "Conv" or (node.op_type == "MatMul" and node.input[1].endswith(".weight")):
                wide = node.input[1] == "seq_pool.weight"
                assert kinds[node.input[1]] == (TensorProto.FLOAT if wide else TensorProto.FLOAT16)

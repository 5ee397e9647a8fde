"""Graphs after the optimizers that people run: the attention is still found, and still the net's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.transformers import optimizer

from export.graph.prepare import prepare
from export.graph.read import read_model
from saccade.errors import DataError
from tests.export.graph.conftest import Case, answers, exposed, noise, write


def assert_holds(case: Case, path: Path) -> None:
    """Attention to 1e-5 and logits to 1e-4 of the eager net's."""
    model, found = exposed(path, case.net.size)
    pixels = noise(3, case.net.size)
    seen = answers(model, pixels)
    with torch.inference_mode():
        logits = case.net(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(seen["logits"], logits, atol=1e-4)
    assert len(found.layers) == len(case.net.seen)
    for layer, attention in zip(found.layers, case.net.seen, strict=True):
        np.testing.assert_allclose(seen[layer.output], attention.numpy(), atol=1e-5)
    assert found.maps.rollout == "rollout"


def optimised(path: Path, level: str, to: Path) -> Path:
    """By ONNX Runtime, offline."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(to)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return to


@pytest.fixture(scope="module")
def newest(case: Callable[[str, str], Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The class-token ViT with scaled_dot_product_attention in opset 23, which has an operator for it."""
    net = case("FusedVit", "script").net
    return write(net, net.size, tmp_path_factory.mktemp("newest") / "vit.onnx", "open", 23)


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED"])
@pytest.mark.parametrize("how", ["script", "fixed"])
def test_after_onnx_runtimes_own_optimizer(
    case: Callable[[str, str], Case], tmp_path: Path, level: str, how: str
) -> None:
    """What `optimized_model_filepath` writes: folded constants, MatMuls made Gemms, fused norms and scales."""
    one = case("Vit", how)
    assert_holds(one, optimised(one.path, level, tmp_path / "optimised.onnx"))


def test_a_layout_for_one_processor_is_refused_with_advice(case: Callable[[str, str], Case], tmp_path: Path) -> None:
    """The highest level writes blocks of channels as this machine likes them; the message names the level to use."""
    one = case("Vit", "script")
    with pytest.raises(DataError, match="no further than ONNX Runtime's extended level"):
        exposed(optimised(one.path, "ALL", tmp_path / "optimised.onnx"), one.net.size)


@pytest.mark.parametrize("fused", ["Attention", "SkipLayerNormalization"])
def test_after_onnxruntime_transformers(case: Callable[[str, str], Case], tmp_path: Path, fused: str) -> None:
    """`onnxruntime.transformers.optimizer`, whose fusions are undone."""
    one = case("BertVit" if fused == "Attention" else "Vit", "script")
    made = optimizer.optimize_model(str(one.path), model_type="vit", num_heads=2, hidden_size=16)
    made.save_model_to_file(str(tmp_path / "fused.onnx"))
    domains = {(node.domain, node.op_type) for node in onnx.load(tmp_path / "fused.onnx").graph.node}
    assert ("com.microsoft", fused) in domains
    assert_holds(one, tmp_path / "fused.onnx")


def test_scaled_dot_product_attention_in_the_newest_opset(
    case: Callable[[str, str], Case], newest: Path, tmp_path: Path
) -> None:
    """Opset 23 has Attention as an operator; with and without the optimizer its weights are outputs afterwards."""
    one = case("FusedVit", "script")
    assert "Attention" in {node.op_type for node in onnx.load(newest).graph.node}
    assert_holds(one, newest)
    assert_holds(one, optimised(newest, "EXTENDED", tmp_path / "optimised.onnx"))


def test_scaled_dot_product_attention_as_torchscript_writes_it(case: Callable[[str, str], Case]) -> None:
    """The scale's root on queries and keys, in opset 18."""
    one = case("FusedVit", "script")
    assert_holds(one, one.path)


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_old_opsets_are_converted(case: Callable[[str, str], Case], tmp_path: Path, opset: int) -> None:
    """A file of five years ago: Softmax, Split and Squeeze meant other things."""
    net = case("BertVit", "script").net
    path = write(net, net.size, tmp_path / "old.onnx", "script", opset)
    assert_holds(case("BertVit", "script"), path)


def test_a_softmax_that_is_written_out_is_one(case: Callable[[str, str], Case], tmp_path: Path) -> None:
    """Powers of what is below the largest, by their sum: as attention written by hand is exported."""
    one = case("BertVit", "script")
    proto = onnx.load(one.path)
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for node in nodes:
        if node.op_type != "Softmax":
            proto.graph.node.append(node)
            continue
        (given,), (result,) = node.input, node.output
        for operator, inputs, output in (
            ("ReduceMax", [given, "last"], f"{result}.most"), ("Sub", [given, f"{result}.most"], f"{result}.below"),
            ("Exp", [f"{result}.below"], f"{result}.powers"),
            ("ReduceSum", [f"{result}.powers", "last"], f"{result}.sum"),
            ("Div", [f"{result}.powers", f"{result}.sum"], result),
        ):  # fmt: skip
            proto.graph.node.append(onnx.helper.make_node(operator, inputs, [output], name=output))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "last"))
    onnx.save(proto, tmp_path / "written.onnx")
    assert_holds(one, tmp_path / "written.onnx")


class _Noise(CalibrationDataReader):
    def __init__(self, size: tuple[int, int]) -> None:
        self._left = [{"x": noise(2, size, seed)} for seed in range(3)]

    def get_next(self):
        return self._left.pop() if self._left else None


def test_eight_bits_are_served_as_they_are(case: Callable[[str, str], Case], tmp_path: Path) -> None:
    """A static QDQ graph answers as it did, and gives the float softmax between its quantised products."""
    net, path = case("Vit", "script")
    quantize_static(
        str(path), str(tmp_path / "qdq.onnx"), _Noise(net.size), quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
    )  # fmt: skip
    model, found = exposed(tmp_path / "qdq.onnx", net.size)
    assert [layer.grid for layer in found.layers] == [(4, 6)] * 2
    pixels = noise(2, net.size)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(tmp_path / "qdq.onnx"), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"x": pixels})
    seen = answers(model, pixels)
    np.testing.assert_allclose(seen["logits"], logits, atol=1e-5)
    np.testing.assert_allclose(seen["attention_01"].sum(-1), 1, atol=1e-5)


def test_products_of_integers_are_served_without_their_attention(
    case: Callable[[str, str], Case], tmp_path: Path
) -> None:
    """In the format of quantised operators nothing says where the numbers lie; the logits are the file's."""
    net, path = case("Vit", "script")
    quantize_static(
        str(path), str(tmp_path / "operators.onnx"), _Noise(net.size), quant_format=QuantFormat.QOperator,
        op_types_to_quantize=["MatMul"],
    )  # fmt: skip
    model, found = exposed(tmp_path / "operators.onnx", net.size)
    assert found.layers == ()
    pixels = noise(2, net.size)
    (expected,) = answers(onnx.load(tmp_path / "operators.onnx"), pixels).values()
    np.testing.assert_allclose(answers(model, pixels)["logits"], expected, atol=1e-5)


def test_dynamic_quantisation_is_refused(case: Callable[[str, str], Case], tmp_path: Path) -> None:
    """One scale for the whole batch would make an answer depend on its neighbours; the message says what to export."""
    net, path = case("Vit", "script")
    quantize_dynamic(str(path), str(tmp_path / "dynamic.onnx"))
    with pytest.raises(DataError, match=r"DynamicQuantizeLinear .*depend on its neighbours; export QDQ \(static\)"):
        exposed(tmp_path / "dynamic.onnx", net.size)


def test_half_precision_is_refused(case: Callable[[str, str], Case], tmp_path: Path) -> None:
    """A graph that computes in float16 would not hold the promises of float32: the message says what to export."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    net, path = case("Vit", "script")
    half = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    onnx.save(half, tmp_path / "half.onnx")
    with pytest.raises(DataError, match="is float16; the graph must compute in float32"):
        prepare(read_model(tmp_path / "half.onnx"), net.size)

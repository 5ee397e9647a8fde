"""The parts: rank correlation, the float graph, steps of 8 bits, half precision."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import spearmanr

from export.head import head_of
from export.quantize.agreement import Agreement, answer_by, answer_of, answers, compare, rank_correlation
from export.quantize.choose import Bounds
from export.quantize.float16 import to_float16
from export.quantize.float_graph import float_graph, weighted_nodes
from export.quantize.int8 import calibrated_values, to_int8
from export.quantize.parts import sizes
from export.quantize.ranges import measured_steps, picture_step, step_between
from export.runtime import open_graph, open_relevance
from saccade.bundle import Bundle, open_bundle
from saccade.manifest import Preprocessing
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


def normed_convolution(folder: Path, gain: np.ndarray, shift: np.ndarray) -> Bundle:
    """A convolution of 16 channels and its batch norm, of mean 0.1 and variance 2."""
    generator = np.random.default_rng(5)
    channels = len(gain)
    weights = {
        "weight": generator.normal(size=(channels, 3, 3, 3)) / 5, "gain": gain, "shift": shift,
        "mean": np.full(channels, 0.1), "variance": np.full(channels, 2.0),
    }  # fmt: skip
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Conv", ["pixel_values", "weight"], ["a"], pads=[1, 1, 1, 1]),
            node("BatchNormalization", ["a", "gain", "shift", "mean", "variance"], ["b"], epsilon=1e-12),
            node("Identity", ["b"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", channels, 4, 4])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return Bundle(folder, None)  # type: ignore[arg-type]  # as above


def test_a_channel_of_nearly_no_weights_keeps_its_bias(tmp_path: Path) -> None:
    """A gain of 0, or of 1e-9 as weight decay leaves it, makes a channel its shift: not 0, and nothing overflows."""
    gain, shift = np.linspace(0.5, 1.5, 16), np.linspace(-3, 3, 16)
    gain[[2, 9]], gain[[4, 12]] = 0.0, 1e-9
    bundle = normed_convolution(tmp_path, gain, shift)
    pixels = np.random.default_rng(6).normal(size=(5, 3, 4, 4)).astype(np.float32)
    expected = open_graph(bundle.graph)(pixels)["logits"]
    np.testing.assert_allclose(expected[:, [2, 9]], np.broadcast_to(shift[[2, 9], None, None], (5, 2, 4, 4)), atol=1e-6)
    model = float_graph(bundle)
    steps = measured_steps(model, calibrated_values(weighted_nodes(model)), [pixels])
    to_int8(model, steps)
    seen = open_graph(ir.to_proto(model).SerializeToString())(pixels)["logits"]
    assert np.abs(seen - expected).max() < 0.02 * np.ptp(expected)


def test_no_weights_and_no_pictures_are_no_numbers_lost(tmp_path: Path) -> None:
    """Channels of zeros on an input of zeros: every step is the least that there is, and their product is above 0."""
    bundle = normed_convolution(tmp_path, np.zeros(16), np.linspace(0, 3, 16))
    pixels = np.zeros((1, 3, 4, 4), np.float32)
    expected = open_graph(bundle.graph)(pixels)["logits"]
    model = float_graph(bundle)
    to_int8(model, measured_steps(model, calibrated_values(weighted_nodes(model)), iter([pixels])))
    np.testing.assert_allclose(
        open_graph(ir.to_proto(model).SerializeToString())(pixels)["logits"], expected, atol=0.02
    )


def test_numbers_beyond_half_precision_stay_in_float32(tmp_path: Path) -> None:
    """A weight above 65,504 is not cut to it: its product is float32, and the answers are the float graph's."""
    bundle = parts_of_a_graph(tmp_path)
    proto = onnx.load(bundle.graph)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name == "first":
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1e5), tensor.name))
        if tensor.name == "shared":
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1e-3), tensor.name))
    onnx.save(proto, bundle.graph)
    pixels = 1e-3 * np.random.default_rng(4).normal(size=(6, 3, 4, 4)).astype(np.float32)
    expected = open_graph(bundle.graph)(pixels)["logits"]
    model = float_graph(bundle)
    to_float16(model)
    proto = ir.to_proto(model)
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert kinds["first"] == TensorProto.FLOAT
    assert TensorProto.FLOAT16 in {kind for name, kind in kinds.items() if name.startswith("shared")}
    seen = open_graph(proto.SerializeToString())(pixels)["logits"]
    assert np.abs(seen - expected).max() < 0.01 * np.abs(expected).max()


def test_what_a_graph_gives_is_float32_though_more_hangs_on_it(tmp_path: Path) -> None:
    """Weights of attention that are guarded against rows of no key stand behind the softmax."""
    lines = """q = MatMul(pixel_values, w)
        t = Transpose<perm: ints = [0, 2, 1]>(q)
        s = MatMul(q, t)
        p = Softmax(s)
        n = IsNaN(p)
        attention_00 = Where(n, zero, p)
        v = MatMul(attention_00, q)
        o = MatMul(v, w)
        logits = ReduceMean<keepdims: int = 0>(o, one)"""
    weights = {"w": np.random.default_rng(3).normal(size=(32, 32)) / 6, "zero": np.array(0.0)}
    graph = helper.make_graph(
        [onnx.parser.parse_node(line.strip()) for line in lines.splitlines()],
        "net",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 5, 32])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("logits", "attention_00")],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()]
        + [numpy_helper.from_array(np.array([1]), "one")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "model.onnx"
    )
    pixels = np.random.default_rng(4).normal(size=(3, 5, 32)).astype(np.float32)
    model = float_graph(Bundle(tmp_path, None))  # type: ignore[arg-type]  # as above
    to_float16(model)
    seen = open_graph(ir.to_proto(model).SerializeToString())(pixels)
    for name, values in open_graph(tmp_path / "model.onnx")(pixels).items():
        assert seen[name].dtype == np.float32
        np.testing.assert_allclose(seen[name], values, atol=0.01)


def test_black_and_white_are_within_the_steps_of_the_input() -> None:
    """Whatever pictures calibrated: from (0 - mean) / std to (1 - mean) / std of every channel."""
    base = {"height": 8, "width": 8, "fit": "stretch"}
    for mean, std in (((0.5, 0.4, 0.3), (0.2, 0.3, 0.1)), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), ((2.0,) * 3, (1.0,) * 3)):
        scale, zero = picture_step(Preprocessing.model_validate({**base, "mean": mean, "std": std}))
        for value in (0.0, 1.0):
            for one, other in zip(mean, std, strict=True):
                seen = (value - one) / other
                assert -0.51 <= seen / scale + zero <= 255.51


def test_the_layer_that_agrees_least_is_judged_by_itself(models: Path) -> None:
    """Good layers do not hide one that looks elsewhere: the mean and the least are Spearman's, as scipy has it."""
    bundle = open_bundle(models / "tiny-vit" / "1")
    manifest, pixels = bundle.manifest, noise("tiny-vit", 2).numpy()
    answer, labels = answer_of(bundle), np.zeros(2, np.int64)

    def other(pixels: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
        outputs = answer(pixels, classes)
        return {**outputs, "attention_01": outputs["attention_01"][..., ::-1]}

    theirs = list(answers(answer, manifest, head_of(bundle), [(pixels, labels)]))
    found = compare(other, manifest, head_of(bundle), [(pixels, labels)], theirs)
    middle = answer(pixels, np.zeros((2, 1), np.int64))["attention_01"]
    rows = np.unique(np.linspace(0, middle.shape[-1] - 1, 16).astype(int))
    pairs = middle[:, :, rows].reshape(-1, middle.shape[-1])
    least = np.mean([spearmanr(row, row[::-1]).statistic for row in pairs])
    assert found.maps["attention, least layer"] == pytest.approx(least)
    assert found.maps["attention"] == pytest.approx((2 + least) / 3)


@pytest.mark.parametrize(("name", "wanted"), [("tiny-vit", "relevance"), ("tiny-resnet", "grad_cam")])
def test_maps_of_the_gradient_are_compared_for_the_parents_first_label(models: Path, name: str, wanted: str) -> None:
    """Whatever the other's own is: Spearman's of that class's map, as scipy has it, mean over the pictures."""
    bundle = open_bundle(models / name / "1")
    manifest, pixels, labels = bundle.manifest, noise(name, 3).numpy(), np.zeros(3, np.int64)
    explain = open_relevance(bundle.relevance)

    def other(pixels: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
        outputs = dict(explain(pixels, classes))
        return {**outputs, "logits": -outputs["logits"], wanted: outputs[wanted] ** 2 + outputs[wanted][..., ::-1]}

    theirs = list(answers(answer_of(bundle), manifest, head_of(bundle), [(pixels, labels)]))
    found = compare(other, manifest, head_of(bundle), [(pixels, labels)], theirs)
    top = open_graph(bundle.graph)(pixels)["logits"].argmax(1)
    maps = explain(pixels, top[:, None])[wanted][:, 0]
    expected = np.mean([spearmanr(one, one**2 + one[::-1]).statistic for one in maps])
    assert found.maps[wanted] == pytest.approx(expected, abs=1e-6)
    assert manifest.maps.gradients is not None
    assert {key for key, value in found.maps.items() if value < 1 - 1e-6} == {wanted}
    assert set(manifest.maps.gradients.names) <= found.maps.keys()


def test_a_variant_to_be_has_the_maps_of_its_parent(models: Path) -> None:
    """Before there are files of it: of the parent's own graph they are the parent's maps."""
    bundle, pixels = open_bundle(models / "tiny-cct" / "1"), noise("tiny-cct", 2).numpy()
    classes = np.array([[3], [8]])
    seen = answer_by(ir.load(bundle.graph), bundle.manifest, bundle.folder)(pixels, classes)
    for name, values in open_relevance(bundle.relevance)(pixels, classes).items():
        np.testing.assert_allclose(seen[name], values, atol=1e-6)


GOOD = Agreement(pictures=100, parent_top1=0.9, top1=0.9, same_label=1.0, maps={"rollout": 0.99}, logits=0.01)


@pytest.mark.parametrize("maps", [{"class": np.nan, "rollout": 0.99}, {"rollout": 0.99, "class": np.nan}])
def test_what_is_no_number_agrees_with_nothing(maps: dict[str, float]) -> None:
    """In whatever order the maps stand; nor logits that are none."""
    assert Bounds().hold(GOOD)
    bad = GOOD._replace(maps=maps)
    assert not Bounds().hold(bad)
    assert np.isnan(bad.worst_map)
    assert bad.lacking == ("class",)
    assert not Bounds().hold(GOOD._replace(logits=np.nan))
    assert not Bounds().hold(GOOD._replace(maps={"attention": 0.99, "attention, least layer": 0.9}))
    spoiled = np.array([[[0.1, np.nan, 0.3]]])
    assert np.isnan(rank_correlation(spoiled, spoiled)).all()


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(5000, 256, (256, 1000)), (5000, 1200, (1200, 1200)), (5000, 4000, (1250, 1250)), (140, 30, (30, 35)),
     (4, 256, (1, 1)), (5000, None, (0, 0))],
)  # fmt: skip
def test_a_thousand_or_a_quarter_choose(total: int, count: int | None, expected: tuple[int, int]) -> None:
    """However few calibrate: one label of 256 is nearly half a point, and the wrong layers would be kept."""
    assert sizes(total, count) == expected


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

"""How far a variant may be from golden.npz: each kind of output by its own measure, so that wrong maps never serve."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.quantize.reference import VariantOf
from export.quantize.tolerance import shaken, tolerance_of
from export.runtime import open_graph
from export.verify import prove
from export.weights import TOLERANCE
from saccade.bundle import Bundle, find_bundles, open_bundle, update_bundle
from saccade.errors import BundleError
from saccade.golden import check_golden
from saccade.manifest import AttentionLayer
from saccade.preprocess import normalize
from tests.conftest import ROOT
from tests.export.test_verify import restate_checksum
from tests.saccade.test_golden import large

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
Nodes = tuple[list[NodeProto], dict[str, np.ndarray]]


def test_of_each_output_a_fifth_of_its_span_at_most_is_allowed(variant: Bundle) -> None:
    """Or as little as of a float bundle; the span is greatest less least on the golden pictures, layer by layer."""
    tolerance, spec = variant.manifest.tolerance, variant.manifest.preprocessing
    with np.load(variant.golden, allow_pickle=False) as file:
        answers = open_graph(variant.graph)(normalize(file["pictures"], spec))
    gradients = variant.manifest.maps.gradients
    assert gradients is not None
    assert set(tolerance[CPU]) == {*variant.manifest.outputs, *gradients.names}
    for name in variant.manifest.outputs:
        allowed = tolerance[CPU][name]
        kind = name.rstrip("0123456789").rstrip("_")
        assert allowed == TOLERANCE[CPU][kind] or allowed <= 0.2 * np.ptp(answers[name]) + 1e-6, name
        assert tolerance[CUDA][name] == pytest.approx(allowed + TOLERANCE[CUDA][kind])


def test_the_tolerance_is_of_the_golden_pictures_alone(variants: Path) -> None:
    """On whatever pictures parity is measured, the manifest says the same."""
    bundle = open_bundle(variants / "tiny-cct-int8" / "1")
    reference = VariantOf(bundle)
    reference.pictures = 3
    proof = prove(bundle, reference, None)
    assert proof.parity.pictures == 3
    assert proof.tolerance == bundle.manifest.tolerance


def rollout(order: Sequence[int], mix: str) -> Nodes:
    """Rollout of tiny-cct's outputs, typed anew in ONNX: through the layers in that order."""
    make, nodes, reduce = helper.make_node, [], {"mean": "ReduceMean", "max": "ReduceMax"}
    nodes.append(make("Unsqueeze", ["pooling", "new.1"], ["new.row0"]))
    for step, layer in enumerate(order):
        attention, mixed = f"attention_{layer:02d}", f"new.mixed{layer}"
        if mix == "first":
            nodes.append(make("Gather", [attention, "new.0"], [mixed], axis=1))
        else:
            nodes.append(make(reduce[mix], [attention, "new.1"], [mixed], keepdims=0))
        row = f"new.row{step}"
        nodes += [
            make("MatMul", [row, mixed], [f"{row}.seen"]),
            make("Add", [row, f"{row}.seen"], [f"{row}.both"]),
            make("Mul", [f"{row}.both", "new.half"], [f"new.row{step + 1}"]),
        ]
    nodes.append(make("Squeeze", [f"new.row{len(order)}", "new.1"], ["rollout"]))
    return nodes, {"new.1": np.array([1]), "new.0": np.array(0), "new.half": np.array(0.5, np.float32)}


def upside_down() -> Nodes:
    node = helper.make_node("Gather", ["class_tokens.raw", "new.order"], ["class_tokens"], axis=1)
    return [node], {"new.order": np.arange(15, -1, -1)}


def times_0() -> Nodes:
    return [helper.make_node("Mul", ["class_tokens.raw", "new.0"], ["class_tokens"])], {
        "new.0": np.array(0, np.float32)
    }


def rewritten(bundle: Bundle, output: str, nodes: Nodes) -> Bundle:
    """The bundle with a graph that gives an output by other nodes, and a checksum that fits it."""
    proto = onnx.load(bundle.graph, load_external_data=False)
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == output:
                    names[index] = f"{output}.raw"
    proto.graph.node.extend(nodes[0])
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in nodes[1].items())
    onnx.save(proto, bundle.graph)
    return restate_checksum(bundle.folder, "model.onnx")


def heads_reversed(layer: AttentionLayer) -> Nodes:
    order = np.arange(layer.heads)[::-1].copy()
    return [helper.make_node("Gather", [f"{layer.output}.raw", "new.order"], [layer.output], axis=1)], {
        "new.order": order
    }


def keys_reversed(layer: AttentionLayer) -> Nodes:
    order = np.arange(layer.tokens)[::-1].copy()
    return [helper.make_node("Gather", [f"{layer.output}.raw", "new.order"], [layer.output], axis=3)], {
        "new.order": order
    }


def uniform(layer: AttentionLayer) -> Nodes:
    """Everything is looked at alike."""
    nodes = [
        helper.make_node("Mul", [f"{layer.output}.raw", "new.0"], ["new.zeros"]),
        helper.make_node("Add", ["new.zeros", "new.share"], [layer.output]),
    ]
    return nodes, {"new.0": np.array(0, np.float32), "new.share": np.array(1 / layer.tokens, np.float32)}


SHIPPED = [open_bundle(folder) for folder in find_bundles(ROOT / "models")]
WRONG_ATTENTION = [heads_reversed, keys_reversed, uniform]


def copied(folder: Path, place: Path) -> Bundle:
    shutil.copytree(folder, place / folder.name)
    return open_bundle(place / folder.name / "1")


def load(bundle: Bundle) -> None:
    """As the service does, on this provider."""
    check_golden(bundle.manifest, bundle.golden, CPU, open_graph(bundle.graph))


@pytest.mark.parametrize(
    ("order", "mix"), [((0, 1), "mean"), ((1, 0), "max"), ((1, 0), "first")], ids=["swapped", "max", "head 0"]
)
def test_another_rollout_is_found_at_load(variants: Path, tmp_path: Path, order: tuple[int, int], mix: str) -> None:
    """Layers in the other order, the largest head in place of their mean, one head alone."""
    right = copied(variants / "tiny-cct-int8", tmp_path / "right")
    load(rewritten(right, "rollout", rollout((1, 0), "mean")))
    bundle = copied(variants / "tiny-cct-int8", tmp_path / "wrong")
    with pytest.raises(BundleError, match=r"tiny-cct-int8@1 on CPUExecutionProvider: output rollout is \S+ away"):
        load(rewritten(bundle, "rollout", rollout(order, mix)))


@pytest.mark.parametrize("wrong", WRONG_ATTENTION)
def test_another_attention_is_found_at_load(variants: Path, tmp_path: Path, wrong: Callable[..., Nodes]) -> None:
    """Of each layer of each variant, of the shipped ones too, however evenly a layer looks at things."""
    small = [open_bundle(folder) for folder in find_bundles(variants)]
    for bundle in (one for one in (*small, *SHIPPED) if one.manifest.parent is not None):
        for layer in bundle.manifest.attention:
            changed = copied(bundle.folder.parent, tmp_path / layer.output)
            said = rf"{bundle.manifest.id} on CPUExecutionProvider: output {layer.output} is \S+ away"
            with pytest.raises(BundleError, match=said):
                load(rewritten(changed, layer.output, wrong(layer)))


def test_a_tolerance_that_lets_anything_pass_is_refused_at_load(copy: Path) -> None:
    """Those of variants are measured, so nobody would see by eye that one is too wide."""
    bundle = open_bundle(copy / "tiny-cct-int8" / "1")
    limits = {**bundle.manifest.tolerance[CPU], "attention_01": 0.9}
    wide = update_bundle(bundle, {"tolerance": {**bundle.manifest.tolerance, CPU: limits}})
    with pytest.raises(BundleError, match=r"0\.9 is allowed of output attention_01, whose golden values span 0\.\d+"):
        load(wide)


@pytest.mark.parametrize("wrong", [upside_down, times_0])
def test_another_class_map_is_found_at_load(variants: Path, tmp_path: Path, wrong: Callable[[], Nodes]) -> None:
    """Whose tokens are in the reverse order, though their sum is the same; or nothing at all."""
    bundle = rewritten(copied(variants / "tiny-resnet-int8", tmp_path), "class_tokens", wrong())
    with pytest.raises(
        BundleError, match=r"tiny-resnet-int8@1 on CPUExecutionProvider: output class_tokens is \S+ away"
    ):
        load(bundle)


@pytest.mark.parametrize(("offset", "refused"), [(1.0, False), (1000.0, True)])
def test_golden_values_that_would_tell_nothing_are_refused(tmp_path: Path, offset: float, refused: bool) -> None:
    """Logits that differ by a few tenths around 1,000: half precision rounds away what a wrong graph would change."""
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("GlobalAveragePool", ["pixel_values"], ["a"]),
            node("Flatten", ["a"], ["b"]),
            node("Gemm", ["b", "weight", "bias"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(np.array([[1, -1], [1, 1], [0, 1]], np.float32), "weight"),
            numpy_helper.from_array(np.full(2, offset, np.float32), "bias"),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "model.onnx"
    )
    parent = {"name": "parent", "version": 1, "weights_sha256": "0" * 64}
    bundle = Bundle(tmp_path, large(precision="float16", parent=parent))
    if refused:
        with pytest.raises(
            BundleError, match=r"float16 rounds the logits of large@1 so roughly that \S+ would be allowed"
        ):
            tolerance_of(bundle)
    else:
        assert 1e-4 < tolerance_of(bundle)[CPU]["logits"] < 0.01


def test_what_is_finite_stays_so_when_it_is_moved(tmp_path: Path) -> None:
    """Masks are the largest number that there is; numpy has nothing to warn of."""
    constants = {
        "wide": np.array([np.finfo(np.float32).min, -np.inf, np.inf, 1.0, np.nan], np.float32),
        "narrow": np.array([np.finfo(np.float16).max, np.finfo(np.float16).min, -np.inf, 1.0], np.float16),
    }
    sums = [
        helper.make_node("Cast", ["narrow"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["wide"], ["w"]),
    ]
    graph = helper.make_graph(
        sums, "net", [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in ("cast", "w")],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "model.onnx")
    for seed in range(4):
        moved = onnx.load_from_string(shaken(tmp_path / "model.onnx", 2**-11, seed))
        for tensor in moved.graph.initializer:
            seen, was = numpy_helper.to_array(tensor), constants[tensor.name]
            assert (np.isfinite(seen) == np.isfinite(was)).all()
            assert (np.isinf(seen) == np.isinf(was)).all()
            np.testing.assert_allclose(seen[np.isfinite(was)], was[np.isfinite(was)], rtol=0.005)


def test_what_may_become_no_number_is_refused(tmp_path: Path) -> None:
    """A root of 0 that roundings make negative: no tolerance holds what is no number."""
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("GlobalAveragePool", ["pixel_values"], ["a"]),
            node("Flatten", ["a"], ["b"]),
            node("Sub", ["one", "same"], ["c"]),
            node("Sqrt", ["c"], ["d"]),
            node("Add", ["b", "d"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.ones(3, np.float32), name) for name in ("one", "same")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "model.onnx"
    )
    parent = {"name": "parent", "version": 1, "weights_sha256": "0" * 64}
    with pytest.raises(BundleError, match="so roughly that inf would be allowed"):
        tolerance_of(Bundle(tmp_path, large(precision="int8", parent=parent)))

"""`saccade verify` of variants: every promise, from the folder alone, and their parent where it is there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from export.quantize.parent import allowed
from export.runtime import open_graph
from export.verify import verify
from saccade.bundle import Bundle, open_bundle
from saccade.cli import main
from saccade.errors import BundleError
from saccade.golden import check_golden, made_pictures
from saccade.manifest import Manifest
from saccade.pooling import pooled_row
from saccade.preprocess import normalize
from tests.export.test_verify import restate_checksum

CPU = "CPUExecutionProvider"


def pictures(manifest: Manifest, count: int) -> np.ndarray:
    spec = manifest.preprocessing
    return normalize(made_pictures(count, spec.height, spec.width, 5), spec)


def test_every_promise_is_held(variant: Bundle) -> None:
    """What a float bundle is held to, a variant is; and its maps to its parent's, by rank."""
    parity = variant.manifest.parity
    assert parity is not None
    assert parity.pictures == 16
    assert "made pictures, seed 11, against the variant's own graph by onnx's evaluator" in parity.source
    assert parity.source.endswith(f"and against its parent {variant.manifest.parent.id}")
    limits = {name: check.allowed for name, check in parity.checks.items()}
    assert limits["alone = in a batch, scores"] == 1e-5
    assert limits["logits"] >= 1e-4
    assert "attention" not in limits  # each layer has a limit of its own
    assert all(limits[layer.output] >= 1e-5 for layer in variant.manifest.attention)
    maps = variant.manifest.maps
    if variant.manifest.attention:
        assert limits["attention rows sum to 1"] == limits["alone = in a batch, attention"] == 1e-5
        for name in ("attention", "attention, least layer"):
            admitted = variant.manifest.card.variant.maps[name]
            seen = limits[f"rank correlation with the parent's {name}, short of 1"]
            assert seen == pytest.approx(max(0.05, 2 * (1 - admitted)))
    assert limits["same label as the parent, short of 1"] == 0.3
    assert limits["distance of logits from the parent's, relative"] == 0.8
    if maps.rollout:
        assert limits["rollout"] == 1e-5
    if maps.class_map:
        assert limits["class map sums to the logit"] == 1e-4
    assert all(0 <= check.largest <= check.allowed for check in parity.checks.values())


def test_outputs_keep_their_formulas(variant: Bundle) -> None:
    """Typed anew in float64: rows sum to 1, rollout is the product of matrices, the class map sums to the logit."""
    manifest = variant.manifest
    outputs = {
        name: values.astype(np.float64) for name, values in open_graph(variant.graph)(pictures(manifest, 3)).items()
    }
    for layer in manifest.attention:
        np.testing.assert_allclose(outputs[layer.output].sum(-1), 1, atol=1e-5)
    if manifest.maps.rollout:
        last = manifest.attention[-1]
        row = outputs["pooling"] if manifest.maps.pooling else np.tile(pooled_row(manifest.pooling, last), (3, 1))
        for layer in reversed(manifest.attention):
            row = np.einsum("bn,bnm->bm", row, (outputs[layer.output].mean(1) + np.eye(layer.tokens)) / 2)
        np.testing.assert_allclose(outputs["rollout"], row[:, last.patch_slice], atol=1e-5)
    if manifest.maps.class_map:
        tensors = load_file(variant.weights)
        summed = outputs["class_tokens"].sum(1) @ tensors["head.weight"].T.astype(np.float64) + tensors["head.bias"]
        np.testing.assert_allclose(summed, outputs["logits"], atol=1e-4)


@pytest.mark.parametrize("name", ["tiny-cct-int8", "tiny-vit-int8", "tiny-hybrid-int8", "tiny-resnet-int8"])
def test_integers_are_exact_whatever_the_batch_and_the_threads(variants: Path, name: str) -> None:
    """No sum of integers depends on the order in which it is made; what is left in float32 moves by its own roundings,
    and no code falls to the other side by them.
    """
    bundle = open_bundle(variants / name / "1")
    pixels = pictures(bundle.manifest, 16)
    whole = open_graph(bundle.graph, threads=1)(pixels)
    for threads, size in ((1, 1), (1, 7), (2, 16), (2, 3)):
        answer = open_graph(bundle.graph, threads=threads)
        parts = [answer(pixels[start : start + size]) for start in range(0, 16, size)]
        for output, values in whole.items():
            np.testing.assert_allclose(np.concatenate([part[output] for part in parts]), values, atol=1e-6)


def test_no_scale_is_made_while_running(variants: Path) -> None:
    """Every quantiser of the graph reads constants."""
    for name in ("tiny-cct-int8", "tiny-resnet-int8"):
        proto = onnx.load(variants / name / "1" / "model.onnx")
        constants = {tensor.name for tensor in proto.graph.initializer}
        quantisers = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert quantisers
        assert all(set(node.input[1:]) <= constants for node in quantisers)
        assert not any("Dynamic" in node.op_type for node in proto.graph.node)


@pytest.mark.parametrize("name", ["tiny-cct-int8", "tiny-vit-int8", "tiny-resnet-int8"])
def test_the_inputs_steps_reach_from_black_to_white(variants: Path, name: str) -> None:
    """By the manifest's mean and std, whatever pictures calibrated: nothing that a caller sends is cut off."""
    bundle = open_bundle(variants / name / "1")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(bundle.graph).graph.initializer}
    scale, zero = float(constants["pixel_values.scale"]), int(constants["pixel_values.zero_point"])
    spec = bundle.manifest.preprocessing
    black, white = (np.divide(value - np.array(spec.mean), spec.std) for value in (0.0, 1.0))
    assert -zero * scale == pytest.approx(min(0.0, black.min()), abs=0.51 * scale)
    assert (255 - zero) * scale == pytest.approx(max(0.0, white.max()), abs=0.51 * scale)


@pytest.mark.parametrize(("admitted", "most"), [(1.0, 0.05), (0.98, 0.05), (0.955, 0.09), (0.9, 0.2), (-1.0, 4.0)])
def test_twice_what_the_card_admits_is_allowed(admitted: float, most: float) -> None:
    """Or what the command allows, where that is more: a variant that just passed is not refused by other pictures."""
    assert allowed(admitted) == pytest.approx(most)


def test_a_variant_is_verified_beside_its_parent(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command gives the same figures again, and the bundle is as valid as before."""
    before = open_bundle(copy / "tiny-cct-int8" / "1").manifest
    assert main(["verify", "tiny-cct-int8", "--models", str(copy)]) == 0
    assert "and against its parent tiny-cct@1" in capsys.readouterr().out
    assert open_bundle(copy / "tiny-cct-int8" / "1").manifest == before


def test_a_variant_without_its_parent_is_verified_by_itself(copy: Path) -> None:
    """And the manifest says that the parent was not there."""
    shutil.rmtree(copy / "tiny-cct")
    parity = verify(open_bundle(copy / "tiny-cct-int8" / "1"), None).manifest.parity
    assert parity is not None
    assert parity.source.endswith("its parent tiny-cct@1 is not in this folder of models")
    assert "logits" in parity.checks
    assert not [name for name in parity.checks if "parent" in name]


def test_another_parent_is_named_by_its_weights(copy: Path) -> None:
    """Whoever retrained the parent under the same version is told, with both checksums."""
    parent = open_bundle(copy / "tiny-cct" / "1")
    weights = load_file(parent.weights)
    weights["head.bias"] = weights["head.bias"] + np.float32(0.5)
    save_file(weights, parent.weights)
    changed = restate_checksum(parent.folder, "weights.safetensors").manifest.files["weights.safetensors"].sha256
    was = open_bundle(copy / "tiny-cct-int8" / "1").manifest.parent.weights_sha256
    with pytest.raises(BundleError, match=rf"made of tiny-cct@1 with weights of sha256 {was}; .* have {changed}"):
        verify(open_bundle(copy / "tiny-cct-int8" / "1"), None)


def rewrite(bundle: Bundle, **changes: Any) -> Bundle:
    """Tensors through the functions named (`__` for a dot), with a checksum that fits."""
    weights = load_file(bundle.weights)
    for name, change in changes.items():
        key = name.replace("__", ".")
        weights[key] = change(weights[key]).astype(weights[key].dtype)
    save_file(weights, bundle.weights)
    return restate_checksum(bundle.folder, "weights.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"head__bias": lambda values: values + 10 * (np.arange(10) == 0)},
        {"head__weight": lambda values: 3 * values, "head__bias": lambda values: 3 * values},
        {"encoder__norm__weight": lambda values: 1.01 * values},
        {"tokenizer__0__weight": lambda values: -values},
        {
            "encoder__blocks__0__mlp__0__weight": lambda values: (
                values + (np.arange(values.size).reshape(values.shape) == 5)
            )
        },
        {"encoder__blocks__0__mlp__0__weight__scale": lambda values: 1.001 * values},
    ],
    ids=["one label by 10", "three times the head", "a norm", "a layer", "one code of one weight", "a channel's step"],
)
def test_every_number_is_what_quantising_the_parent_gives(copy: Path, changes: dict[str, Any]) -> None:
    """Checksum and golden values could be made to fit; the parent's numbers cannot."""
    bundle = rewrite(open_bundle(copy / "tiny-cct-int8" / "1"), **changes)
    name = next(iter(changes)).replace("__", r"\.")
    with pytest.raises(
        BundleError, match=rf"tiny-cct-int8@1 has other numbers in .*{name}.* than its parent tiny-cct@1 in int8"
    ):
        verify(bundle, None)


def edited(copy: Path, **changes: Callable[[Any], Any]) -> Bundle:
    """tiny-cct-int8 with fields of its manifest changed by hand."""
    path = copy / "tiny-cct-int8" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {name: change(manifest[name]) for name, change in changes.items()}))
    return open_bundle(path.parent)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("labels", lambda labels: labels[::-1]),
        ("temperature", lambda _: 9.0),
        ("preprocessing", lambda spec: {**spec, "mean": [0.1, 0.2, 0.3]}),
        ("maps", lambda maps: {**maps, "default": ["class"]}),
        ("provenance", lambda found: {**found, "seed": 99}),
    ],
)
def test_a_variant_means_what_its_parent_means(copy: Path, field: str, change: Callable[[Any], Any]) -> None:
    """Labels, temperature, preprocessing and maps are the parent's; both values are said."""
    with pytest.raises(BundleError, match=rf"tiny-cct-int8@1 has {field} .+; its parent tiny-cct@1 has .+"):
        verify(edited(copy, **{field: change}), None)


def test_a_number_under_a_name_of_its_own_is_none_of_the_parents(copy: Path) -> None:
    """A norm renamed, and changed: there is nothing of that name to hold it to, so it is refused."""
    bundle = open_bundle(copy / "tiny-cct-int8" / "1")
    proto = onnx.load(bundle.graph, load_external_data=False)
    weights = load_file(bundle.weights)
    (norm,) = [tensor for tensor in proto.graph.initializer if tensor.name == "encoder.norm.weight"]
    norm.CopyFrom(numpy_helper.from_array(1.05 * weights["encoder.norm.weight"], "x.norm"))
    for node in proto.graph.node:
        node.input[:] = ["x.norm" if name == "encoder.norm.weight" else name for name in node.input]
    onnx.save(proto, bundle.graph)
    with pytest.raises(BundleError, match=r"has other numbers in encoder\.norm\.weight, x\.norm than its parent"):
        verify(restate_checksum(bundle.folder, "model.onnx"), None)


def test_a_variant_is_no_parent(copy: Path) -> None:
    """Not of itself either: it would agree with whatever it is."""
    variant = open_bundle(copy / "tiny-cct-int8" / "1").manifest
    itself = {"name": variant.name, "version": 1, "weights_sha256": variant.files["weights.safetensors"].sha256}
    with pytest.raises(BundleError, match="names tiny-cct-int8@1 as its parent, which is a variant itself"):
        verify(edited(copy, parent=lambda _: itself), None)


def test_int8_is_not_called_float16(copy: Path) -> None:
    """Nor the other way round: the numbers are held to what that precision gives."""
    with pytest.raises(BundleError, match=r"has other numbers in .* than its parent tiny-cct@1 in float16"):
        verify(edited(copy, precision=lambda _: "float16"), None)


def test_a_card_cannot_excuse_what_is_never_written(copy: Path) -> None:
    """Without --anyway no map agrees by less than 0.95, so no card says so."""
    poor = edited(copy, card=lambda card: {**card, "variant": {**card["variant"], "maps": {"rollout": -1.0}}})
    with pytest.raises(BundleError, match="a card that admits more than is ever written but with --anyway"):
        verify(poor, None)


def test_the_nodes_are_those_of_the_parent_too(copy: Path) -> None:
    """Another function is another net's, however little it changes and whatever the card excuses."""
    bundle = edited(copy, card=lambda card: {**card, "variant": {**card["variant"], "anyway": True}})
    proto = onnx.load(bundle.graph, load_external_data=False)
    gelu = next(node for node in proto.graph.node if node.op_type == "Gelu")
    del gelu.attribute[:]
    gelu.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))
    onnx.save(proto, bundle.graph)
    with pytest.raises(BundleError, match="has other nodes than its parent tiny-cct@1 in int8"):
        verify(restate_checksum(bundle.folder, "model.onnx"), None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda variant: {**variant, "in_float": ["nonsense"]}, r"left nothing in float32; its card says nonsense"),
        (lambda _: None, r"has a parent and no card of what it lost"),
    ],
)
def test_the_card_names_what_was_left_in_float(copy: Path, change: Callable[[Any], Any], said: str) -> None:
    """As the graph has it; and there is one."""
    changed = edited(copy, card=lambda card: {**card, "variant": change(card["variant"])})
    with pytest.raises(BundleError, match=said):
        verify(changed, None)


@pytest.mark.parametrize(
    ("name", "value"), [("license", "Proprietary"), ("parameters", 5), ("limits", "None at all."), ("macs", 1)]
)
def test_the_card_says_of_the_model_what_the_parents_says(copy: Path, name: str, value: object) -> None:
    """License, limits, parameters, MACs: quantising changes none of them."""
    with pytest.raises(BundleError, match=rf"tiny-cct-int8@1 has card\.{name} .*; its parent tiny-cct@1 has "):
        verify(edited(copy, card=lambda card: {**card, name: value}), None)


@pytest.mark.parametrize(("name", "by"), [("head.weight", 1.5), ("tokenizer.0.weight", -1)])
def test_changed_weights_are_found_at_load(copy: Path, name: str, by: float) -> None:
    """The tolerance has room for roundings, not for another net."""
    bundle = open_bundle(copy / "tiny-cct-int8" / "1")
    weights = load_file(bundle.weights)
    weights[name] = (weights[name] * by).astype(weights[name].dtype)
    save_file(weights, bundle.weights)
    changed = restate_checksum(bundle.folder, "weights.safetensors")
    with pytest.raises(BundleError, match=r"tiny-cct-int8@1 on CPUExecutionProvider: output \S+ is \S+ away"):
        check_golden(changed.manifest, changed.golden, CPU, open_graph(changed.graph))


@pytest.mark.parametrize("option", ["--from-onnx", "--from-torch"])
def test_a_variant_is_not_held_to_its_parents_source(
    copy: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the parent that the file made."""
    assert main(["verify", "tiny-cct-int8", "--models", str(copy), option, "some:thing"]) == 2
    said = f"{option} says nothing of tiny-cct-int8@1, a variant of tiny-cct@1: hold tiny-cct@1 to it"
    assert said in capsys.readouterr().err

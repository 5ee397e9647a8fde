"""`saccade quantize`: a variant names its parent, is smaller, answers as it does, or is not written."""

import io
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file
from scipy.stats import spearmanr
from starlette.testclient import TestClient

from export.convert import Exported
from export.data import Digits
from export.examples import split
from export.quantize.choose import Bounds
from export.quantize.parts import held_out_parts
from export.quantize.quantize import quantize
from export.reference import rebuild
from export.verify import verify
from saccade.bundle import Bundle, open_bundle
from saccade.cli import main
from saccade.errors import BundleError
from saccade.preprocess import preprocess
from service.app import create_app
from service.settings import Settings
from tests.export.test_verify import restate_checksum

SENSITIVE = "encoder.blocks.1.mlp.0.weight"


def digit(index: int) -> Image.Image:
    return Digits().test().picture(index)


def png(index: int) -> bytes:
    file = io.BytesIO()
    digit(index).save(file, "PNG")
    return file.getvalue()


def eager(bundle: Bundle, index: int) -> dict[str, NDArray[np.float32]]:
    """The parent's net in PyTorch, on a digit."""
    pixels = preprocess(digit(index), bundle.manifest.preprocessing)[None]
    return Exported(rebuild(bundle)).eval().arrays(pixels)


@pytest.fixture(scope="module")
def service(variants: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(models=variants, default_model="tiny-cct"))) as client:
        yield client


def test_a_variant_says_what_it_is(variant: Bundle, parent: Bundle) -> None:
    """Precision, parent and its weights; labels, preprocessing, temperature, maps and provenance are the parent's."""
    manifest, theirs = variant.manifest, parent.manifest
    assert manifest.name == f"{theirs.name}-{manifest.precision}"
    assert manifest.parent is not None
    assert manifest.parent.id == theirs.id
    assert manifest.parent.weights_sha256 == theirs.files["weights.safetensors"].sha256
    for field in ("labels", "scores", "preprocessing", "temperature", "attention", "pooling", "maps", "provenance"):
        assert getattr(manifest, field) == getattr(theirs, field), field
    assert manifest.outputs == theirs.outputs
    card = manifest.card.variant
    assert card is not None
    assert card.pictures == (70 if manifest.precision == "int8" else 140)
    assert manifest.card.evaluation == ()
    expected = {*theirs.maps.available, *(["attention", "attention, least layer"] if theirs.attention else [])}
    assert card.maps.keys() == expected
    assert min(card.maps.values()) >= 0.95
    assert card.bytes == sum(path.stat().st_size for path in (variant.graph, variant.weights))
    assert card.parent_bytes == sum(path.stat().st_size for path in (parent.graph, parent.weights))


def folded(weights: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """The parent's, each convolution's times gain / sqrt(variance + 1e-5) of the batch norm after it."""
    found = {name: values.astype(np.float64) for name, values in weights.items()}
    for name in weights:
        stem = name.removesuffix(".weight")
        norm = "stem_norm" if stem == "stem" else stem.replace("conv", "norm").replace("projection.0", "projection.1")
        if norm != stem and f"{norm}.running_var" in weights:
            factor = found[f"{norm}.weight"] / np.sqrt(found[f"{norm}.running_var"] + 1e-5)
            found[name] = found[name] * factor[:, None, None, None]
    return found


def test_weights_are_small_and_near_the_parents(variant: Bundle, parent: Bundle) -> None:
    """Each tensor once, under its parameter's name; int8 within half a step of the channel's largest weight / 63, batch
    norms folded in.
    """
    ours, theirs = load_file(variant.weights), folded(load_file(parent.weights))
    small = {
        name: tensor for name, tensor in ours.items() if tensor.dtype in (np.int8, np.float16) and tensor.size > 99
    }
    assert sum(tensor.size for tensor in small.values()) > 0.6 * parent.manifest.card.parameters - 1000
    for name, tensor in small.items():
        if name.endswith(".zero_point"):
            continue
        whole = theirs[name]
        if tensor.dtype == np.float16:
            seen = tensor.astype(np.float64)
            step: Any = 2**-11 * np.abs(seen)
        else:
            assert np.abs(tensor).max() <= 63  # 2 * 255 * 63 fits 16 bits: no processor saturates
            scale = ours[f"{name}.scale"].astype(np.float64)
            axes = (-1, *[1] * (tensor.ndim - 1)) if tensor.ndim == 4 else (1, -1)
            others = (1, 2, 3) if tensor.ndim == 4 else 0
            np.testing.assert_allclose(np.abs(tensor).max(others), 63)  # whole scales: none is wider than it has to be
            seen, step = tensor * scale.reshape(axes), 0.5 * scale.reshape(axes)
        if seen.shape != whole.shape or (tensor.ndim == 2 and seen.shape[0] == seen.shape[1]):
            whole = whole.T  # of a linear layer, as the graph multiplies
        assert (np.abs(seen - whole) <= step + 1e-6).all(), name


@pytest.mark.parametrize("name", ["tiny-cct", "tiny-vit-mean", "tiny-resnet"])
@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_the_service_answers_as_the_parents_net_does(
    service: TestClient, variants: Path, name: str, precision: str
) -> None:
    """Scores and maps through a real service, against the parent in eager PyTorch."""
    bundle = open_bundle(variants / name / "1")
    for index in range(3):
        expected = eager(bundle, index)
        wanted = {"model": f"{name}-{precision}", "top_k": "10", "decimals": "9", "maps": "class", "classes": "top1"}
        response = service.post("/v1/classify", params=wanted, content=png(index))
        assert response.status_code == 200, response.text
        answer = response.json()
        logits = expected["logits"][0].astype(np.float64)
        scores = np.exp(logits) / np.exp(logits).sum()
        for label in answer["labels"]:
            assert label["score"] == pytest.approx(scores[label["index"]], abs=0.05)
        (entry,) = answer["maps"]
        head = load_file(bundle.weights)["head.weight"]
        theirs = expected["class_tokens"][0] @ head[entry["class_index"]]
        assert spearmanr(np.ravel(entry["values"]), theirs).statistic > 0.85


@pytest.mark.parametrize("name", ["tiny-cct-int8", "tiny-vit-int8", "tiny-hybrid-int8", "tiny-resnet-float16"])
def test_alone_is_in_a_batch_through_the_service(variants: Path, name: str) -> None:
    """Scales are fixed: whoever the neighbours are, scores and attention are the same within 1e-5."""
    query = {"model": name, "top_k": "10", "decimals": "9", "maps": "none"}
    if open_bundle(variants / name / "1").manifest.attention:
        query |= {"attention": "all", "heads": "all"}

    def ask(client: TestClient, index: int) -> dict[str, Any]:
        response = client.post("/v1/classify", params=query, content=png(index))
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    alone, together = (
        Settings(models=variants, default_model=name, max_batch=4, max_wait_ms=wait, instances=1)
        for wait in (0, 10_000)
    )
    with TestClient(create_app(alone)) as client:
        lonely = [ask(client, index) for index in range(4)]
    with TestClient(create_app(together)) as client, ThreadPoolExecutor(4) as threads:
        batched = list(threads.map(lambda index: ask(client, index), range(4)))
    assert [answer["timing"]["batch_size"] for answer in lonely] == [1] * 4
    assert [answer["timing"]["batch_size"] for answer in batched] == [4] * 4
    for one, other in zip(lonely, batched, strict=True):
        scores = [{label["index"]: label["score"] for label in answer["labels"]} for answer in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
        for layer, same in zip(one["attention"] or (), other["attention"] or (), strict=True):
            np.testing.assert_allclose(layer["weights"], same["weights"], atol=1e-5)


def test_pictures_that_calibrate_choose_and_judge_are_others(models: Path) -> None:
    """All are held out, none is used twice, and none is of the test split."""
    manifest = open_bundle(models / "tiny-cct" / "1").manifest
    parts = held_out_parts(manifest, None, 30)
    seen = [
        part.picture(index).tobytes()
        for part in (parts.calibrate, parts.choose, parts.judge)
        for index in range(len(part))
    ]
    _, held_out = split(Digits())
    assert [len(parts.calibrate), len(parts.choose)] == [30, 35]  # a quarter of them choose, whoever calibrates
    assert sorted(seen) == sorted(picture.tobytes() for picture, _ in held_out)


def with_an_outlier(models: Path, folder: Path) -> Bundle:
    """tiny-cct with one channel of a norm 2,000 times as large, and the weights that read it so much smaller.

    In float it is the same net. In 8 bits every other channel before `SENSITIVE` is rounded away.
    """
    shutil.copytree(models / "tiny-cct", folder / "tiny-cct")
    bundle = open_bundle(folder / "tiny-cct" / "1")
    weights = load_file(bundle.weights)
    for name in ("weight", "bias"):
        weights[f"encoder.blocks.1.mlp_norm.{name}"][3] *= 2000
    weights[SENSITIVE][:, 3] /= 2000
    save_file(weights, bundle.weights)
    return restate_checksum(bundle.folder, "weights.safetensors")


def test_the_layer_that_8_bits_ruin_stays_in_float(models: Path, tmp_path: Path) -> None:
    """It is found by measurement, named on the card, and the rest is still quantised."""
    bundle = with_an_outlier(models, tmp_path)
    variant = quantize(bundle, "int8", None, bounds=Bounds(top1=0.2, maps=0.98))
    assert variant.manifest.card.variant is not None
    assert SENSITIVE in variant.manifest.card.variant.in_float[:1]
    kinds = {name: tensor.dtype for name, tensor in load_file(variant.weights).items()}
    assert kinds[SENSITIVE] == np.float32
    assert kinds["encoder.blocks.0.mlp.0.weight"] == np.int8


def test_what_is_written_anyway_is_not_held_to_its_parents_maps(models: Path, tmp_path: Path) -> None:
    """Whatever it loses, it is written and verified again; the card and the parity say so; its head is still held."""
    bundle = with_an_outlier(models, tmp_path)
    variant = quantize(bundle, "int8", None, bounds=Bounds(maps=1.01), anyway=True)
    assert variant.manifest.card.variant is not None
    assert variant.manifest.card.variant.anyway
    again = verify(open_bundle(variant.folder), None).manifest
    assert again.parity is not None
    assert "it was written whatever it loses" in again.parity.source
    assert not [name for name in again.parity.checks if "parent" in name]
    weights = load_file(variant.weights)
    weights["head.bias"] = weights["head.bias"] + np.float32(1e-3)
    save_file(weights, variant.weights)
    with pytest.raises(BundleError, match=r"tiny-cct-int8@1 has other numbers in head\.bias than its parent"):
        verify(restate_checksum(variant.folder, "weights.safetensors"), None)


def test_what_loses_nothing_is_not_marked(models: Path, tmp_path: Path) -> None:
    """A script that says --anyway each time still gets variants that are held to their parent."""
    shutil.copytree(models / "tiny-convmixer", tmp_path / "tiny-convmixer")
    variant = quantize(open_bundle(tmp_path / "tiny-convmixer" / "1"), "float16", None, anyway=True)
    assert variant.manifest.card.variant is not None
    assert not variant.manifest.card.variant.anyway
    parity = verify(variant, None).manifest.parity
    assert parity is not None
    assert "same label as the parent, short of 1" in parity.checks


def test_the_command_says_what_is_lost(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under a name of one's own, as the next version of it."""
    shutil.copytree(models / "tiny-convmixer", tmp_path / "tiny-convmixer")
    words = ["quantize", "tiny-convmixer", "--models", str(tmp_path)]
    words += ["--name", "mine", "--pictures", "20", "--anyway"]
    for version in (1, 2):
        assert main([*words, "--int8"]) == 0
        printed = capsys.readouterr().out
        card = open_bundle(tmp_path / "mine" / str(version)).manifest.card.variant
        assert card is not None
        assert printed.startswith(
            f"mine@{version}: {card.bytes / card.parent_bytes:.0%} of the bytes of tiny-convmixer@1"
        )
        assert f"right on {card.top1:.2%} of 85 pictures, its parent on {card.parent_top1:.2%}" in printed
        assert f"rank correlation of class with its parent's: {card.maps['class']:.4f}" in printed
        assert f"distance of the logits from its parent's, relative: {card.logits:.4f}" in printed
        assert ("it was written all the same" in printed) == card.anyway
        assert "20 of scikit-learn digits, held-out" in card.calibrated_on


def test_a_variant_is_evaluated_as_any_bundle(copy: Path, tmp_path: Path) -> None:
    """Its card then has its own accuracy, beside what it loses against its parent."""
    before = open_bundle(copy / "tiny-cct-int8" / "1").manifest
    assert main(["evaluate", "tiny-cct-int8", "--models", str(copy), "--out", str(tmp_path / "out")]) == 0
    after = open_bundle(copy / "tiny-cct-int8" / "1").manifest
    assert [figure.split for figure in after.card.evaluation] == ["scikit-learn digits, test"]
    assert after.card.variant == before.card.variant

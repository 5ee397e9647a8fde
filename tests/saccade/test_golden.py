"""golden.npz: the service runs it before it says ready, so a graph that answers differently never serves."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from saccade.bundle import Bundle
from saccade.errors import BundleError
from saccade.golden import MAX_BYTES, check_golden, golden_differences, golden_file, made_pictures
from saccade.manifest import Manifest
from tests.conftest import ROOT

CPU = "CPUExecutionProvider"
Arrays = dict[str, NDArray[np.float32]]


def answers(bundle: Bundle) -> Callable[[NDArray[np.float32]], Arrays]:
    """The bundle's graph in ONNX Runtime, with nothing of ours around it."""
    session = onnxruntime.InferenceSession(str(bundle.graph), providers=[CPU])
    names = [output.name for output in session.get_outputs()]
    return lambda pixels: dict(zip(names, session.run(names, {"pixel_values": pixels}), strict=True))


def changed(
    answer: Callable[[NDArray[np.float32]], Arrays], name: str, change: Callable[[NDArray[np.float32]], Any]
) -> Callable[[NDArray[np.float32]], Arrays]:
    def altered(pixels: NDArray[np.float32]) -> Arrays:
        outputs = dict(answer(pixels))
        outputs[name] = change(outputs[name])
        return outputs

    return altered


def rewritten(bundle: Bundle, path: Path, **arrays: Any) -> Path:
    """golden.npz with some arrays replaced, or removed where None."""
    with np.load(bundle.golden, allow_pickle=False) as file:
        content = {name: file[name] for name in file.files} | arrays
    np.savez(path, **{name: array for name, array in content.items() if array is not None})
    return path


def test_made_pictures_are_always_the_same() -> None:
    """On every machine: the expected values travel, the pictures may be made again."""
    pictures = made_pictures(3, 8, 12, 7)
    assert (pictures.shape, pictures.dtype) == ((3, 8, 12, 3), np.uint8)
    assert np.array_equal(pictures, made_pictures(3, 8, 12, 7))
    assert not np.array_equal(pictures, made_pictures(3, 8, 12, 8))
    assert np.array_equal(pictures[:2], made_pictures(2, 8, 12, 7))


def test_made_pictures_are_not_flat() -> None:
    """A flat picture would hide a flipped axis or swapped channels."""
    for picture in made_pictures(8, 32, 32, 0).astype(float):
        assert picture.std() > 5
        for other in (picture[::-1], picture[:, ::-1], picture[..., ::-1], picture.swapaxes(0, 1)):
            assert np.abs(picture - other).mean() > 1


def test_a_real_bundle_answers_as_its_source_did(bundle: Bundle) -> None:
    """ONNX Runtime against what eager PyTorch answered at export, within the stated tolerance."""
    check_golden(bundle.manifest, bundle.golden, CPU, answers(bundle))
    differences = golden_differences(bundle.manifest, bundle.golden, answers(bundle))
    assert set(differences) == set(bundle.manifest.outputs)
    assert max(one.difference for one in differences.values()) < 1e-4


def test_the_file_is_small_and_holds_every_output(bundle: Bundle) -> None:
    """At most 1 MB, eight rows of each attention layer, the rest whole."""
    assert bundle.golden.stat().st_size <= 1_000_000
    with np.load(bundle.golden, allow_pickle=False) as file:
        count = len(file["pictures"])
        for layer in bundle.manifest.attention:
            rows = min(8, layer.tokens)
            assert file[layer.output].shape == (count, layer.heads, rows, layer.tokens)
            assert len(set(file[f"{layer.output}_rows"].tolist())) == rows
            assert np.abs(file[layer.output].sum(-1) - 1).max() < 1e-5
        assert file["logits"].shape == (count, len(bundle.manifest.labels))


def test_every_output_is_checked(bundle: Bundle) -> None:
    """A difference in any one of them stops the load and is named, with what is allowed."""
    right = answers(bundle)
    for name in bundle.manifest.outputs:
        with pytest.raises(
            BundleError, match=rf"{bundle.manifest.id} on {CPU}: output {name} is 0\.25\d* away.*allowed"
        ):
            check_golden(bundle.manifest, bundle.golden, CPU, changed(right, name, lambda values: values + 0.25))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_never_within_tolerance(value: float, bundle: Bundle) -> None:
    def spoil(values: NDArray[np.float32]) -> NDArray[np.float32]:
        spoiled = values.copy()
        spoiled.flat[-1] = value
        return spoiled

    with pytest.raises(BundleError, match=r"output logits is inf away .*; 0\.0001 is allowed"):
        check_golden(bundle.manifest, bundle.golden, CPU, changed(answers(bundle), "logits", spoil))


def test_a_provider_without_a_stated_tolerance_is_refused(bundle: Bundle) -> None:
    """Nobody measured it, so nobody promises it; the sentence lists those that were."""
    with pytest.raises(BundleError, match=f"TensorrtExecutionProvider.*{CPU}"):
        check_golden(bundle.manifest, bundle.golden, "TensorrtExecutionProvider", answers(bundle))


def test_an_output_without_a_stated_tolerance_is_refused(bundle: Bundle) -> None:
    manifest = Manifest.model_validate({**bundle.manifest.model_dump(), "tolerance": {CPU: {"attention": 1.0}}})
    with pytest.raises(BundleError, match=f"no tolerance for logits on {CPU}"):
        check_golden(manifest, bundle.golden, CPU, answers(bundle))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"logits": np.array([{"pickled": 1}], object)}, "allow_pickle"),
        ({"logits": None}, "logits"),
        ({"pictures": None}, "pictures"),
        ({"logits": np.zeros((1, 3), np.float32)}, r"logits has shape \(\d, 10\); golden.npz has \(1, 3\)"),
    ],
)
def test_a_golden_file_that_does_not_fit_is_refused(
    arrays: dict[str, Any], words: str, bundle: Bundle, tmp_path: Path
) -> None:
    """Pickled objects first of all: nothing is ever loaded by pickle."""
    path = rewritten(bundle, tmp_path / "golden.npz", **arrays)
    with pytest.raises(BundleError, match=f"{path} does not fit the manifest: .*{words}"):
        check_golden(bundle.manifest, path, CPU, answers(bundle))


def test_rows_outside_of_the_layer_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    if not bundle.manifest.attention:
        assert not [name for name in bundle.manifest.outputs if name.startswith("attention")]
        return
    path = rewritten(bundle, tmp_path / "golden.npz", attention_00_rows=np.array([0, 10_000]))
    with pytest.raises(BundleError, match="does not fit the manifest"):
        check_golden(bundle.manifest, path, CPU, answers(bundle))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04....", "half", "array"])
def test_a_damaged_golden_file_is_a_bundle_error(content: bytes | str, bundle: Bundle, tmp_path: Path) -> None:
    """Whatever numpy and zipfile raise on it."""
    path, whole = tmp_path / "golden.npz", bundle.golden.read_bytes()
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    known = {"half": whole[: len(whole) // 2], "array": buffer.getvalue()}
    path.write_bytes(content if isinstance(content, bytes) else known[content])
    with pytest.raises(BundleError, match=r"golden\.npz does not fit the manifest"):
        check_golden(bundle.manifest, path, CPU, answers(bundle))


def test_a_missing_golden_file_is_named(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=str(tmp_path / "absent.npz")):
        check_golden(bundle.manifest, tmp_path / "absent.npz", CPU, answers(bundle))


def test_outputs_that_cannot_be_compressed_take_fewer_pictures(bundle: Bundle) -> None:
    """The limit of 1 MB holds, or the export says by how much it does not."""
    generator = np.random.default_rng(0)
    manifest = Manifest.model_validate(
        {**bundle.manifest.model_dump(), "attention": (), "pooling": None, "maps": {"default": ()}}
    )
    fits = golden_file(manifest, lambda pixels: {"logits": generator.random((len(pixels), 100_000), np.float32)})
    assert len(fits) <= MAX_BYTES
    with np.load(io.BytesIO(fits), allow_pickle=False) as file:
        assert len(file["pictures"]) == 2
    with pytest.raises(BundleError, match=r"would have \d{7} bytes; the limit is 1000000"):
        golden_file(manifest, lambda pixels: {"logits": generator.random((len(pixels), 400_000), np.float32)})


def large(**fields: Any) -> Manifest:
    """A model that was not trained here, of 224 pixels, without maps."""
    return Manifest.model_validate(
        {
            "schema_version": 1, "name": "large", "version": 1, "labels": ("a", "b"), "files": {},
            "maps": {"default": ()},
            "preprocessing": {"height": 224, "width": 224, "fit": "stretch", "mean": (0.5,) * 3, "std": (0.5,) * 3},
            "tolerance": {CPU: {"logits": 1e-4, "attention": 1e-5, "class_tokens": 1e-4}},
            "provenance": {"origin": {"kind": "onnx", "name": "large.onnx"}, "commit": None, "versions": {}},
            "card": {"summary": "", "license": "", "parameters": 1}, **fields,
        }
    )  # fmt: skip


SWIN_T = [(8, 3), (8, 3), (4, 6), (4, 6), *[(2, 12)] * 6, (1, 24), (1, 24)]
"""Windows each way and heads, a layer."""
LARGE: dict[str, list[dict[str, Any]]] = {
    "ViT-L/16": [{"grid": (14, 14), "heads": 16, "special_tokens": {"count": 1}}] * 24,
    "Swin-T": [
        {"grid": (7, 7), "heads": heads, "windows": {"count": (side, side), "picture": (7 * side, 7 * side)}}
        for side, heads in SWIN_T
    ],
}


@pytest.mark.parametrize("name", LARGE)
def test_large_models_have_a_golden_file_that_tells_each_layer(name: str, tmp_path: Path) -> None:
    """As many rows and windows as fit; a change in any of the layers is still seen."""
    layers = [{**layer, "output": f"attention_{index:02d}"} for index, layer in enumerate(LARGE[name])]
    manifest = large(attention=layers)

    def answer(pixels: NDArray[np.float32]) -> Arrays:
        generator = np.random.default_rng(5)
        outputs = {"logits": pixels.mean((2, 3))[:, :2]}
        for layer in manifest.attention:
            one = generator.random(layer.shape, np.float32) / layer.tokens
            outputs[layer.output] = np.broadcast_to(one, (len(pixels), *layer.shape))
        return outputs

    path = tmp_path / "golden.npz"
    path.write_bytes(golden_file(manifest, answer))
    assert path.stat().st_size <= MAX_BYTES
    assert max(one.difference for one in golden_differences(manifest, path, answer).values()) == 0
    for layer in manifest.attention:
        wrong = changed(answer, layer.output, lambda values: values + np.float32(1e-3))
        assert golden_differences(manifest, path, wrong)[layer.output].difference == pytest.approx(1e-3, rel=1e-3)


def test_of_a_large_class_map_some_patches_are_kept(tmp_path: Path) -> None:
    """A CNN of 28 x 28 cells of 1,024 channels; logits stay whole."""
    maps = {"default": (), "class_map": {"tokens": "class_tokens", "weight": "w", "bias": None, "grid": (28, 28)}}
    manifest = large(maps=maps)
    tokens = np.random.default_rng(0).random((784, 1024), np.float32)

    def answer(pixels: NDArray[np.float32]) -> Arrays:
        return {"logits": pixels[:, 0, 0, :2], "class_tokens": np.broadcast_to(tokens, (len(pixels), *tokens.shape))}

    path = tmp_path / "golden.npz"
    path.write_bytes(golden_file(manifest, answer))
    with np.load(path) as file:
        chosen = file["class_tokens_rows"]
        assert len(chosen) >= 16
        np.testing.assert_array_equal(file["class_tokens"][0], tokens[chosen])
    wrong = changed(answer, "class_tokens", lambda values: values * 2)
    assert golden_differences(manifest, path, wrong)["class_tokens"].difference > 0.1


SIDE_BY_SIDE = """
import gc, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from saccade.bundle import open_bundle
from saccade.errors import BundleError
from saccade.golden import golden_differences

bundle = open_bundle(Path(sys.argv[1]))

def read(_):
    try:
        golden_differences(bundle.manifest, bundle.golden, lambda pixels: {})
    except BundleError:  # an answer without outputs
        pass

gc.callbacks.append(lambda *_: time.sleep(0))  # a turn for the other threads, wherever the collector begins
gc.set_threshold(1)
sys.setswitchinterval(1e-6)
with ThreadPoolExecutor(4) as threads:
    list(threads.map(read, range(240)))
"""


def test_sessions_that_open_side_by_side_do_not_fail_by_chance() -> None:
    """Each reads the file, in a thread of its own, and CPython 3.11 counts the depth of what it parses once for all."""
    subprocess.run([sys.executable, "-c", SIDE_BY_SIDE, ROOT / "models/cifar10-cct/1"], cwd=ROOT, check=True)

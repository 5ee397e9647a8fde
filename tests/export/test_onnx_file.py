"""A bundle from an ONNX file is held to that file: when it is made, and whenever the file is given again."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import from_onnx
from saccade.bundle import Bundle, open_bundle
from saccade.cli import main
from tests.export.graph import models
from tests.export.graph.conftest import noise, write

BY_FILE = "the file's own graph through ONNX Runtime, nothing optimised (logits) and through onnx's own evaluator "


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], tuple[models.Classifier, Path, Bundle]]:
    """A function: class of `models`, opset -> the eager net, its file, the bundle; made once."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "labels.txt").write_text("ant\nbee\ncat\ndog\neel\n")
    made: dict[tuple[str, int], tuple[models.Classifier, Path, Bundle]] = {}

    def get(name: str, opset: int = 18) -> tuple[models.Classifier, Path, Bundle]:
        if (name, opset) not in made:
            net = models.lively(getattr(models, name)())
            path = write(net, net.size, folder / f"{name}-{opset}.onnx", "open" if opset > 20 else "script", opset)
            words = ["--labels", str(folder / "labels.txt"), "--models", str(folder / "models")]
            assert main(["export", "--from-onnx", str(path), *words, "--name", path.stem.lower()]) == 0
            made[name, opset] = net, path, open_bundle(folder / "models" / path.stem.lower() / "1")
        return made[name, opset]

    return get


def again(bundle: Bundle, *words: str) -> int:
    return main(["verify", str(bundle.folder), *words])


@pytest.mark.parametrize(("name", "opset"), [("Vit", 18), ("Swin", 18), ("MobileVit", 18), ("BertVit", 11)])
def test_attention_is_held_to_the_file(taken, name: str, opset: int) -> None:
    """Each layer's weights as they stand in the given graph, windows and old opsets too: those of the eager net."""
    net, path, bundle = taken(name, opset)
    assert f"{BY_FILE}(attention)" in bundle.manifest.parity.source
    pixels = noise(2, net.size)
    seen = from_onnx.file_of(bundle, path).arrays(pixels)
    with torch.inference_mode():
        logits = net(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(seen["logits"], logits, atol=1e-4)
    for layer, attention in zip(bundle.manifest.attention, net.seen, strict=True):
        np.testing.assert_allclose(seen[layer.output], attention.numpy(), atol=1e-5)


def test_what_the_file_has_not_is_held_to_the_bundles_graph(taken) -> None:
    """Opset 23 has Attention as one operator, whose weights are no value: the sentence says what was compared."""
    _, _, bundle = taken("FusedVit", 23)
    source = bundle.manifest.parity.source
    assert "nothing optimised (logits) and onnx's own evaluator on the bundle's graph (the rest)" in source


def test_verify_holds_it_to_the_file_again(taken, capsys: pytest.CaptureFixture[str]) -> None:
    """The proof that `export` gave; without the file it is the evaluator's, and the sentence says how to have it."""
    _, path, bundle = taken("Vit")
    before = bundle.manifest
    assert again(bundle) == 0
    printed = capsys.readouterr().out
    assert "against onnx's own evaluator on the bundle's graph; --from-onnx FILE holds it to the file" in printed
    assert again(bundle, "--from-onnx", str(path)) == 0
    assert f"{BY_FILE}(attention)" in capsys.readouterr().out
    assert open_bundle(bundle.folder).manifest == before


def test_another_file_is_refused(taken, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever its name: its checksum must be that of the file that the bundle was taken from."""
    _, path, bundle = taken("Vit")
    proto = onnx.load(path)
    proto.producer_name = "somebody"
    onnx.save(proto, tmp_path / path.name)
    capsys.readouterr()
    assert again(bundle, "--from-onnx", str(tmp_path / path.name)) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / path.name} is not what vit-18@1 was taken from: Vit-18.onnx has sha256 " in said
    assert bundle.manifest.provenance.origin.files["Vit-18.onnx"] in said
    copied = tmp_path / "under-another-name.onnx"
    copied.write_bytes(path.read_bytes())
    assert again(bundle, "--from-onnx", str(copied)) == 0


def test_a_bundle_of_another_kind_knows_no_file(
    request: pytest.FixtureRequest, taken, capsys: pytest.CaptureFixture[str]
) -> None:
    """A net of our own is rebuilt from its recipe."""
    _, path, _ = taken("Vit")
    assert (
        main(["verify", "tiny-cct", "--models", str(request.getfixturevalue("models")), "--from-onnx", str(path)]) == 2
    )
    assert "--from-onnx says nothing of tiny-cct@1, which comes from a run" in capsys.readouterr().err


def test_tolerance_follows_what_was_allowed(taken, tmp_path: Path) -> None:
    """A bundle whose tolerance was widened by hand gets that of its parity back when it is verified."""
    _, path, bundle = taken("Vit")
    said = json.loads((bundle.folder / "manifest.json").read_text())
    usual = said["tolerance"]["CPUExecutionProvider"]["logits"]
    said["tolerance"]["CPUExecutionProvider"]["logits"] = 1.0
    (bundle.folder / "manifest.json").write_text(json.dumps(said))
    assert again(bundle, "--from-onnx", str(path)) == 0
    assert open_bundle(bundle.folder).manifest.tolerance["CPUExecutionProvider"]["logits"] == usual

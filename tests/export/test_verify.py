"""Verification: from the bundle alone, strict, and repeatable."""

import hashlib
import json
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from export.reference import Outputs, RecipeNet
from export.runtime import open_graph
from export.verify import prove, verify
from saccade.bundle import Bundle, open_bundle
from saccade.cli import main
from saccade.errors import BundleError
from saccade.golden import check_golden
from tests.conftest import CLASS_MAP_ONLY


def restate_checksum(folder: Path, name: str) -> Bundle:
    """Makes the manifest say that the file, as it now is, is right."""
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / name).read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_bundle(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_parity_is_on_the_manifest(bundle: Bundle) -> None:
    """A reader of the card sees what was compared, on how many pictures, in which batches, and how far apart it was."""
    parity = bundle.manifest.parity
    assert parity is not None
    assert (parity.pictures, parity.batches, parity.provider) == (256, (1, 2, 7, 16), "CPUExecutionProvider")
    assert "made pictures" in parity.source
    allowed = {name: check.allowed for name, check in parity.checks.items()}
    assert allowed["logits"] == 1e-4
    assert allowed["alone = in a batch, scores"] == 1e-5
    if bundle.manifest.attention:
        assert allowed["attention"] == allowed["attention rows sum to 1"] == 1e-5
        assert ("rollout" in allowed) == (bundle.manifest.name not in CLASS_MAP_ONLY)
    if bundle.manifest.maps.class_map:
        assert allowed["class map sums to the logit"] == 1e-4
    assert all(0 <= check.largest <= check.allowed for check in parity.checks.values())
    assert {"torch", "onnx", "onnxruntime", "numpy"} <= parity.versions.keys()


@pytest.mark.parametrize("name", ["tiny-cct", "tiny-resnet"])
def test_a_bundle_is_verified_from_itself_alone(name: str, copy: Callable[[str], Bundle]) -> None:
    """Whoever has the folder can check it: no run, no data set; and it is as valid afterwards as it was before."""
    bundle = copy(name)
    before = contents(bundle.folder)
    verified = verify(bundle, None)
    again = open_bundle(bundle.folder)
    assert again.manifest == verified.manifest
    assert contents(bundle.folder).keys() == before.keys()
    for kept in ("model.onnx", "weights.safetensors"):
        assert contents(bundle.folder)[kept] == before[kept]
    assert again.manifest.parity is not None
    assert again.manifest.parity.pictures == 256
    check_golden(again.manifest, again.golden, "CPUExecutionProvider", open_graph(again.graph))


def test_a_changed_weight_is_away_from_its_golden_values(copy: Callable[[str], Bundle]) -> None:
    """Even with its checksum restated, a tampered file is found at load, and the message says how far off it is."""
    bundle = copy("tiny-cct")
    weights = load_file(bundle.weights)
    weights["head.bias"] = weights["head.bias"] + np.float32(0.5)
    save_file(weights, bundle.weights)
    tampered = restate_checksum(bundle.folder, "weights.safetensors")
    with pytest.raises(
        BundleError, match=r"tiny-cct@1 on CPUExecutionProvider: output logits is 0\.5 away .*; 0\.0001 is allowed"
    ):
        check_golden(tampered.manifest, tampered.golden, "CPUExecutionProvider", open_graph(tampered.graph))


def test_a_graph_that_reads_other_weights_than_the_net_is_refused(copy: Callable[[str], Bundle]) -> None:
    """Swapping two tensors' places gives the net its weights by name and the graph other ones by offset."""
    bundle = copy("tiny-cct")
    content = bundle.weights.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [f"encoder.blocks.{index}.attention.qkv.weight" for index in (0, 1)]
    (a, b), (c, d) = sorted(header[name]["data_offsets"] for name in names)
    header[names[0]]["data_offsets"], header[names[1]]["data_offsets"] = (
        header[names[1]]["data_offsets"],
        header[names[0]]["data_offsets"],
    )
    rewritten = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(rewritten) == length
    bundle.weights.write_bytes(content[:8] + rewritten + body[:a] + body[c:d] + body[b:c] + body[a:b] + body[d:])
    before = contents(bundle.folder)
    tampered = restate_checksum(bundle.folder, "weights.safetensors")
    with pytest.raises(BundleError, match=r"tiny-cct@1 does not hold: .*logits [0-9.e-]+ \(allowed 0\.0001\)"):
        verify(tampered, None)
    assert contents(bundle.folder)["golden.npz"] == before["golden.npz"]


def test_what_would_not_load_is_not_written(copy: Callable[[str], Bundle]) -> None:
    """Golden values that the graph does not give are found before the service does: here of class tokens upside down,
    whose sum is the logit all the same.
    """

    class UpsideDown(RecipeNet):
        def arrays(self, pixels: NDArray[np.float32]) -> Outputs:
            outputs = super().arrays(pixels)
            return {**outputs, "class_tokens": outputs["class_tokens"][:, ::-1]}

    bundle = copy("tiny-resnet")
    with pytest.raises(BundleError, match=r"tiny-resnet@1 on \S+: output class_tokens is \S+ away from its golden"):
        prove(bundle, UpsideDown(bundle), None)


def test_weights_of_another_net_are_named(copy: Callable[[str], Bundle]) -> None:
    """Where the recipe and the file do not fit, the message names the tensor."""
    bundle = copy("tiny-cct")
    weights = load_file(bundle.weights)
    weights["head.bias"] = weights["head.bias"][:7].copy()
    save_file(weights, bundle.weights)
    with pytest.raises(BundleError, match=r"(?s)tiny-cct@1: the net cannot be rebuilt from the bundle: .*head\.bias"):
        verify(restate_checksum(bundle.folder, "weights.safetensors"), None)


def test_an_output_that_the_graph_lacks_is_named(copy: Callable[[str], Bundle]) -> None:
    """A manifest that promises more than the graph gives is a sentence, not a stack trace."""
    bundle = copy("tiny-cct")
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    manifest["attention"].append({**manifest["attention"][0], "output": "attention_02"})
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"outputs .*attention_01.*; the manifest says .*attention_02"):
        verify(open_bundle(bundle.folder), None)


def test_a_full_disk_while_verifying_leaves_the_bundle_as_it_was(copy: Callable[[str], Bundle]) -> None:
    """Nothing is half replaced and nothing is left beside it; the limit on the size of files is the kernel's own."""
    bundle = copy("tiny-resnet")
    before = contents(bundle.folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(BundleError, match=r"could not write to .*tiny-resnet/1: .*File too large"):
            verify(bundle, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(bundle.folder) == before


def test_a_function_is_asked_for_modules_alone(
    copy: Callable[[str], Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    """A net of our own is not held to anybody's code."""
    assert main(["verify", str(copy("tiny-vit").folder), "--from-torch", "os:getcwd"]) == 2
    assert "--from-torch says nothing of tiny-vit@1, which comes from a run" in capsys.readouterr().err


def test_the_command_verifies_by_path(copy: Callable[[str], Bundle], capsys: pytest.CaptureFixture[str]) -> None:
    """`saccade verify models/N/V` prints each promise with what was measured and what is allowed."""
    assert main(["verify", str(copy("tiny-vit").folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tiny-vit@1: 256 made pictures")
    assert "batches of 1, 2, 7, 16" in printed
    assert "(allowed 1e-04)" in printed

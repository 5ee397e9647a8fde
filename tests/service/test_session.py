"""The engine: the provider that was asked for or none, and no path that leaves the bundle."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from saccade.bundle import Bundle, update_bundle
from saccade.errors import BundleError, SettingsError
from service.app import create_app
from service.session import OnnxRunner, load_head
from service.settings import Settings
from tests.service.reference import Real, copy_bundle

CPU = ("CPUExecutionProvider",)


@pytest.mark.parametrize("wanted", [("NoSuchExecutionProvider",), ("NoSuchExecutionProvider", *CPU)])
def test_a_provider_that_is_missing_stops_the_start(models: Path, wanted: tuple[str, ...]) -> None:
    """Never silently slow: the sentence says what was asked for and what is present."""
    with pytest.raises(SettingsError) as caught:
        create_app(Settings(models=models, providers=wanted))
    assert "NoSuchExecutionProvider is asked for and missing" in str(caught.value)
    assert all(provider in str(caught.value) for provider in onnxruntime.get_available_providers())


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_run_gives_the_outputs_asked_for_as_the_engine_computes_them(bundle: Bundle, size: int) -> None:
    """Bit for bit what a plain session of ONNX Runtime gives, for each batch size."""
    spec = bundle.manifest.preprocessing
    pixels = np.random.default_rng(1).normal(size=(size, 3, spec.height, spec.width)).astype(np.float32)
    runner, plain = OnnxRunner(bundle, CPU, 1), Real(bundle)
    assert runner.provider == "CPUExecutionProvider"
    for names in (bundle.manifest.outputs, ("logits",), bundle.manifest.outputs[::-1]):
        seen, expected = runner.run(pixels, names), plain.run(pixels, names)
        assert tuple(seen) == tuple(names)
        for name in names:
            np.testing.assert_allclose(seen[name], expected[name], atol=1e-6)


def test_the_head_is_read_from_the_weights(bundle: Bundle) -> None:
    """The class map multiplies with the very tensors of the file; a model without one needs none."""
    head = load_head(bundle)
    assert (head is None) == (bundle.manifest.maps.class_map is None)
    if head is not None:
        assert head.weight.shape[0] == head.bias.shape[0] == len(bundle.manifest.labels)


@pytest.mark.parametrize("where", ["../weights.safetensors", "/etc/hostname", "../../secret"])
def test_weights_outside_of_the_bundle_are_never_read(models: Path, tmp_path: Path, where: str) -> None:
    """A graph from a stranger cannot name files of this machine."""
    bundle = copy_bundle(models, "tiny-resnet", tmp_path)
    (bundle.folder.parent / "weights.safetensors").write_bytes(bundle.weights.read_bytes())
    model = onnx.load(str(bundle.graph), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = where
    changed = update_bundle(bundle, {}, {"model.onnx": model.SerializeToString()})
    with pytest.raises(BundleError, match=r"ONNX Runtime does not load"):
        OnnxRunner(changed, CPU, 1)

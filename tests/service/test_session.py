"""The engine: the provider that was asked for or none, and no path that leaves the bundle."""

import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from saccade.bundle import RELEVANCE, Bundle, open_bundle, update_bundle
from saccade.errors import BundleError, SettingsError
from service.app import create_app
from service.session import OnnxRunner, load_head
from service.settings import Settings
from tests.service.reference import Real, copy_bundle, hanging_bundle

CPU = ("CPUExecutionProvider",)


@pytest.mark.parametrize("wanted", [("NoSuchExecutionProvider",), ("NoSuchExecutionProvider", *CPU)])
def test_a_provider_that_is_missing_stops_the_start(models: Path, wanted: tuple[str, ...]) -> None:
    """Never silently slow: the sentence says what was asked for and what is present."""
    with pytest.raises(SettingsError) as caught:
        create_app(Settings(models=models, providers=wanted))
    assert "NoSuchExecutionProvider is asked for and missing" in str(caught.value)
    assert all(provider in str(caught.value) for provider in onnxruntime.get_available_providers())


def test_a_provider_whose_device_is_missing_stops_the_start(models: Path) -> None:
    """A provider that takes none of a model: no silent fall back to the CPU, and the sentence says what to do."""
    bundle = open_bundle(models / "tiny-resnet" / "1")
    with pytest.raises(
        SettingsError,
        match=r"^tiny-resnet@1 asked for AzureExecutionProvider, which leaves .*Conv.* of model.onnx to CPU.* allows",
    ):
        OnnxRunner(bundle, ("AzureExecutionProvider",), 1)


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


def pixels_of(bundle: Bundle, value: float | None = None) -> np.ndarray:
    """One picture, of noise or of one colour."""
    spec = bundle.manifest.preprocessing
    shape = (1, 3, spec.height, spec.width)
    pixels = np.random.default_rng(1).normal(size=shape) if value is None else np.full(shape, value)
    return pixels.astype(np.float32)


def test_after_stop_every_run_of_the_session_fails_at_once(bundle: Bundle) -> None:
    """A session that was given up never works on behind the back of the one in its place."""
    runner, other = OnnxRunner(bundle, CPU, 1), OnnxRunner(bundle, CPU, 1)
    assert len(runner.run(pixels_of(bundle), ("logits",))["logits"]) == 1
    runner.stop()
    for _ in range(2):
        with pytest.raises(Exception, match="terminate"):
            runner.run(pixels_of(bundle), ("logits",))
    assert len(other.run(pixels_of(bundle), ("logits",))["logits"]) == 1


def test_stop_ends_a_run_that_hangs_in_the_engine(models: Path, tmp_path: Path) -> None:
    """Its thread comes back and burns no CPU any more: here a graph that would loop for centuries."""
    bundle = hanging_bundle(models, tmp_path)
    runner = OnnxRunner(bundle, CPU, 1)
    assert len(runner.run(pixels_of(bundle), ("logits",))["logits"]) == 1
    ends: list[str] = []
    began = threading.Event()

    def hang() -> None:
        began.set()
        try:
            runner.run(pixels_of(bundle, 0.0), ("logits",))
        except Exception as error:
            ends.append(str(error))

    thread = threading.Thread(target=hang, daemon=True)
    thread.start()
    assert began.wait(30)
    thread.join(0.5)
    assert thread.is_alive()  # it does hang
    runner.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert len(ends) == 1
    assert "terminate" in ends[0]


def test_a_runner_that_hangs_in_relevance_leaves_its_session_to_the_one_in_its_place(
    models: Path, tmp_path: Path
) -> None:
    """The session for labels was not in use; one that is in use is never handed on."""
    bundle = hanging_bundle(models, tmp_path, RELEVANCE)
    relevance = onnxruntime.InferenceSession(str(bundle.relevance), providers=CPU)
    runner, other = (OnnxRunner(bundle, CPU, 1, explaining=lambda: relevance) for _ in range(2))
    ends: list[str] = []
    began = threading.Event()

    def hang() -> None:
        began.set()
        try:
            runner.run(pixels_of(bundle, 0.0), ("logits",), np.array([[-1]]))
        except Exception as error:
            ends.append(str(error))

    thread = threading.Thread(target=hang, daemon=True)
    thread.start()
    assert began.wait(30)
    thread.join(0.5)
    assert thread.is_alive()
    runner.stop()
    spare = runner.spare()
    assert spare is not None
    pixels = pixels_of(bundle)
    expected = other.run(pixels, ("logits",))["logits"]
    assert other.spare() is None
    for asked in (None, np.array([[-1]])):
        np.testing.assert_allclose(spare.run(pixels, ("logits",), asked)["logits"], expected, atol=1e-5)
    thread.join(30)
    assert "terminate" in ends[0]
    with pytest.raises(Exception, match="terminate"):
        runner.run(pixels, ("logits",))

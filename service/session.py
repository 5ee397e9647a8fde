"""ONNX Runtime sessions: the provider that was asked for or none, explicit threads, no spinning, and a golden check."""

from collections.abc import Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from saccade.bundle import Bundle
from saccade.errors import BundleError, SettingsError
from saccade.golden import check_golden
from saccade.manifest import Manifest
from service.postprocess import Head

CPU = "CPUExecutionProvider"

Floats = NDArray[np.float32]


def check_providers(wanted: Sequence[str]) -> None:
    """Raises SettingsError unless ONNX Runtime has every provider that was asked for."""
    present = onnxruntime.get_available_providers()
    missing = [provider for provider in wanted if provider not in present]
    if missing:
        raise SettingsError(
            f"execution provider {', '.join(missing)} is asked for and missing; present are {', '.join(present)}"
        )
    if set(wanted) - {CPU}:
        onnxruntime.preload_dlls()  # CUDA and cuDNN may have come as packages: the loader does not look there by itself


class OnnxRunner:
    """One session. `run` is called by one thread at a time."""

    def __init__(
        self, bundle: Bundle, providers: Sequence[str], threads: int, spinning: bool = False, head: Head | None = None
    ) -> None:
        """Opens the session, holds it to the manifest and to golden.npz. Raises BundleError, SettingsError."""
        self._manifest = bundle.manifest
        self._options = onnxruntime.RunOptions()
        self._shapes = _output_shapes(bundle.manifest, head)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads burn the cores that decode the next pictures, and those of a container's neighbours.
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        if CPU not in providers:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._session = onnxruntime.InferenceSession(str(bundle.graph), options, providers=list(providers))
        except Exception as error:  # ONNX Runtime's exceptions share no base class with each other
            if CPU not in providers and "fallback to CPU" in str(error):
                raise SettingsError(
                    f"{bundle.manifest.id} asked for {', '.join(providers)} and would get {CPU}, in part at least: is "
                    "there such a device, with its driver? ONNX Runtime says more in the lines before"
                ) from error
            raise BundleError(f"ONNX Runtime does not load {bundle.graph}: {error}") from error
        self.provider: str = self._session.get_providers()[0]
        if self.provider != providers[0]:
            raise SettingsError(f"{bundle.manifest.id} asked for {providers[0]} and got {self.provider}")
        _check_interface(bundle.manifest, self._session, self._shapes)
        check_golden(bundle.manifest, bundle.golden, self.provider, self._run_golden)

    def run(self, pixels: Floats, outputs: Sequence[str]) -> dict[str, Floats]:
        """(n, 3, H, W) -> the outputs named, each with n first. Lets go of the GIL."""
        values = self._session.run(list(outputs), {"pixel_values": pixels}, self._options)
        return dict(zip(outputs, values, strict=True))

    def stop(self) -> None:
        """Asks a run that goes on in another thread to end at its next node; every later run fails at once."""
        self._options.terminate = True

    def _run_golden(self, pixels: Floats) -> dict[str, Floats]:
        """All outputs, in the shapes that the manifest says: a graph may leave its dimensions open."""
        try:
            outputs = self.run(pixels, self._manifest.outputs)
        except Exception as error:  # as above
            raise BundleError(f"{self._manifest.id} fails on its golden pictures: {error}") from error
        for name, shape in self._shapes.items():
            _check_shape(self._manifest, name, outputs[name].shape[1:], shape)
        return outputs


def load_head(bundle: Bundle) -> Head | None:
    """The two tensors that the class map needs beside the graph; None for a model without one."""
    class_map = bundle.manifest.maps.class_map
    if class_map is None:
        return None
    try:
        with safe_open(bundle.weights, framework="numpy") as file:
            weight = file.get_tensor(class_map.weight)
            bias = np.zeros(weight.shape[:1], np.float32) if class_map.bias is None else file.get_tensor(class_map.bias)
            head = Head(weight, bias)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{bundle.weights}: {error}") from error
    classes = len(bundle.manifest.labels)
    if head.weight.ndim != 2 or len(head.weight) != classes or head.bias.shape != (classes,):
        raise BundleError(
            f"{bundle.weights}: {class_map.weight} is {head.weight.shape} and {class_map.bias} is {head.bias.shape}; "
            f"the manifest has {classes} labels"
        )
    return head


def _check_interface(
    manifest: Manifest, session: onnxruntime.InferenceSession, shapes: dict[str, tuple[int | None, ...]]
) -> None:
    spec = manifest.preprocessing
    taken = [(one.name, one.type, one.shape[1:], isinstance(one.shape[0], int)) for one in session.get_inputs()]
    if taken != [("pixel_values", "tensor(float)", [3, spec.height, spec.width], False)]:
        seen = ", ".join(f"{one.name} {one.type} {one.shape}" for one in session.get_inputs()) or "no input"
        raise BundleError(
            f"{manifest.id}: the graph takes {seen}; the manifest says "
            f"pixel_values tensor(float) [batch, 3, {spec.height}, {spec.width}]"
        )
    given = {output.name: tuple(output.shape[1:]) for output in session.get_outputs()}
    for name, shape in shapes.items():
        if name not in given:
            raise BundleError(f"{manifest.id}: the graph has no output {name}; it has {', '.join(given)}")
        _check_shape(manifest, name, given[name], shape)


def _check_shape(manifest: Manifest, name: str, seen: Sequence[object], expected: Sequence[int | None]) -> None:
    if len(seen) != len(expected) or not all(map(_fits, seen, expected)):
        raise BundleError(f"{manifest.id}: output {name} is {list(seen)}; the manifest says {list(expected)}")


def _fits(seen: object, wanted: int | None) -> bool:
    return wanted is None or not isinstance(seen, int) or seen == wanted


def _output_shapes(manifest: Manifest, head: Head | None) -> dict[str, tuple[int | None, ...]]:
    """Without the batch axis; None where the manifest does not say."""
    shapes: dict[str, tuple[int | None, ...]] = {"logits": (len(manifest.labels),)}
    for layer in manifest.attention:
        shapes[layer.output] = layer.shape
    maps = manifest.maps
    if maps.pooling:
        shapes[maps.pooling] = (manifest.attention[-1].tokens,)
    if maps.rollout:
        shapes[maps.rollout] = (manifest.attention[-1].patches,)
    if maps.class_map:
        width = None if head is None else head.weight.shape[1]
        shapes[maps.class_map.tokens] = (maps.class_map.grid[0] * maps.class_map.grid[1], width)
    return shapes

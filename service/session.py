"""ONNX Runtime sessions: the provider that was asked for or none, explicit threads, no spinning, and a golden check.

Each runner has a session of model.onnx; relevance.onnx has one for all of them, which `service.relevance` opens.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from saccade.bundle import Bundle
from saccade.errors import BundleError, SettingsError
from saccade.golden import check_golden
from saccade.manifest import Manifest
from service.placement import CPU, RECORD, strayed
from service.postprocess import Head

PROVIDER_OPTIONS: dict[str, dict[str, str]] = {
    # TF32 keeps 10 bits of a number's 23, which is further from the trained model than a bundle allows. And the search
    # for the fastest convolution would begin anew for each number of pictures that a batch has.
    "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
}
CLASS_INDEX = "class_index"
"""The second input of relevance.onnx, int64 (batch, k)."""

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Shapes = dict[str, tuple[int | None, ...]]
"""Of outputs, without the batch axis; None where the manifest does not say."""


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
    """One session for labels, and the one that all share for maps of the gradient. `run` is called by one thread at a
    time.
    """

    def __init__(
        self,
        bundle: Bundle,
        providers: Sequence[str],
        threads: int,
        spinning: bool = False,
        head: Head | None = None,
        explaining: Callable[[], onnxruntime.InferenceSession] | None = None,
    ) -> None:
        """Opens the session, holds it to the manifest and to golden.npz. `explaining` gives that of relevance.onnx,
        where one is open. Raises BundleError, SettingsError.
        """
        self._manifest = bundle.manifest
        self._options = onnxruntime.RunOptions()
        self._shapes = output_shapes(bundle.manifest, head)
        self._explaining = explaining
        self._explains = False
        """Whether the last run was one of relevance.onnx."""
        self._session = open_session(bundle.manifest, bundle.graph, providers, threads, spinning)
        self.provider: str = self._session.get_providers()[0]
        check_interface(bundle.manifest, self._session, inputs_of(bundle.manifest), self._shapes)
        check_golden(bundle.manifest, bundle.golden, self.provider, self._run_golden)

    def run(self, pixels: Floats, outputs: Sequence[str], class_index: Indices | None = None) -> dict[str, Floats]:
        """(n, 3, H, W) -> the outputs named, each with n first; with `class_index` (n, k) those of relevance.onnx. Lets
        go of the GIL.
        """
        session = self._session
        feed: dict[str, NDArray[Any]] = {"pixel_values": pixels}
        self._explains = class_index is not None
        if class_index is not None:
            assert self._explaining is not None
            session = self._explaining()
            feed |= {CLASS_INDEX: class_index, **switches_of(self._manifest, outputs)}
        return dict(zip(outputs, session.run(list(outputs), feed, self._options), strict=True))

    def stop(self) -> None:
        """Asks a run that goes on in another thread to end at its next node; every later run fails at once."""
        self._options.terminate = True

    def spare(self) -> "OnnxRunner | None":
        """Another on the same session, where this one hangs in a run of relevance.onnx; None where it may be in use."""
        if not self._explains:
            return None
        other = copy.copy(self)
        other._options = onnxruntime.RunOptions()
        other._explains = False
        return other

    def _run_golden(self, pixels: Floats) -> dict[str, Floats]:
        return run_golden(self._manifest, self._shapes, lambda: self.run(pixels, self._manifest.outputs))


def switches_of(manifest: Manifest, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Further inputs of relevance.onnx, for these outputs."""
    return {name: np.array(on) for name, on in manifest.maps.switches(outputs).items()}


def session_options(threads: int, spinning: bool, provider: str = CPU) -> onnxruntime.SessionOptions:
    """What all sessions share; `threads` work on one operator."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads burn the cores that decode the next pictures, and those of a container's neighbours.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Nodes in the order of the file: most stand behind what they are made of, which is in the cache there.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    # Memory is used again either way. With this, as the graph is loaded a value gets what an earlier one of its shape
    # had, in the cache or not; without, all are fitted into one block by when they are needed, which takes up to a
    # quarter less and saves a transformer 2 % to 8 % of its time. On a GPU it has not been measured.
    options.enable_mem_reuse = provider != CPU
    return options


def open_session(
    manifest: Manifest,
    graph: Path,
    providers: Sequence[str],
    threads: int,
    spinning: bool,
    *,
    entries: Mapping[str, str] = MappingProxyType({}),
    without: Sequence[str] = (),
    warnings: bool = True,
) -> onnxruntime.InferenceSession:
    """With further `entries` of its configuration, `without` those optimizers, and without what ONNX Runtime warns of.
    Raises BundleError, SettingsError.
    """
    options = session_options(threads, spinning, providers[0])
    if not warnings:
        options.log_severity_level = 3
    strict = CPU not in providers
    for name, value in {**entries, **(RECORD if strict else {})}.items():
        options.add_session_config_entry(name, value)
    try:
        session = onnxruntime.InferenceSession(
            str(graph),
            options,
            providers=[(name, PROVIDER_OPTIONS.get(name, {})) for name in providers],
            disabled_optimizers=list(without),
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class with each other
        raise BundleError(f"ONNX Runtime does not load {graph}: {error}") from error
    got = session.get_providers()[0]
    left = strayed(session) if strict else []
    if got != providers[0] or left:
        raise SettingsError(
            f"{manifest.id} asked for {', '.join(providers)} and would get {CPU}{' for ' if left else ''}"
            f"{', '.join(left)}: is there such a device, with its driver? ONNX Runtime says more in the lines before"
        )
    return session


def run_golden(manifest: Manifest, shapes: Shapes, run: Callable[[], dict[str, Floats]]) -> dict[str, Floats]:
    """What `run` gives, in the shapes that the manifest says: a graph may leave its dimensions open. Raises
    BundleError.
    """
    try:
        outputs = run()
    except Exception as error:  # as above
        raise BundleError(f"{manifest.id} fails on its golden pictures: {error}") from error
    for name, shape in shapes.items():
        _check_shape(manifest, name, outputs[name].shape[1:], shape)
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


def inputs_of(manifest: Manifest) -> dict[str, tuple[str, list[int | str]]]:
    """Of model.onnx: name -> type and shape, in which a word is an axis of any length."""
    spec = manifest.preprocessing
    return {"pixel_values": ("tensor(float)", ["batch", 3, spec.height, spec.width])}


def check_interface(
    manifest: Manifest,
    session: onnxruntime.InferenceSession,
    inputs: Mapping[str, tuple[str, list[int | str]]],
    shapes: Shapes,
) -> None:
    """Raises BundleError unless the graph takes and gives what the manifest says."""
    taken = {one.name: (one.type, one.shape) for one in session.get_inputs()}
    if not (taken.keys() == inputs.keys() and all(map(_takes, taken.values(), (inputs[name] for name in taken)))):
        said, seen = (
            ", ".join(f"{name} {kind} [{', '.join(map(str, shape))}]" for name, (kind, shape) in one.items())
            for one in (inputs, taken)
        )
        raise BundleError(f"{manifest.id}: the graph takes {seen or 'no input'}; the manifest says {said}")
    given = {output.name: tuple(output.shape[1:]) for output in session.get_outputs()}
    for name, shape in shapes.items():
        if name not in given:
            raise BundleError(f"{manifest.id}: the graph has no output {name}; it has {', '.join(given)}")
        _check_shape(manifest, name, given[name], shape)


def _takes(seen: tuple[str, list[Any]], said: tuple[str, list[int | str]]) -> bool:
    """Axes of a fixed length have it, and the others have none."""
    lengths = [[one if isinstance(one, int) else None for one in shape] for _, shape in (seen, said)]
    return seen[0] == said[0] and lengths[0] == lengths[1]


def _check_shape(manifest: Manifest, name: str, seen: Sequence[object], expected: Sequence[int | None]) -> None:
    if len(seen) != len(expected) or not all(map(_fits, seen, expected)):
        raise BundleError(f"{manifest.id}: output {name} is {list(seen)}; the manifest says {list(expected)}")


def _fits(seen: object, wanted: int | None) -> bool:
    return wanted is None or not isinstance(seen, int) or seen == wanted


def output_shapes(manifest: Manifest, head: Head | None) -> Shapes:
    """Of what model.onnx gives."""
    shapes: Shapes = {"logits": (len(manifest.labels),)}
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

"""ONNX Runtime for the exporter: runs a bundle's graph on the CPU, as the service would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from saccade.errors import BundleError
from saccade.golden import Explain

Answer = Callable[[NDArray[np.float32]], dict[str, NDArray[np.float32]]]

PROVIDER = "CPUExecutionProvider"


def open_graph(
    graph: Path | bytes,
    *,
    threads: int = 0,
    only: tuple[str, ...] | None = None,
    optimised: bool = True,
    folder: Path | None = None,
) -> Answer:
    """A function (n, 3, H, W) -> outputs by name (`only` those, if given). Raises BundleError for a broken graph.

    `folder` is where a graph given as bytes has its external data.
    """
    session = _session(graph, threads, optimised, folder)
    names = list(only) if only else [output.name for output in session.get_outputs()]
    pixel_values = session.get_inputs()[0].name
    return lambda pixels: _run(session, names, {pixel_values: pixels})


def open_relevance(graph: Path | bytes, *, threads: int = 0, folder: Path | None = None) -> Explain:
    """As open_graph, of a relevance.onnx: (n, 3, H, W) and class_index (n, k) -> all that it gives."""
    session = _session(graph, threads, optimised=True, folder=folder, warnings=False)
    names, inputs = [output.name for output in session.get_outputs()], [one.name for one in session.get_inputs()]
    if len(inputs) < 2:
        raise BundleError(f"the graph takes {', '.join(inputs)} and no class: it is no relevance.onnx")
    pixel_values, class_index, *switches = inputs
    on = dict.fromkeys(switches, np.array(True))
    return lambda pixels, classes: _run(session, names, {pixel_values: pixels, class_index: classes, **on})


def _session(
    graph: Path | bytes, threads: int, optimised: bool, folder: Path | None, *, warnings: bool = True
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    if not warnings:  # it warns of each node that an If keeps it from taking away
        options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    given = str(graph) if isinstance(graph, Path) else graph
    try:
        return onnxruntime.InferenceSession(given, options, providers=[PROVIDER], enable_fallback=0)
    except Exception as error:  # its exceptions share no base class with each other
        said = graph if isinstance(graph, Path) else "the graph"
        raise BundleError(f"ONNX Runtime does not load {said}: {error}") from error


def _run(
    session: onnxruntime.InferenceSession, names: list[str], inputs: dict[str, NDArray[Any]]
) -> dict[str, NDArray[np.float32]]:
    try:
        outputs: list[NDArray[np.float32]] = session.run(names, inputs)
    except Exception as error:  # as above
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        raise BundleError(f"ONNX Runtime fails on {shapes}: {error}") from error
    return dict(zip(names, outputs, strict=True))

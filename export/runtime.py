"""ONNX Runtime for the exporter: runs a bundle's graph on the CPU, as the service would."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from saccade.errors import BundleError

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
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    given = str(graph) if isinstance(graph, Path) else graph
    try:
        session = onnxruntime.InferenceSession(given, options, providers=[PROVIDER], enable_fallback=0)
    except Exception as error:  # its exceptions share no base class with each other
        said = graph if isinstance(graph, Path) else "the graph"
        raise BundleError(f"ONNX Runtime does not load {said}: {error}") from error
    names = list(only) if only else [output.name for output in session.get_outputs()]
    pixel_values = session.get_inputs()[0].name

    def answer(pixels: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        try:
            outputs: list[NDArray[np.float32]] = session.run(names, {pixel_values: pixels})
        except Exception as error:  # as above
            raise BundleError(f"ONNX Runtime fails on pictures {list(pixels.shape)}: {error}") from error
        return dict(zip(names, outputs, strict=True))

    return answer

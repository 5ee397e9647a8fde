"""ONNX Runtime for the exporter: runs a bundle's graph on the CPU, as the service would."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from saccade.errors import BundleError

Answer = Callable[[NDArray[np.float32]], dict[str, NDArray[np.float32]]]

PROVIDER = "CPUExecutionProvider"


def open_graph(graph: Path, *, threads: int = 0, only: tuple[str, ...] | None = None) -> Answer:
    """A function (n, 3, H, W) -> outputs by name (`only` those, if given). Raises BundleError for a broken graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=[PROVIDER])
    except Exception as error:  # its exceptions share no base class with each other
        raise BundleError(f"ONNX Runtime does not load {graph}: {error}") from error
    names = list(only) if only else [output.name for output in session.get_outputs()]
    pixel_values = session.get_inputs()[0].name

    def answer(pixels: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = session.run(names, {pixel_values: pixels})
        return dict(zip(names, outputs, strict=True))

    return answer

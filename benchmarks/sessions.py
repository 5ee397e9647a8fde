"""ONNX Runtime's sessions as the service opens them, without the service."""

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from export.explain.relevance import CLASS_INDEX
from export.names import INPUT
from saccade.bundle import RELEVANCE, Bundle
from saccade.golden import made_pictures
from saccade.preprocess import normalize

Feed = dict[str, NDArray[np.generic]]
_SEED = 23


def open_labels(bundle: Bundle, threads: int) -> onnxruntime.InferenceSession:
    """model.onnx."""
    return onnxruntime.InferenceSession(
        str(bundle.graph), options_of(threads), providers=["CPUExecutionProvider"], enable_fallback=0
    )


def open_maps(bundle: Bundle, threads: int, *, shared: bool = True) -> onnxruntime.InferenceSession:
    """relevance.onnx; `shared`: its weights stay where the file is mapped, and no copies are made of them."""
    options = options_of(threads)
    if shared:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(
        str(bundle.folder / RELEVANCE), options, providers=["CPUExecutionProvider"], enable_fallback=0,
        disabled_optimizers=["ConstantFolding"] if shared else [],
    )  # fmt: skip


def options_of(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def feed_of(bundle: Bundle, batch: int, classes: int | None = None) -> Feed:
    """Made pictures, and of each the first classes, its top class first; None: for model.onnx."""
    spec = bundle.manifest.preprocessing
    feed: Feed = {INPUT: normalize(made_pictures(batch, spec.height, spec.width, _SEED), spec)}
    if classes is not None:
        feed[CLASS_INDEX] = np.tile(-1 - np.arange(classes), (batch, 1))
    return feed

"""ONNX Runtime's sessions as the service opens them, without the service."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from saccade.bundle import Bundle
from saccade.golden import made_pictures
from saccade.preprocess import normalize
from service.placement import CPU
from service.relevance import SHARED, left_out
from service.session import CLASS_INDEX, open_session, switches_of

LOGITS = "logits"
Feed = dict[str, NDArray[Any]]
_SEED = 23


def open_labels(bundle: Bundle, threads: int, provider: str = CPU) -> onnxruntime.InferenceSession:
    """model.onnx."""
    return open_session(bundle.manifest, bundle.graph, [provider], threads, False)


def open_maps(
    bundle: Bundle, threads: int, provider: str = CPU, *, shared: bool = True
) -> onnxruntime.InferenceSession:
    """relevance.onnx; not `shared`: by ONNX Runtime's defaults, which make copies of the weights."""
    if not shared:
        return open_session(bundle.manifest, bundle.relevance, [provider], threads, False)
    return open_session(
        bundle.manifest, bundle.relevance, [provider], threads, False, entries=SHARED, warnings=False,
        without=left_out(bundle, provider),
    )  # fmt: skip


def feed_of(bundle: Bundle, batch: int) -> Feed:
    """Made pictures, for model.onnx."""
    spec = bundle.manifest.preprocessing
    return {"pixel_values": normalize(made_pictures(batch, spec.height, spec.width, _SEED), spec)}


def maps_feed_of(bundle: Bundle, batch: int, classes: int, outputs: Sequence[str]) -> Feed:
    """The same pictures, of each the first classes, its top class first, and only those maps worked out that are among
    the outputs.
    """
    asked = np.tile(-1 - np.arange(classes), (batch, 1))
    return {**feed_of(bundle, batch), CLASS_INDEX: asked, **switches_of(bundle.manifest, outputs)}

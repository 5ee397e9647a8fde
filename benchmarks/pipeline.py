"""The work of one picture without a server: decode, run, encode, by the service's own functions.

The limit and all peers use it, so that model file, preprocessing and answer are the same to the byte, but for
request_id and timing. It imports no more than the environments of the peers have.
"""

import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from saccade.api import ClassifyOptions
from saccade.bundle import open_bundle
from saccade.decode import decode
from saccade.geometry import Region, region
from saccade.preprocess import normalize, resize
from service import postprocess
from service.encode import to_json
from service.selection import select
from service.session import load_head, session_options

_MAX_RESPONSE_BYTES = 32 * 2**20

Outputs = dict[str, NDArray[np.float32]]


class Decoded(NamedTuple):
    pixels: NDArray[np.uint8]  # (H, W, 3)
    size: tuple[int, int]  # (width, height), upright
    seen: Region
    seconds: float


class Pipeline:
    """One session of one model, for one query. Its methods may be called from several threads."""

    def __init__(self, bundle_folder: Path, query: str, intra_op_threads: int, spinning: bool) -> None:
        bundle = open_bundle(bundle_folder)
        self._manifest = bundle.manifest
        self._head = load_head(bundle)
        options = ClassifyOptions.from_query(parse_qsl(query))
        self._selection = select(bundle.manifest, options, _MAX_RESPONSE_BYTES)
        self._session = onnxruntime.InferenceSession(
            str(bundle.graph), session_options(intra_op_threads, spinning), providers=["CPUExecutionProvider"]
        )

    def decode(self, body: bytes) -> Decoded:
        started = time.monotonic()
        spec = self._manifest.preprocessing
        picture = decode(body, spec.background)
        seen = region(picture.width, picture.height, spec)
        pixels = resize(picture, spec)
        return Decoded(pixels, picture.size, seen, time.monotonic() - started)

    def run(self, batch: Sequence[Decoded]) -> list[Outputs]:
        """One run of all pictures; of the outputs only those that the query needs."""
        pixels = normalize(np.stack([decoded.pixels for decoded in batch]), self._manifest.preprocessing)
        names = self._selection.outputs
        values = self._session.run(list(names), {"pixel_values": pixels})
        return [{name: value[index] for name, value in zip(names, values, strict=True)} for index in range(len(batch))]

    def encode(
        self,
        decoded: Decoded,
        outputs: Outputs,
        *,
        batch_size: int = 1,
        queue_s: float = 0.0,
        run_s: float = 0.0,
        total_s: float = 0.0,
    ) -> bytes:
        """The JSON that the service sends."""
        fields = postprocess.answer(self._manifest, self._head, self._selection, outputs, decoded.size, decoded.seen)
        timing = {
            "decode_ms": _milliseconds(decoded.seconds),
            "queue_ms": _milliseconds(queue_s),
            "run_ms": _milliseconds(run_s),
            "total_ms": _milliseconds(total_s),
            "batch_size": batch_size,
        }
        return to_json({"request_id": secrets.token_hex(8), **fields, "timing": timing})

    def classify(self, bodies: Sequence[bytes]) -> list[bytes]:
        """Bodies -> answers, as one batch, in the thread that calls."""
        started = time.monotonic()
        batch = [self.decode(body) for body in bodies]
        running = time.monotonic()
        results = self.run(batch)
        ran = time.monotonic()
        return [
            self.encode(
                decoded, outputs, batch_size=len(batch), run_s=ran - running, total_s=time.monotonic() - started
            )
            for decoded, outputs in zip(batch, results, strict=True)
        ]


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)

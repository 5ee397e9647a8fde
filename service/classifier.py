"""One model, serving: the pipeline on one screen. Start reading here.

select -> admit -> decode -> batch -> run -> postprocess -> encode
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from saccade import api
from saccade.api import ClassifyOptions
from saccade.bundle import Bundle
from saccade.decode import decode
from saccade.errors import DeadlineExceeded
from saccade.geometry import Region, region
from saccade.preprocess import preprocess
from service import postprocess
from service.batcher import Batcher, Ran
from service.encode import to_json
from service.metrics import Metrics
from service.selection import Selection, select, too_large
from service.session import OnnxRunner, load_head
from service.settings import Settings

_LARGE_ANSWER = 20_000  # numbers; to encode more would hold up the event loop


_Result = TypeVar("_Result")

Receive = Callable[[], Awaitable[Callable[[], bytes]]]


class _Decoded(NamedTuple):
    pixels: NDArray[np.float32]  # (3, H, W)
    size: tuple[int, int]  # (width, height), upright
    seen: Region
    seconds: float


class Classifier:
    def __init__(self, bundle: Bundle, settings: Settings, workers: Executor, metrics: Metrics) -> None:
        """Opens the sessions and checks them. Raises BundleError, SettingsError."""
        self.manifest = bundle.manifest
        self._head = load_head(bundle)
        self._settings = settings
        self._workers = workers
        self._metrics = metrics
        runners = [
            OnnxRunner(bundle, settings.providers, settings.threads_a_session, self._head)
            for _ in range(settings.instances)
        ]
        self.plan = api.Plan(
            provider=runners[0].provider,
            instances=settings.instances,
            intra_op_threads=settings.threads_a_session,
            max_batch=settings.max_batch,
        )
        self.batcher = Batcher(
            runners,
            max_batch=settings.max_batch,
            capacity=settings.queue_images,
            on_drop=metrics.dropped(self.manifest),
        )
        metrics.add_model(self.manifest, self.plan, lambda: self.batcher.admitted)

    async def classify(self, receive: Receive, options: ClassifyOptions, request_id: str, started: float) -> bytes:
        """One picture -> the JSON of its answer.

        `receive` waits for the body and gives a function that makes the picture's bytes of it, which is called in a
        worker thread. `started` is when the request came, of time.monotonic(). Raises RequestError and ServiceError.
        """
        selection = select(self.manifest, options, self._settings.max_response_bytes)
        timeout = (options.timeout_ms or self._settings.timeout_ms) / 1000
        with self.batcher.admission():  # before the body is read: what is not admitted costs no memory
            try:
                async with asyncio.timeout(started + timeout - time.monotonic()):
                    decoded = await self._in_worker(self._decode, await receive())
                    ran = await self.batcher.run(decoded.pixels, selection.outputs, started + timeout)
            except TimeoutError:
                raise DeadlineExceeded(f"no answer within the deadline of {timeout * 1000:.0f} ms") from None
            self._metrics.observe(self.manifest, decoded.seconds, ran.queue_s, ran.run_s, ran.batch_size)
            finish = functools.partial(self._finish, selection, decoded, ran, request_id, started)
            # still admitted: answers that are being encoded are bounded as well
            body = await self._in_worker(finish) if selection.numbers > _LARGE_ANSWER else finish()
        if len(body) > self._settings.max_response_bytes:
            raise too_large(self.manifest, options, self._settings.max_response_bytes, str(len(body)))
        return body

    def close(self) -> None:
        self.batcher.close()

    def _decode(self, read: Callable[[], bytes]) -> _Decoded:
        started = time.monotonic()
        spec = self.manifest.preprocessing
        picture = decode(read(), spec.background, self._settings.max_pixels)
        seen = region(picture.width, picture.height, spec)
        pixels = preprocess(picture, spec)
        return _Decoded(pixels, picture.size, seen, time.monotonic() - started)

    def _finish(self, selection: Selection, decoded: _Decoded, ran: Ran, request_id: str, started: float) -> bytes:
        fields = postprocess.answer(self.manifest, self._head, selection, ran.outputs, decoded.size, decoded.seen)
        timing = {
            "decode_ms": _milliseconds(decoded.seconds),
            "queue_ms": _milliseconds(ran.queue_s),
            "run_ms": _milliseconds(ran.run_s),
            "total_ms": _milliseconds(time.monotonic() - started),
            "batch_size": ran.batch_size,
        }
        return to_json({"request_id": request_id, **fields, "timing": timing})

    async def _in_worker(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._workers, work, *arguments)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)

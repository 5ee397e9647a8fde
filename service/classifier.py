"""One model, serving: the pipeline on one screen. Start reading here.

select -> admit -> receive -> decode -> batch -> run -> postprocess -> encode
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.api import ClassifyOptions
from saccade.bundle import Bundle
from saccade.decode import decode
from saccade.errors import DeadlineExceeded
from saccade.geometry import Region, region
from saccade.preprocess import preprocess
from service import postprocess
from service.batcher import Batcher, Ran, Runner
from service.encode import to_json
from service.metrics import Metrics
from service.plan import Cpus, make_plan, stand_back
from service.selection import Selection, select, too_large
from service.session import OnnxRunner, load_head
from service.settings import Settings
from service.workers import Workers

_LARGE_ANSWER = 20_000  # numbers; to encode more would hold up the event loop

Receive = Callable[[], Awaitable[Callable[[], bytes]]]


class Picture(NamedTuple):
    """A decoded picture."""

    pixels: NDArray[np.float32]  # (3, H, W)
    size: tuple[int, int]  # (width, height), upright
    seen: Region


class Classifier:
    def __init__(self, bundle: Bundle, settings: Settings, cpus: Cpus, workers: Workers, metrics: Metrics) -> None:
        """Opens the sessions and checks them. Raises BundleError, SettingsError."""
        self.manifest = bundle.manifest
        self._head = head = load_head(bundle)
        self._settings = settings
        self._workers = workers
        self._metrics = metrics.model(self.manifest)
        self.plan = plan = make_plan(settings, cpus, settings.providers[0])

        def open_runner() -> OnnxRunner:
            return OnnxRunner(bundle, settings.providers, plan.intra_op_threads, plan.spinning, head)

        def replace(hung: Runner) -> OnnxRunner:
            if isinstance(hung, OnnxRunner):
                hung.stop()
            return open_runner()

        with ThreadPoolExecutor(
            plan.instances, initializer=stand_back
        ) as openers:  # a session's threads are its opener's
            runners = [opening.result() for opening in [openers.submit(open_runner) for _ in range(plan.instances)]]
        self.start(runners, replace)

    def start(self, runners: Sequence[Runner], replace: Callable[[Runner], Runner] | None = None) -> None:
        """Lets `runners` do the work, as the plan says; `replace` gives a new one for one that hangs."""
        self.batcher: Batcher[Picture] = Batcher(
            runners,
            self._workers,
            self._metrics,
            max_batch=self.plan.max_batch,
            capacity=self.plan.queue_images,
            max_wait_s=self.plan.max_wait_ms / 1000,
            run_timeout_s=self.plan.run_timeout_s,
            replace=replace,
        )
        self._metrics.serves(self.plan, self.batcher)

    async def classify(self, receive: Receive, options: ClassifyOptions, request_id: str, started: float) -> bytes:
        """One picture -> the JSON of its answer.

        `receive` waits for the body and gives a function that makes the picture's bytes of it, which is called in a
        worker thread. `started` is when the request came, of time.monotonic(). Raises RequestError and ServiceError.
        """
        selection = select(self.manifest, options, self._settings.max_response_bytes)
        timeout = (options.timeout_ms or self._settings.timeout_ms) / 1000
        # a caller with a longer deadline than the service's own must not keep a place by sending no body
        patience = min(timeout, self._settings.timeout_ms / 1000)
        with self.batcher.admission():  # before the body is read: what is not admitted costs no memory
            try:
                async with asyncio.timeout(started + patience - time.monotonic()) as limit:
                    read = await receive()
                    received = time.monotonic()
                    if timeout > patience:
                        limit.reschedule(asyncio.get_running_loop().time() + started + timeout - received)
                        patience = timeout
                    picture = functools.partial(self._decode, read)
                    ran = await self.batcher.run(picture, selection.outputs, started + timeout)
                    encoding = time.monotonic()
                    finish = functools.partial(self._finish, selection, ran, request_id, started)
                    # still admitted: answers that are being encoded are bounded as well
                    body = await self._workers.call(finish) if selection.numbers > _LARGE_ANSWER else finish()
            except TimeoutError:
                raise DeadlineExceeded(f"no answer within the deadline of {patience * 1000:.0f} ms") from None
        if len(body) > self._settings.max_response_bytes:
            raise too_large(self.manifest, options, self._settings.max_response_bytes, str(len(body)))
        ended = time.monotonic()
        self._metrics.image(received - started, ran.decode_s, ran.queue_s, ran.run_s, ended - encoding)
        return body

    def close(self) -> None:
        self.batcher.close()

    def _decode(self, read: Callable[[], bytes]) -> Picture:
        spec = self.manifest.preprocessing
        picture = decode(read(), spec.background, self._settings.max_pixels)
        return Picture(preprocess(picture, spec), picture.size, region(picture.width, picture.height, spec))

    def _finish(self, selection: Selection, ran: Ran[Picture], request_id: str, started: float) -> bytes:
        picture = ran.picture
        fields = postprocess.answer(self.manifest, self._head, selection, ran.outputs, picture.size, picture.seen)
        timing = {
            "decode_ms": _milliseconds(ran.decode_s),
            "queue_ms": _milliseconds(ran.queue_s),
            "run_ms": _milliseconds(ran.run_s),
            "total_ms": _milliseconds(time.monotonic() - started),
            "batch_size": ran.batch_size,
        }
        return to_json({"request_id": request_id, **fields, "timing": timing})


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)

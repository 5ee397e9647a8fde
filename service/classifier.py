"""One model, serving: the pipeline on one screen. Start reading here.

select -> admit -> receive -> queue -> decode -> run -> postprocess -> encode
"""

import asyncio
import functools
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.api import ClassifyOptions, Plan
from saccade.bundle import Bundle
from saccade.decode import decode, plain_pixels
from saccade.errors import DeadlineExceeded, RequestTimeout, SettingsError
from saccade.geometry import Region, region
from saccade.manifest import MapName
from saccade.preprocess import normalize, resize
from service import postprocess
from service.batcher import Batcher, Ran, Runner
from service.encode import LARGE, to_json
from service.memory import own_memory, refusal_of_sessions
from service.metrics import Metrics
from service.placement import CPU
from service.plan import stand_back
from service.relevance import Relevance
from service.selection import Gradients, Selection, offered, select, too_large
from service.session import OnnxRunner, load_head
from service.settings import Settings
from service.workers import Workers

_SMALL_BYTES, _SMALL_PIXELS = 2**14, 2**14
"""A plain picture of at most so many, for a model that takes at most so many, is decoded on the event loop: that takes
tenths of a millisecond, as handing it over does while the event loop is busy."""

Body = bytes | Callable[[], bytes]
"""The bytes of a picture, or what makes them of something else that came: not on the event loop."""


class Picture(NamedTuple):
    """A decoded picture, a quarter of the size of its pixel values, which are made where a batch needs them."""

    pixels: NDArray[np.uint8]  # (H, W, 3)
    size: tuple[int, int]  # (width, height), upright
    seen: Region

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width, channels = self.pixels.shape
        return channels, height, width


class Answered(NamedTuple):
    """The bytes of an answer, and what making them took, in seconds."""

    body: bytes
    decode_s: float
    queue_s: float
    run_s: float
    encode_s: float


class Classifier:
    def __init__(self, bundle: Bundle, settings: Settings, plan: Plan, workers: Workers, metrics: Metrics) -> None:
        """Opens the sessions and checks them. Raises BundleError, SettingsError."""
        self.manifest = bundle.manifest
        self.plan = plan
        self._head = head = load_head(bundle)
        self._settings = settings
        self._workers = workers
        self._metrics = metrics.model(self.manifest)
        gradients = None if settings.relevance == "off" else self.manifest.maps.gradients
        relevance = None if gradients is None else Relevance(bundle, gradients, settings.providers, plan, head)
        self._relevance = relevance
        # a caller asks for the same thing of many pictures
        self._select = functools.lru_cache(64)(
            functools.partial(
                select,
                self.manifest,
                max_bytes=settings.max_response_bytes,
                max_classes=settings.max_classes,
            )
        )

        def open_runner() -> OnnxRunner:
            return OnnxRunner(
                bundle,
                settings.providers,
                plan.intra_op_threads,
                plan.spinning,
                head,
                None if relevance is None else (lambda: relevance.session),
            )

        def replace(hung: Runner) -> OnnxRunner:
            if isinstance(hung, OnnxRunner):
                hung.stop()
                return hung.spare() or open_runner()
            return open_runner()

        before = own_memory()
        # on a GPU the weights leave the process's memory again, and the first session brings the driver's along
        kept = plan.instances if plan.provider == CPU else 1
        self._check_memory(kept, bundle.weights.stat().st_size)
        with ThreadPoolExecutor(
            plan.instances, initializer=stand_back
        ) as openers:  # a session's threads are its opener's
            runners = [openers.submit(open_runner).result()]
            self._check_memory(kept - 1, own_memory() - before)
            runners += [opening.result() for opening in [openers.submit(open_runner) for _ in range(1, plan.instances)]]
            if relevance is not None and settings.relevance == "start":
                openers.submit(relevance.open).result()
        self.start(runners, replace)

    def start(self, runners: Sequence[Runner], replace: Callable[[Runner], Runner] | None = None) -> None:
        """Lets `runners` do the work, as the plan says; `replace` gives a new one for one that hangs."""
        self.batcher: Batcher[Picture, Answered] = Batcher(
            runners,
            self._write,
            self._workers if self.plan.decode_threads else None,
            self._metrics,
            max_batch=self.plan.max_batch,
            capacity=self.plan.queue_images,
            max_wait_s=self.plan.max_wait_ms / 1000,
            run_timeout_s=self.plan.run_timeout_s,
            replace=replace,
        )
        self._metrics.serves(self.plan, self.batcher)

    @property
    def maps(self) -> tuple[MapName, ...]:
        """Those that may be asked for: once relevance.onnx could not be opened, none of the gradient."""
        return offered(self.manifest, self._gradients)

    def open_for(self, options: ClassifyOptions) -> None:
        """Opens relevance.onnx where `options` need it, so that whoever calls this hears himself what is wrong with it.

        Raises RequestError, BundleError, SettingsError.
        """
        selection = self._select(options, gradients=self._gradients)
        if self._relevance is not None and selection.class_index:
            with ThreadPoolExecutor(1, initializer=stand_back) as opener:
                opener.submit(self._relevance.open).result()

    @property
    def _gradients(self) -> Gradients:
        if self._relevance is None:
            return "off"
        return "failed" if self._relevance.failed else "on"

    async def classify(
        self,
        receive: Callable[[], Awaitable[Body]],
        deliver: Callable[[bytes], Awaitable[None]],
        options: ClassifyOptions,
        request_id: str,
        started: float,
    ) -> None:
        """One picture -> the JSON of its answer.

        `receive` waits for the body, and `deliver` until the answer has been taken. `started` is when the request
        came, of time.monotonic(). Raises RequestError and ServiceError.
        """
        selection = self._select(options, gradients=self._gradients)
        timeout = (options.timeout_ms or self._settings.timeout_ms) / 1000
        arrival = min(timeout if options.timeout_ms else math.inf, self._settings.transfer_timeout_s)
        received = 0.0
        with self.batcher.admission():  # before the body is read: what is not admitted costs no memory
            try:
                async with asyncio.timeout(started + arrival - time.monotonic()) as limit:
                    body = await receive()
                    received = time.monotonic()
                    # a caller's deadline runs from the start; the service's own leaves out what was not its time
                    deadline = (started if options.timeout_ms else received) + timeout
                    limit.reschedule(asyncio.get_running_loop().time() + deadline - received)
                    reading = functools.partial(self._decode, body)
                    finish = functools.partial(self._finish, selection, request_id, started)
                    here = self._is_small(body)
                    running = self.batcher.run(
                        reading,
                        selection.outputs,
                        finish,
                        deadline,
                        class_index=selection.class_index,
                        opened=self._relevance.opened if self._relevance and selection.class_index else None,
                        here=here,
                    )
                    del body, reading  # an upload is let go once its picture is decoded
                    answered = await running
            except TimeoutError:
                if not received:
                    raise RequestTimeout(f"the body was not there within {arrival:g} s") from None
                raise DeadlineExceeded(f"no answer within the deadline of {timeout * 1000:.0f} ms") from None
            answer, *seconds = answered
            if len(answer) > self._settings.max_response_bytes:
                raise too_large(self.manifest, options, self._settings.max_response_bytes, str(len(answer)))
            self._metrics.image(received - started, *seconds)
            if len(answer) > LARGE:
                await deliver(answer)  # in its place: unread ones are as many as the images admitted, at the most
                return
        await deliver(answer)  # whoever does not read what a connection keeps anyway takes nobody's place

    def close(self) -> None:
        if self._relevance is not None:
            self._relevance.close()
        self.batcher.close()

    def _check_memory(self, sessions: int, each: int) -> None:
        """Raises SettingsError where so many sessions more, of at least so many bytes, do not fit the limit."""
        refusal = refusal_of_sessions(self.plan.memory_limit, self.manifest.id, sessions, each)
        if refusal is not None:
            raise SettingsError(refusal)

    def _is_small(self, body: Body) -> bool:
        spec = self.manifest.preprocessing
        if callable(body) or len(body) > _SMALL_BYTES or spec.width * spec.height > _SMALL_PIXELS:
            return False
        pixels = plain_pixels(body)
        return pixels is not None and pixels <= _SMALL_PIXELS

    def _decode(self, body: Body) -> Picture:
        spec = self.manifest.preprocessing
        picture = decode(body() if callable(body) else body, spec.background, self._settings.max_pixels)
        return Picture(resize(picture, spec), picture.size, region(picture.width, picture.height, spec))

    def _write(self, pictures: Sequence[Picture], rows: NDArray[np.float32]) -> None:
        pixels: NDArray[np.uint8] = np.frombuffer(b"".join([one.pixels.data for one in pictures]), np.uint8)
        normalize(pixels.reshape(len(pictures), *pictures[0].pixels.shape), self.manifest.preprocessing, out=rows)

    def _finish(self, selection: Selection, request_id: str, started: float, ran: Ran[Picture]) -> Answered:
        began = time.monotonic()
        picture = ran.picture
        fields = postprocess.answer(self.manifest, self._head, selection, ran.outputs, picture.size, picture.seen)
        timing = {
            "decode_ms": _milliseconds(ran.decode_s),
            "queue_ms": _milliseconds(ran.queue_s),
            "run_ms": _milliseconds(ran.run_s),
            "total_ms": _milliseconds(time.monotonic() - started),
            "batch_size": ran.batch_size,
        }
        body = to_json({"request_id": request_id, **fields, "timing": timing})
        return Answered(body, ran.decode_s, ran.queue_s, ran.run_s, time.monotonic() - began)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)

"""Bounded admission, and batches of whatever came while the last one ran. No timer.

Threads own runners, one each, and nothing in a runner is locked. An entry whose caller left or whose deadline passed
is dropped before it costs a run; a run that fails answers each of its members, and the next one runs.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from saccade.errors import DeadlineExceeded, InferenceFailed, Overloaded, ServiceError

log = logging.getLogger("saccade.batcher")

Floats = NDArray[np.float32]


class Runner(Protocol):
    """The seam to the engine."""

    def run(self, pixels: Floats, outputs: Sequence[str]) -> dict[str, Floats]: ...


class Ran(NamedTuple):
    """What became of one image."""

    outputs: dict[str, Floats]  # without the batch axis
    batch_size: int
    queue_s: float
    run_s: float


class _Entry(NamedTuple):
    pixels: Floats  # (3, H, W)
    outputs: tuple[str, ...]
    deadline: float  # of time.monotonic()
    queued: float
    future: "asyncio.Future[Ran]"


class Batcher:
    """Admission, queue and runner threads of one model. All callers share one event loop."""

    def __init__(
        self,
        runners: Sequence[Runner],
        *,
        max_batch: int,
        capacity: int,
        on_drop: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_drop` is called, in a runner's thread, for each image that was dropped before it cost a run."""
        self._max_batch = max_batch
        self._capacity = capacity
        self._admitted = 0
        self._rate = 0.0  # images/s, smoothed
        self._waiting: deque[_Entry] = deque()
        self._arrived = threading.Condition()
        self._closed = False
        self._on_drop = on_drop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = [
            threading.Thread(target=self._work, args=(runner,), name=f"runner-{index}", daemon=True)
            for index, runner in enumerate(runners)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def admitted(self) -> int:
        """Images accepted and not yet answered."""
        return self._admitted

    @contextmanager
    def admission(self) -> Iterator[None]:
        """A place for one image, tried and never awaited. Raises Overloaded."""
        if self._admitted >= self._capacity:
            seconds = math.ceil(self._admitted / self._rate) if self._rate else 1
            raise Overloaded(
                f"{self._admitted} images are waiting; the limit is {self._capacity}", min(max(seconds, 1), 60)
            )
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    async def run(self, pixels: Floats, outputs: tuple[str, ...], deadline: float) -> Ran:
        """Runs one image in the next batch. Raises InferenceFailed; cancelling it takes the image out of the queue."""
        loop = asyncio.get_running_loop()
        entry = _Entry(pixels, outputs, deadline, time.monotonic(), loop.create_future())
        with self._arrived:
            if self._closed:
                raise InferenceFailed("the engine has stopped")
            if self._loop not in (None, loop):
                raise RuntimeError("a batcher serves one event loop; this is another one")
            self._loop = loop
            self._waiting.append(entry)
            self._arrived.notify()
        return await entry.future

    def close(self) -> None:
        """Lets running batches end; entries still waiting are answered with InferenceFailed."""
        with self._arrived:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._arrived.notify_all()
        if left:
            self._deliver(left, InferenceFailed("the engine has stopped"))
        for thread in self._threads:
            thread.join()

    def _work(self, runner: Runner) -> None:
        while batch := self._next_batch():
            started = time.monotonic()
            try:
                outputs = self._run(runner, batch)
            except BaseException as error:  # even of SystemExit a runner's thread must not die: each member gets an
                # answer and the next batch runs
                log.exception("a batch of %d failed", len(batch))
                self._deliver(batch, InferenceFailed(f"a batch of {len(batch)} failed: {type(error).__name__}"))
                continue
            seconds = time.monotonic() - started
            rate = len(batch) / seconds if seconds else self._rate
            self._rate = 0.9 * self._rate + 0.1 * rate if self._rate else rate
            self._deliver(batch, outputs, started, seconds)

    def _run(self, runner: Runner, batch: list[_Entry]) -> dict[str, Floats]:
        wanted = tuple(dict.fromkeys(name for entry in batch for name in entry.outputs))
        outputs = runner.run(np.stack([entry.pixels for entry in batch]), wanted)
        for name in wanted:
            if len(outputs[name]) != len(batch):
                raise ValueError(f"output {name} has {len(outputs[name])} rows for a batch of {len(batch)}")
        return outputs

    def _next_batch(self) -> list[_Entry]:
        """Waits for at least one live entry; empty once closed."""
        with self._arrived:
            while not self._closed:
                batch: list[_Entry] = []
                while self._waiting and len(batch) < self._max_batch:
                    entry = self._waiting.popleft()
                    late = time.monotonic() >= entry.deadline
                    if late:
                        self._deliver([entry], DeadlineExceeded("the deadline passed before the image could run"))
                    if late or entry.future.cancelled():
                        self._on_drop()
                    else:
                        batch.append(entry)
                if batch:
                    return batch
                self._arrived.wait()
            return []

    def _deliver(
        self,
        batch: list[_Entry],
        outcome: dict[str, Floats] | ServiceError,
        started: float = 0.0,
        seconds: float = 0.0,
    ) -> None:
        """Hands the outcome to the event loop, which alone may touch futures."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_answer, batch, outcome, started, seconds)
        except RuntimeError:
            log.warning("%d answers came after the event loop had closed", len(batch))


def _answer(batch: list[_Entry], outcome: dict[str, Floats] | ServiceError, started: float, seconds: float) -> None:
    for index, entry in enumerate(batch):
        if entry.future.done():  # the caller left meanwhile
            continue
        if isinstance(outcome, ServiceError):
            entry.future.set_exception(outcome)
        else:
            own = {name: outcome[name][index] for name in entry.outputs}
            entry.future.set_result(Ran(own, len(batch), started - entry.queued, seconds))

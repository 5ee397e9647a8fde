"""Bounded admission, and batches of whatever came while the last one ran.

An entry walks through threads by itself, and the event loop is woken once a batch. Without workers a runner's thread
does all of a batch from decoding to the answers' bytes, as a bare loop would; with them it only runs, and they decode
ahead of it and finish behind it. One thread owns one runner, and nothing in a runner is locked. An entry whose caller
left or whose deadline passed is dropped before it costs a step; a run that fails or hangs answers each of its members,
and the next one runs.
"""

import asyncio
import functools
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from saccade.errors import DeadlineExceeded, InferenceFailed, Overloaded, SaccadeError
from service.plan import stand_back
from service.workers import Workers

log = logging.getLogger("saccade.batcher")

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

RUNNER = "runner"
"""Name of the threads that run batches."""

_STOPPED = "the engine has stopped"
_BROKEN = "no session is left that works"
_MOST_HUNG = 3
"""A run that never ends keeps its session and its thread; with so many at once only a restart helps."""

_OPENING = 10
"""Run timeouts that a new session may take to open before it counts as hung too."""

_CLOSING_S = 2.0
"""How long closing waits for a run: who still waits for its answers has been told, or has had the drain's time."""


class Runner(Protocol):
    """The seam to the engine."""

    def run(self, pixels: Floats, outputs: Sequence[str], class_index: Indices | None) -> dict[str, Floats]:
        """(n, 3, H, W) -> the outputs named, each with n first; `class_index` (n, k) for maps of the gradient."""


class Picture(Protocol):
    """What decoding gives; the batcher reads nothing but the shape that it has in a batch."""

    @property
    def shape(self) -> tuple[int, int, int]: ...  # (3, H, W)


_Picture = TypeVar("_Picture", bound=Picture)
_Answer = TypeVar("_Answer")


class Ran(NamedTuple, Generic[_Picture]):
    """What became of one image; times in seconds."""

    picture: _Picture
    outputs: dict[str, Floats]  # without the batch axis
    batch_size: int
    decode_s: float
    queue_s: float
    """Waiting for what it needs to be opened, for whoever decodes it, and for a runner."""
    run_s: float


class _Entry(Generic[_Picture, _Answer]):
    """One image on its way; each step writes down when it passed."""

    __slots__ = (
        "class_index", "classes", "deadline", "decode", "decode_s", "finish", "future", "outputs", "picture", "queued",
        "submitted",
    )  # fmt: skip

    def __init__(
        self,
        decode: Callable[[], _Picture],
        outputs: tuple[str, ...],
        class_index: tuple[int, ...],
        finish: Callable[[Ran[_Picture]], _Answer],
        deadline: float,
        future: "asyncio.Future[_Answer]",
    ) -> None:
        self.decode: Callable[[], _Picture] | None = decode
        """Gives the picture; gone once it did, and with it the body."""
        self.outputs = outputs
        self.class_index = class_index
        self.classes = len(class_index)
        """Those that share a batch have as many."""
        self.finish = finish
        self.deadline = deadline  # of time.monotonic()
        self.future = future
        self.submitted = self.queued = time.monotonic()
        self.decode_s = 0.0
        self.picture: _Picture

    def decode_now(self) -> None:
        """Raises what decoding raises."""
        assert self.decode is not None
        decode, self.decode = self.decode, None
        started = time.monotonic()
        self.picture = decode()
        self.queued = time.monotonic()
        self.decode_s = self.queued - started


class _Lane:
    """A runner's thread, and what it is running."""

    def __init__(self, work: Callable[["_Lane"], None], make: Callable[[], Runner]) -> None:
        self.thread = threading.Thread(target=work, args=(self,), name=RUNNER, daemon=True)
        self.make: Callable[[], Runner] | None = make
        """Gives the runner; gone once it did, since it may hold a runner that was given up."""
        self.runner: Runner
        self.pixels: Floats | None = None
        """Where the pictures of a batch stand side by side; (max_batch, 3, H, W)."""
        self.last_run_s = 0.0
        self.gathered: list[_Entry[Any, Any]] = []
        """Taken from the queue, and not yet in a run."""
        self.batch: Sequence[_Entry[Any, Any]] = ()
        self.started = time.monotonic()
        """When it began to run the batch, or to make the runner."""

    def late(self, now: float, run_timeout_s: float) -> float:
        """Seconds by which it is over its time, negative while it is not; -inf for one that waits for work."""
        if self.make is not None:
            return now - self.started - _OPENING * run_timeout_s
        return now - self.started - run_timeout_s if self.batch else -math.inf


class Meter(Protocol):
    """Who counts. `dropped` and `hung` come from other threads, `ran` from the event loop."""

    def dropped(self, reason: Literal["left", "late"]) -> None:
        """An image that was dropped before it cost a run."""

    def ran(self, size: int, seconds: float, classes: int) -> None:
        """A run that succeeded, with maps of the gradient for so many classes."""

    def hung(self) -> None:
        """A run that was given up."""


class Batcher(Generic[_Picture, _Answer]):
    """Admission, queue and runner threads of one model. All callers share one event loop."""

    def __init__(
        self,
        runners: Sequence[Runner],
        write: Callable[[Sequence[_Picture], Floats], None],
        workers: Workers | None,
        meter: Meter,
        *,
        max_batch: int,
        capacity: int,
        max_wait_s: float = 0.0,
        run_timeout_s: float = math.inf,
        replace: Callable[[Runner], Runner] | None = None,
    ) -> None:
        """`write` writes the pixel values of pictures into the rows of an array, (n, 3, H, W).

        Without `workers` each runner's thread decodes its batch before it and finishes it behind it.
        `replace` gives a new runner for one that hangs, in a thread of its own; without it that lane is lost.
        """
        self._write = write
        self._workers = workers
        self._meter = meter
        self._max_batch = max_batch
        self._capacity = capacity
        self._max_wait_s = max_wait_s
        self._run_timeout_s = run_timeout_s
        self._replace = replace
        self._admitted = 0
        self._rate = _Rate()
        self._ahead: dict[_Entry[_Picture, _Answer], None] = {}  # all that wait for anything, the oldest first
        self._waiting: deque[_Entry[_Picture, _Answer]] = deque()  # those that wait for a runner's thread
        self._arrived = threading.Condition(threading.Lock())
        self._closed = threading.Event()
        self._hung = 0
        self._lanes: list[_Lane] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        for runner in runners:
            self._lanes.append(_Lane(self._work, functools.partial(_same, runner)))
        for lane in tuple(self._lanes):
            lane.thread.start()
        self._watcher = threading.Thread(target=self._watch, name="run-timeout", daemon=True)
        self._watcher.start()

    @property
    def admitted(self) -> int:
        """Images accepted and not yet answered."""
        return self._admitted

    @property
    def waiting(self) -> int:
        """Images that are here and not yet running: waiting for what they need to be opened, waiting to be decoded,
        being decoded, or waiting for a runner.
        """
        return len(self._ahead)

    @property
    def age(self) -> float:
        """Seconds since the oldest of those came; 0 where none waits."""
        try:
            return time.monotonic() - next(iter(self._ahead)).submitted
        except (StopIteration, RuntimeError):  # none, or it began to run this moment
            return 0.0

    @property
    def sessions(self) -> int:
        """Runners that work, or are being made anew."""
        return len(self._lanes)

    @property
    def broken(self) -> bool:
        """Every session hangs: only a restart helps."""
        return not self._lanes

    @contextmanager
    def admission(self) -> Iterator[None]:
        """A place for one image, tried and never awaited. Raises Overloaded."""
        if self._admitted >= self._capacity:
            raise Overloaded(
                f"{self._admitted} images are waiting; the limit is {self._capacity}",
                self._rate.seconds_for(self._admitted),
            )
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    async def run(
        self,
        decode: Callable[[], _Picture],
        outputs: tuple[str, ...],
        finish: Callable[[Ran[_Picture]], _Answer],
        deadline: float,
        *,
        class_index: tuple[int, ...] = (),
        opened: Callable[[], Awaitable[None]] | None = None,
        here: bool = False,
    ) -> _Answer:
        """Decodes one image, runs it in the next batch and gives what `finish` makes of that.

        All of it in other threads, but for decoding where `here` says so: handing over what is small costs more.
        `class_index` asks for maps of the gradient: it runs with images for which as many are asked for, and with
        fewer of them, since each takes the memory of an image. `opened` is waited for first.
        `deadline` is of time.monotonic(). Raises what `opened`, `decode` and `finish` raise, InferenceFailed, and
        DeadlineExceeded for an image that could not run in time. Cancelling it takes the image out of the queue.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise RuntimeError("a batcher serves one event loop; this is another one")
            self._loop = loop
        entry = _Entry(decode, outputs, class_index, finish, deadline, loop.create_future())
        del decode  # the entry lets go of it as soon as it can
        self._ahead[entry] = None
        try:
            if opened is not None:
                await self._wait(entry, opened)
            if self._closed.is_set() or self.broken:
                raise InferenceFailed(self._why_not())
            if here:
                entry.decode_now()
            if self._workers is None or here:
                self._queue(entry)
            else:
                self._workers.decode(functools.partial(self._decode_ahead, entry))
            answer: _Answer = await entry.future
            return answer
        except asyncio.CancelledError:
            self._take_out(entry)
            raise
        finally:
            self._ahead.pop(entry, None)
            del entry  # its future holds an error, the error this frame: nothing of a failure waits for the collector

    async def _wait(self, entry: _Entry[_Picture, _Answer], opened: Callable[[], Awaitable[None]]) -> None:
        try:
            await opened()
        except asyncio.CancelledError:
            self._count_out(entry)
            raise

    def _take_out(self, entry: _Entry[_Picture, _Answer]) -> None:
        """An entry whose caller left, or was told that his deadline passed: its body makes room at once."""
        with self._arrived:
            try:
                self._waiting.remove(entry)
            except ValueError:
                return  # whoever has it will see
        self._count_out(entry)

    def _count_out(self, entry: _Entry[_Picture, _Answer]) -> None:
        self._meter.dropped("late" if time.monotonic() >= entry.deadline else "left")

    def close(self) -> None:
        """Lets running batches end, within two seconds; entries still waiting are answered with InferenceFailed."""
        with self._arrived:
            self._closed.set()
            left = list(self._waiting)
            self._waiting.clear()
            self._arrived.notify_all()
        if left:
            self._fail(left, InferenceFailed(_STOPPED))
        self._watcher.join()
        until = time.monotonic() + _CLOSING_S
        for lane in tuple(self._lanes):
            lane.thread.join(max(until - time.monotonic(), 0.0))
            if lane.thread.is_alive():
                with self._arrived:
                    left = [*lane.batch, *lane.gathered]
                log.error("a batch of %d images did not end in time", len(left))
                self._fail(left, InferenceFailed(_STOPPED))

    def _decode_ahead(self, entry: _Entry[_Picture, _Answer]) -> None:
        """In a worker."""
        if self._live(entry) and self._decode(entry):
            self._queue(entry)

    def _decode(self, entry: _Entry[_Picture, _Answer]) -> bool:
        """Whether it could be decoded; if not, its caller is told."""
        try:
            entry.decode_now()
        except SaccadeError as error:
            # the frames of a failure hold body and pixels, and this one holds the entry, whose future holds the error
            error.__traceback__ = error.__cause__ = error.__context__ = None
            self._fail([entry], error)
            return False
        except BaseException as error:
            log.exception("decoding failed")
            self._fail([entry], InferenceFailed(f"decoding failed: {type(error).__name__}"))
            return False
        return True

    def _queue(self, entry: _Entry[_Picture, _Answer]) -> None:
        with self._arrived:
            taken = not self._closed.is_set() and bool(self._lanes)
            if taken:
                self._waiting.append(entry)
                self._arrived.notify()
        if not taken:
            self._fail([entry], InferenceFailed(self._why_not()))

    def _why_not(self) -> str:
        return _STOPPED if self._closed.is_set() else _BROKEN

    def _live(self, entry: _Entry[_Picture, _Answer]) -> bool:
        """Whether somebody still waits for it, in time; if not, it is dropped and counted."""
        if self._closed.is_set():
            self._fail([entry], InferenceFailed(_STOPPED))
            return False
        if time.monotonic() >= entry.deadline:
            self._fail([entry], DeadlineExceeded("the deadline passed before the image could run"))
            self._meter.dropped("late")
            return False
        if entry.future.cancelled():
            self._meter.dropped("left")
            return False
        return True

    def _work(self, lane: _Lane) -> None:
        try:
            stand_back()
            assert lane.make is not None
            lane.runner = lane.make()
        except Exception:
            log.exception("no new session for one that hangs")
            self._lose(lane)
            return
        with self._arrived:
            lane.make = None
            if lane not in self._lanes:  # it took too long to open, and was given up
                self._hung -= 1
                return
        while not self._closed.is_set() and self._serve(lane):
            pass

    def _serve(self, lane: _Lane) -> bool:
        """One batch, of which nothing is kept: answers may be large, and the next batch hours away."""
        batch = self._next_batch(lane)
        return not batch or self._run(lane, batch)

    def _next_batch(self, lane: _Lane) -> list[_Entry[_Picture, _Answer]]:
        """Live and decoded entries; none once closed.

        Who is decoded by this lane waits for others to be decoded for no longer than a run takes, and who was decoded
        before does not wait for that at all.
        """
        batch: list[_Entry[_Picture, _Answer]] = []
        lane.gathered = batch
        ready = decoding = False
        began = math.inf
        while not (batch and len(batch) >= self._most(batch[0])) and not (
            decoding and time.monotonic() - began > lane.last_run_s
        ):
            taken = self._take(batch, ready=ready)
            if not taken:
                break
            began = min(began, time.monotonic())
            for entry in taken:
                if not self._live(entry):
                    batch.remove(entry)
                elif entry.decode is None:
                    ready = True
                else:
                    decoding = True
                    if not self._decode(entry):
                        batch.remove(entry)
        if decoding:  # meanwhile somebody may have left
            batch[:] = [entry for entry in batch if self._live(entry)]
        return batch

    def _take(self, batch: list[_Entry[_Picture, _Answer]], *, ready: bool) -> list[_Entry[_Picture, _Answer]]:
        """The next entries for a batch, which they are part of from then on: whoever closes meanwhile finds them there.
        For one that is empty at least one, unless it is closed.

        The first one of the batch that is to go next, and of those behind it who asks for maps of as many classes; the
        others keep their places.
        Of those still to be decoded one at a time, so that two large ones are decoded side by side by two lanes, and
        none where one that is `ready` would wait for it; but all together where company was waited for.
        """
        with self._arrived:
            first = batch[0] if batch else self._first()
            taken: list[_Entry[_Picture, _Answer]] = []
            others: list[_Entry[_Picture, _Answer]] = []
            most = self._most(first) - len(batch) if first else 0
            while first and self._waiting and len(taken) < most:
                entry = self._waiting[0]
                if entry.classes != first.classes:
                    others.append(self._waiting.popleft())
                    continue
                if entry.decode is not None and (taken or ready) and not self._max_wait_s:
                    break
                taken.append(self._waiting.popleft())
            batch += taken
            if others:
                self._waiting.extendleft(reversed(others))
            if self._waiting:
                self._arrived.notify()  # whoever was told of the first of them may have waited for company
        return taken

    def _first(self) -> _Entry[_Picture, _Answer] | None:
        """Waits until a batch may go, and gives the first of it; None once closed.

        It goes when it is full, or when whoever waits longest has waited long enough for company.
        """
        while not self._closed.is_set():
            left: float | None = None
            if self._waiting:
                oldest = self._waiting[0]
                left = oldest.queued + self._max_wait_s - time.monotonic()
                first = oldest if left <= 0 else self._first_of_a_full_batch()
                if first:
                    return first
            self._arrived.wait(left)
        return None

    def _first_of_a_full_batch(self) -> _Entry[_Picture, _Answer] | None:
        waiting = Counter(entry.classes for entry in self._waiting)
        return next((entry for entry in self._waiting if waiting[entry.classes] >= self._most(entry)), None)

    def _most(self, entry: _Entry[_Picture, _Answer]) -> int:
        """Images in a batch with this one."""
        return max(1, self._max_batch // entry.classes) if entry.classes else self._max_batch

    def _run(self, lane: _Lane, batch: list[_Entry[_Picture, _Answer]]) -> bool:
        """Runs the batch and answers its members; whether the lane is still one."""
        with self._arrived:
            lane.started = time.monotonic()
            lane.batch, lane.gathered = batch, []
        for entry in batch:
            self._ahead.pop(entry, None)
        outcome: dict[str, Floats] | InferenceFailed
        try:
            outcome = self._outputs(lane, batch)
        except BaseException as error:  # even of SystemExit a runner's thread must not die: each member gets an
            # answer and the next batch runs
            log.exception("a batch of %d failed", len(batch))
            outcome = InferenceFailed(f"a batch of {len(batch)} failed: {type(error).__name__}")
        started, seconds = lane.started, time.monotonic() - lane.started
        if not self._still_counts(lane):
            return False  # its members have been answered, and another runner works in its place
        if isinstance(outcome, InferenceFailed):
            self._fail(batch, outcome)
            return True
        lane.last_run_s = seconds
        finish = functools.partial(self._finish, batch, outcome, started, seconds)
        if self._workers is None:
            finish()
        else:
            self._workers.finish(finish)
        return True

    def _outputs(self, lane: _Lane, batch: list[_Entry[_Picture, _Answer]]) -> dict[str, Floats]:
        if lane.pixels is None:  # only what is written to takes memory
            lane.pixels = np.empty((self._max_batch, *batch[0].picture.shape), np.float32)
        pixels = lane.pixels[: len(batch)]
        self._write([entry.picture for entry in batch], pixels)
        wanted = tuple(dict.fromkeys(name for entry in batch for name in entry.outputs))
        asked = np.array([entry.class_index for entry in batch], np.int64) if batch[0].classes else None
        outputs = lane.runner.run(pixels, wanted, asked)
        for name in wanted:
            if len(outputs[name]) != len(batch):
                raise ValueError(f"output {name} has {len(outputs[name])} rows for a batch of {len(batch)}")
        return outputs

    def _finish(
        self, batch: list[_Entry[_Picture, _Answer]], outputs: dict[str, Floats], started: float, seconds: float
    ) -> None:
        """Makes the answers and hands them to the event loop, which is woken once."""
        answers: list[tuple[_Entry[_Picture, _Answer], Callable[[], None]]] = []
        for index, entry in enumerate(batch):
            if entry.future.done():  # the caller left meanwhile
                continue
            own = {name: outputs[name][index] for name in entry.outputs}
            queued = started - entry.submitted - entry.decode_s
            ran = Ran(entry.picture, own, len(batch), entry.decode_s, queued, seconds)
            try:
                tell = functools.partial(entry.future.set_result, entry.finish(ran))
            except Exception as error:
                tell = functools.partial(entry.future.set_exception, error)
            except BaseException as error:  # as above
                log.exception("an answer failed")
                tell = functools.partial(entry.future.set_exception, InferenceFailed(f"failed: {type(error).__name__}"))
            answers.append((entry, tell))
        self._deliver(self._answer, batch, answers, started, seconds)

    def _still_counts(self, lane: _Lane) -> bool:
        """Whether the run that just ended does; it does not once it was given up."""
        with self._arrived:
            lane.batch = ()
            if lane in self._lanes:
                return True
            self._hung -= 1  # it came back after all, and takes thread and session with it
            return False

    def _watch(self) -> None:
        """Gives up runs that hang."""
        wait: float | None = None if self._run_timeout_s == math.inf else self._run_timeout_s
        while not self._closed.wait(wait):
            wait = self._give_up_what_hangs()

    def _give_up_what_hangs(self) -> float:
        """Seconds until the next run can be late: what begins from now on has a whole timeout."""
        now = time.monotonic()
        told: list[tuple[Sequence[_Entry[Any, Any]], _Lane | None]] = []
        with self._arrived:
            for lane in [lane for lane in self._lanes if lane.late(now, self._run_timeout_s) >= 0]:
                successor = self._successor(lane)
                self._lanes.remove(lane)
                if successor is not None:  # at once: not for a moment is there no lane where there will be one
                    self._lanes.append(successor)
                told.append((lane.batch, successor))
            wait = min([-lane.late(now, self._run_timeout_s) for lane in self._lanes], default=math.inf)
            wait = min(wait, self._run_timeout_s)
        for batch, successor in told:
            if batch:
                log.error("a run of %d images has not ended after %g s", len(batch), self._run_timeout_s)
            else:
                log.error("a new session has not opened after %g s", _OPENING * self._run_timeout_s)
            self._meter.hung()
            self._fail(batch, InferenceFailed(f"a run of {len(batch)} took longer than {self._run_timeout_s:g} s"))
            if successor is None:
                self._lose(None)
            else:
                successor.thread.start()
        return wait

    def _successor(self, lane: _Lane) -> _Lane | None:
        self._hung += 1
        if self._replace is None or self._hung > _MOST_HUNG or lane.make is not None:
            return None
        return _Lane(self._work, functools.partial(self._replace, lane.runner))

    def _lose(self, lane: _Lane | None) -> None:
        """Works on with what lanes are left; with none, whoever waits is answered."""
        with self._arrived:
            if lane is not None and lane in self._lanes:
                self._lanes.remove(lane)
            if self._lanes:
                return
            left = list(self._waiting)
            self._waiting.clear()
        log.error("no session is left that works: the service must be started anew")
        self._fail(left, InferenceFailed(_BROKEN))

    def _answer(
        self,
        batch: Sequence[_Entry[_Picture, _Answer]],
        answers: Sequence[tuple[_Entry[_Picture, _Answer], Callable[[], None]]],
        started: float,
        seconds: float,
    ) -> None:
        self._rate.add(len(batch), since=batch[0].submitted, now=started + seconds)
        self._meter.ran(len(batch), seconds, batch[0].classes)
        for entry, tell in answers:
            if not entry.future.done():
                tell()

    def _fail(self, entries: Sequence[_Entry[Any, Any]], error: SaccadeError) -> None:
        if entries:
            self._deliver(_refuse, entries, error)

    def _deliver(self, tell: Callable[..., None], *arguments: object) -> None:
        """Hands an outcome to the event loop, which alone may touch futures."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(tell, *arguments)
        except RuntimeError:
            log.warning("answers came after the event loop had closed")


class _Rate:
    """Images a second that all runners together get done, over the last runs; of the event loop alone."""

    _KEPT = 0.95  # of what was known, at each run

    def __init__(self) -> None:
        self._images = 0.0
        self._seconds = 0.0
        self._last = 0.0

    def add(self, images: int, since: float, now: float) -> None:
        """A run ended. Time without work, between the last run's end and the first image's arrival, does not count."""
        self._images = self._images * self._KEPT + images
        self._seconds = self._seconds * self._KEPT + max(now - max(self._last, since), 0.0)
        self._last = max(self._last, now)

    def seconds_for(self, images: int) -> int:
        """Until so many are done, in whole seconds from 1 to 60; 1 where nothing is known."""
        if not self._images or not self._seconds:
            return 1
        return min(max(math.ceil(images * self._seconds / self._images), 1), 60)


def _same(runner: Runner) -> Runner:
    return runner


def _refuse(entries: Sequence[_Entry[Any, Any]], error: SaccadeError) -> None:
    for entry in entries:
        if not entry.future.done():
            entry.future.set_exception(error)

"""The batcher, on runners that wait, fail, hang and count; no engine."""

import asyncio
import gc
import itertools
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest

from saccade.errors import DeadlineExceeded, InferenceFailed, InvalidImage, Overloaded
from service.batcher import RUNNER, Batcher, Floats, Indices, Ran, Runner, _Rate
from service.workers import Workers
from tests.service.reference import PATIENCE

LATER = math.inf
NOW = time.monotonic() - 1
SHORT = 0.25
"""Seconds after which a run counts as hung here: long for a fake that does not wait, short for who waits for it."""


class Echo:
    """Output `name` of a picture is the picture's first number plus the name's length; waits at its gate."""

    def __init__(self, shut: bool = False) -> None:
        self.gate = threading.Event()
        if not shut:
            self.gate.set()
        self.began = threading.Semaphore(0)
        self.batches: list[list[float]] = []
        self.asked: list[tuple[str, ...]] = []
        self.classes: list[list[list[int]] | None] = []
        self.failures: list[BaseException] = []
        self.rows = 0

    def run(self, pixels: Floats, outputs: Sequence[str], class_index: Indices | None) -> dict[str, Floats]:
        self.classes.append(None if class_index is None else class_index.tolist())
        self.batches.append(pixels[:, 0, 0, 0].tolist())
        self.asked.append(tuple(outputs))
        self.began.release()
        assert self.gate.wait(PATIENCE)
        if self.failures:
            raise self.failures.pop()
        rows = pixels[: len(pixels) + self.rows]
        return {name: rows[:, 0, 0, :1] + np.float32(len(name)) for name in outputs}


class Picture(NamedTuple):
    pixels: Floats

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pixels.shape


def image(number: float) -> Picture:
    return Picture(np.full((3, 2, 2), number, np.float32))


def write(pictures: Sequence[Picture], rows: Floats) -> None:
    for picture, row in zip(pictures, rows, strict=True):
        row[:] = picture.pixels


def same(ran: Ran[Picture]) -> Ran[Picture]:
    """The answer is all that there is to know."""
    return ran


class Counts:
    """A meter that writes down what it is told."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.sizes: list[int] = []
        self.explained: list[int] = []
        self.seconds: list[float] = []
        self.hangs = 0

    def dropped(self, reason: Literal["left", "late"]) -> None:
        self.reasons.append(reason)

    def ran(self, size: int, seconds: float, classes: int) -> None:
        self.sizes.append(size)
        self.explained.append(classes)
        self.seconds.append(seconds)

    def hung(self) -> None:
        self.hangs += 1


@contextmanager
def batching(
    *runners: Runner,
    workers: int | None = 1,
    meter: Counts | None = None,
    max_batch: int = 4,
    capacity: int = 100,
    **options: Any,
) -> Iterator[Batcher[Picture, Ran[Picture]]]:
    """With one worker, so that pictures are decoded in the order they come; None: the runners' threads decode."""
    threads = None if workers is None else Workers(workers)
    batcher: Batcher[Picture, Ran[Picture]] = Batcher(
        runners, write, threads, meter or Counts(), max_batch=max_batch, capacity=capacity, **options
    )
    try:
        yield batcher
    finally:
        batcher.close()
        if threads is not None:
            threads.close()


class HeldDecode:
    """A picture whose decoding goes on until it may end."""

    def __init__(self, number: float) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self._number = number

    def __call__(self) -> Picture:
        self.began.set()
        assert self.go_on.wait(PATIENCE)
        return image(self._number)


def submit(
    batcher: Batcher[Picture, Ran[Picture]],
    number: float,
    *outputs: str,
    deadline: float = LATER,
    class_index: tuple[int, ...] = (),
) -> "asyncio.Task[Ran[Picture]]":
    running = batcher.run(lambda: image(number), outputs or ("logits",), same, deadline, class_index=class_index)
    return asyncio.create_task(running)


async def reached(runner: Echo) -> None:
    """Waits until one more run has begun."""
    assert await asyncio.to_thread(runner.began.acquire, timeout=PATIENCE)


async def until(condition: Callable[[], bool]) -> None:
    """Looks at it at each turn of the loop."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # what is looked at has no event
            await asyncio.sleep(0)


async def queued(batcher: Batcher[Picture, Ran[Picture]], count: int) -> None:
    """Waits until so many are decoded and wait for a runner."""
    await until(lambda: batcher.waiting == count)


def number_of(answer: Ran[Picture]) -> float:
    """Which picture it is that `Echo` answered."""
    return float(answer.outputs["logits"].item()) - len("logits")


@pytest.mark.parametrize(
    ("count", "max_batch", "sizes"),
    [(3, 4, [1, 3]), (4, 4, [1, 4]), (9, 4, [1, 4, 4, 1]), (5, 1, [1] * 6), (0, 4, [1]), (7, 100, [1, 7])],
)
def test_a_batch_is_what_came_while_the_last_one_ran(count: int, max_batch: int, sizes: list[int]) -> None:
    """No timer: nobody waits for company, and nobody waits longer than the run before."""

    async def scene() -> None:
        runner = Echo(shut=True)
        with batching(runner, max_batch=max_batch) as batcher:
            tasks = [submit(batcher, 0)]
            await reached(runner)
            tasks += [submit(batcher, number) for number in range(1, count + 1)]
            await queued(batcher, count)
            runner.gate.set()
            answers = await asyncio.gather(*tasks)
        assert [len(batch) for batch in runner.batches] == sizes
        assert [number for batch in runner.batches for number in batch] == list(
            range(count + 1)
        )  # in the order they came
        assert [answer.outputs["logits"].item() for answer in answers] == [6 + n for n in range(count + 1)]
        assert [answer.batch_size for answer in answers] == [size for size in sizes for _ in range(size)]
        assert all(answer.queue_s >= 0 and answer.run_s >= 0 for answer in answers)

    asyncio.run(scene())


def test_two_runners_run_at_once() -> None:
    """Instances are worth their memory: the second run begins while the first one lasts."""

    async def scene() -> None:
        runners = Echo(shut=True), Echo(shut=True)
        with batching(*runners, max_batch=1) as batcher:
            tasks = [submit(batcher, 0), submit(batcher, 1)]
            await asyncio.gather(*map(reached, runners))
            for runner in runners:
                runner.gate.set()
            assert [(await task).outputs["logits"].item() for task in tasks] == [6, 7]

    asyncio.run(scene())


def test_admission_is_tried_and_never_exceeded() -> None:
    """However many ask at once, no more than the capacity are let in; each of the others is told at once."""

    refusals: list[Overloaded] = []

    async def one(batcher: Batcher, seen: list[int], leave: asyncio.Event) -> bool:
        try:
            with batcher.admission():
                seen.append(batcher.admitted)
                await leave.wait()
                return True
        except Overloaded as error:
            refusals.append(error)
            return False

    async def scene() -> None:
        with batching(Echo(), capacity=10) as batcher:
            for _ in range(3):  # places come back
                seen: list[int] = []
                refusals.clear()
                leave = asyncio.Event()
                tasks = [asyncio.create_task(one(batcher, seen, leave)) for _ in range(50)]
                await until(lambda seen=seen: len(seen) + len(refusals) == 50)
                leave.set()
                assert sum(await asyncio.gather(*tasks)) == 10
                assert max(seen) == 10
                assert batcher.admitted == 0

    asyncio.run(scene())
    assert {str(error) for error in refusals} == {"10 images are waiting; the limit is 10"}
    assert all(1 <= error.retry_after <= 60 for error in refusals)


def test_a_place_comes_back_when_its_work_fails() -> None:
    """Errors do not eat the queue up."""
    with batching(Echo(), capacity=1) as batcher:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError), batcher.admission():
                raise ZeroDivisionError
        assert batcher.admitted == 0


def test_every_member_of_a_failed_batch_is_told_its_size_and_the_kind_of_error() -> None:
    """Each of three members gets its own answer."""

    async def scene() -> None:
        runner = Echo(shut=True)

        with batching(runner) as batcher:
            first = submit(batcher, 0)
            await reached(runner)
            members = [submit(batcher, number) for number in (1, 2, 3)]
            await queued(batcher, 3)
            runner.failures = [ValueError("no"), ValueError("no")]
            runner.gate.set()
            results = await asyncio.gather(first, *members, return_exceptions=True)
            assert all(isinstance(result, InferenceFailed) for result in results)
            assert [str(result) for result in results[1:]] == ["a batch of 3 failed: ValueError"] * 3
            assert (await submit(batcher, 4)).outputs["logits"].item() == 10

    asyncio.run(scene())


# --- those who left or are late


@pytest.mark.parametrize("why", ["left", "late"])
def test_who_left_or_is_late_while_waiting_for_a_worker_is_not_even_decoded(
    why: Literal["left", "late"],
) -> None:
    """The cheapest work is what nobody needs: dropped before it is decoded, and counted by its reason."""

    async def scene() -> None:
        runner, meter, decoded, go_on = Echo(), Counts(), [], threading.Event()

        def decode(number: int) -> Picture:
            decoded.append(number)
            return image(number)

        def slow() -> Picture:
            assert go_on.wait(PATIENCE)
            return decode(0)

        with batching(runner, meter=meter) as batcher:
            first = asyncio.create_task(batcher.run(slow, ("logits",), same, LATER))
            late = NOW if why == "late" else LATER
            gone = [asyncio.create_task(batcher.run(lambda n=n: decode(n), ("logits",), same, late)) for n in (1, 2)]
            stays = asyncio.create_task(batcher.run(lambda: decode(3), ("logits",), same, LATER))
            await asyncio.sleep(0)  # all are with the workers now
            if why == "left":
                for task in gone:
                    task.cancel()
                await asyncio.gather(*gone, return_exceptions=True)
            go_on.set()
            assert [number_of(await task) for task in (first, stays)] == [0, 3]
            ends = await asyncio.gather(*gone, return_exceptions=True)
        assert {type(end) for end in ends} == {DeadlineExceeded if why == "late" else asyncio.CancelledError}
        assert decoded == [0, 3]
        assert meter.reasons == [why, why]
        assert [number for batch in runner.batches for number in batch] == [0, 3]

    asyncio.run(scene())


@pytest.mark.parametrize("why", ["left", "late"])
def test_who_left_or_is_late_while_waiting_for_a_runner_never_costs_a_run(why: Literal["left", "late"]) -> None:
    """Work of a caller who went away is dropped before it reaches the engine, and counted by its reason."""

    async def scene() -> None:
        runner, meter = Echo(shut=True), Counts()
        with batching(runner, meter=meter) as batcher:
            first = submit(batcher, 0)
            await reached(runner)
            soon = time.monotonic() + (0.5 if why == "late" else 3600)
            gone = [submit(batcher, number, deadline=soon) for number in (1, 2)]
            stays = submit(batcher, 3)
            await queued(batcher, 3)
            assert meter.reasons == []
            if why == "left":
                for task in gone:
                    task.cancel()
                await asyncio.gather(*gone, return_exceptions=True)
            else:
                await until(lambda: time.monotonic() > soon)
            runner.gate.set()
            assert (await first).batch_size == (await stays).batch_size == 1
            ends = await asyncio.gather(*gone, return_exceptions=True)
        assert {type(end) for end in ends} == {DeadlineExceeded if why == "late" else asyncio.CancelledError}
        assert runner.batches == [[0], [3]]
        assert meter.reasons == [why, why]
        assert meter.sizes == [1, 1]

    asyncio.run(scene())


def test_who_leaves_while_his_batch_runs_does_not_disturb_the_others() -> None:
    """The run goes on; the others are answered."""

    async def scene() -> None:
        runner = Echo(shut=True)
        with batching(runner) as batcher:
            leaves = submit(batcher, 0)
            await reached(runner)
            stays = submit(batcher, 1)
            await queued(batcher, 1)
            leaves.cancel()
            runner.gate.set()
            assert (await stays).outputs["logits"].item() == 7
            assert leaves.cancelled()

    asyncio.run(scene())


def test_closing_answers_those_who_wait_and_those_who_come() -> None:
    """The running batch ends; nobody hangs."""

    async def scene() -> None:
        runner = Echo(shut=True)
        with batching(runner, max_batch=1) as batcher:
            running = submit(batcher, 0)
            await reached(runner)
            waiting = [submit(batcher, number) for number in (1, 2)]
            await queued(batcher, 2)
            closing = asyncio.create_task(asyncio.to_thread(batcher.close))
            for task in waiting:
                with pytest.raises(InferenceFailed, match="stopped"):
                    await task
            runner.gate.set()
            assert number_of(await running) == 0
            await closing
            with pytest.raises(InferenceFailed, match="stopped"):
                await submit(batcher, 3)
        assert runner.batches == [[0]]

    asyncio.run(scene())


def test_closing_after_the_event_loop_has_gone_ends_cleanly() -> None:
    """The command line's loop is over before its engine is closed."""
    runner = Echo(shut=True)

    async def scene(batcher: Batcher[Picture, Ran[Picture]]) -> None:
        tasks = [submit(batcher, 0)]
        await reached(runner)
        tasks.append(submit(batcher, 1))
        await queued(batcher, 1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with batching(runner, max_batch=1) as batcher:
        asyncio.run(scene(batcher))
        closing = threading.Thread(target=batcher.close)
        closing.start()
        runner.gate.set()
        closing.join(PATIENCE)
        assert not closing.is_alive()
    assert runner.batches == [[0]]


@pytest.mark.parametrize("rows", [-1, -2])
def test_a_run_that_gives_too_few_rows_is_a_failure(rows: int) -> None:
    """Nobody gets a neighbour's answer."""

    async def scene() -> None:
        runner = Echo(shut=True)
        runner.rows = rows
        with batching(runner) as batcher:
            first = submit(batcher, 0)
            await reached(runner)
            others = [submit(batcher, number) for number in (1, 2, 3)]
            await queued(batcher, 3)
            runner.gate.set()
            for task in (first, *others):
                with pytest.raises(InferenceFailed, match="ValueError"):
                    await task

    asyncio.run(scene())


def test_a_run_without_an_output_is_a_failure() -> None:
    """As if the engine had raised."""

    class Forgetful(Echo):
        def run(self, pixels: Floats, outputs: Sequence[str], class_index: Indices | None) -> dict[str, Floats]:
            return super().run(pixels, outputs[:1], class_index)

    async def scene() -> None:
        with batching(Forgetful()) as batcher:
            with pytest.raises(InferenceFailed, match="KeyError"):
                await submit(batcher, 0, "logits", "rollout")
            assert (await submit(batcher, 1, "logits")).outputs["logits"].item() == 7

    asyncio.run(scene())


def test_only_what_some_member_wants_is_asked_for_and_each_gets_his_own() -> None:
    """Attention for one neighbour costs the others nothing and never shows in their answers."""

    async def scene() -> None:
        runner = Echo(shut=True)
        with batching(runner) as batcher:
            first = submit(batcher, 0)
            await reached(runner)
            wishes = [("logits",), ("logits", "rollout"), ("logits", "attention_01"), ("logits", "rollout")]
            tasks = [submit(batcher, number, *wish) for number, wish in enumerate(wishes, 1)]
            await queued(batcher, 4)
            runner.gate.set()
            await first
            answers = await asyncio.gather(*tasks)
        assert runner.asked[0] == ("logits",)
        assert sorted(runner.asked[1]) == ["attention_01", "logits", "rollout"]
        for number, (wish, answer) in enumerate(zip(wishes, answers, strict=True), 1):
            assert {name: values.item() for name, values in answer.outputs.items()} == {
                name: number + len(name) for name in wish
            }

    asyncio.run(scene())


def test_many_at_once_are_all_answered_with_their_own() -> None:
    """A thousand pictures through three runners: no answer is lost, doubled or swapped."""

    async def scene() -> None:
        runners = [Echo() for _ in range(3)]
        with batching(*runners, workers=3, max_batch=16, capacity=2000) as batcher:
            answers = await asyncio.gather(*(submit(batcher, number) for number in range(1000)))
        assert [answer.outputs["logits"].item() for answer in answers] == [n + 6 for n in range(1000)]
        assert max(len(batch) for runner in runners for batch in runner.batches) <= 16

    asyncio.run(scene())


def test_whatever_a_runner_raises_its_thread_lives_on() -> None:
    """Even SystemExit in an engine's extension must not leave callers waiting for ever."""

    async def scene() -> None:
        runner = Echo()
        runner.failures = [SystemExit("no")]
        with batching(runner) as batcher:
            with pytest.raises(InferenceFailed, match="SystemExit"):
                await submit(batcher, 1)
            assert (await submit(batcher, 2)).batch_size == 1

    asyncio.run(scene())


def test_a_second_event_loop_is_refused() -> None:
    """Futures of two loops cannot be answered by one thread."""
    with batching(Echo()) as batcher:

        async def once() -> None:
            await submit(batcher, 1)

        asyncio.run(once())
        with pytest.raises(RuntimeError, match="one event loop"):
            asyncio.run(once())


# --- decoding


def test_a_picture_that_cannot_be_decoded_is_told_to_its_caller_alone() -> None:
    """Decode's own refusal reaches him unchanged; neighbours are answered, and nothing is counted as dropped."""

    def broken() -> Picture:
        raise InvalidImage("this one is damaged")

    async def scene() -> None:
        runner, meter = Echo(), Counts()
        with batching(runner, meter=meter) as batcher:
            before = submit(batcher, 1)
            spoiled = asyncio.create_task(batcher.run(broken, ("logits",), same, LATER))
            after = submit(batcher, 2)
            with pytest.raises(InvalidImage, match=r"^this one is damaged$"):
                await spoiled
            assert [number_of(await task) for task in (before, after)] == [1, 2]
        assert sum(meter.sizes) == 2
        assert meter.reasons == []

    asyncio.run(scene())


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), MemoryError(), SystemExit("no"), KeyboardInterrupt()])
def test_what_nobody_foresaw_in_decoding_is_a_failure_and_the_worker_lives_on(error: BaseException) -> None:
    """The one worker decodes the next picture; the sentence names the kind of error and nothing of its inside."""

    def broken() -> Picture:
        raise error

    async def scene() -> None:
        with batching(Echo()) as batcher:
            for number in (1, 2):
                with pytest.raises(InferenceFailed) as caught:
                    await batcher.run(broken, ("logits",), same, LATER)
                assert str(caught.value) == f"decoding failed: {type(error).__name__}"
                assert number_of(await submit(batcher, number)) == number

    asyncio.run(scene())


def test_pictures_are_decoded_while_a_batch_runs_and_by_several_workers_at_once() -> None:
    """The engine does not wait for decoders, nor one picture for another's decoding."""

    async def scene() -> None:
        runner, both = Echo(shut=True), threading.Barrier(2)

        def meet(number: float) -> Picture:
            both.wait(PATIENCE)  # passes only if two are decoded at once
            return image(number)

        with batching(runner, workers=2) as batcher:
            first = submit(batcher, 0)
            await reached(runner)
            tasks = [asyncio.create_task(batcher.run(lambda n=n: meet(n), ("logits",), same, LATER)) for n in (1, 2)]
            await queued(batcher, 2)
            runner.gate.set()
            assert [number_of(await task) for task in (first, *tasks)] == [0, 1, 2]

    asyncio.run(scene())


def test_an_answer_has_the_picture_that_was_decoded_and_its_times() -> None:
    """What decoding found (its size, what was seen) comes back with the outputs; no time is negative."""

    async def scene() -> None:
        picture = image(5)
        with batching(Echo()) as batcher:
            answer = await batcher.run(lambda: picture, ("logits",), same, LATER)
        assert answer.picture is picture
        assert min(answer.decode_s, answer.queue_s, answer.run_s) >= 0

    asyncio.run(scene())


# --- who does what


async def names_of(batcher: Batcher[Picture, Any], **options: bool) -> list[str]:
    """The threads that decoded and finished one picture."""
    names: list[str] = []

    def decode() -> Picture:
        names.append(threading.current_thread().name)
        return image(1)

    def finish(_: Ran[Picture]) -> None:
        names.append(threading.current_thread().name)

    await batcher.run(decode, ("logits",), finish, LATER, **options)
    return names


def test_with_workers_a_runners_thread_does_nothing_but_run() -> None:
    """What runs may be a GPU, which would stand still meanwhile."""

    async def scene() -> None:
        with batching(Echo(), workers=1) as batcher:
            assert await names_of(batcher) == ["decoder-0", "finisher"]

    asyncio.run(scene())


def test_without_workers_a_runners_thread_does_all_of_it() -> None:
    """Where each CPU has a runner, another thread could only work in its place."""

    async def scene() -> None:
        with batching(Echo(), workers=None) as batcher:
            assert await names_of(batcher) == [RUNNER, RUNNER]

    asyncio.run(scene())


@pytest.mark.parametrize("workers", [None, 1])
def test_what_is_small_is_decoded_where_it_arrived(workers: int | None) -> None:
    """On the event loop, in less time than the hand-over takes; its refusal comes at once, unchanged."""

    def broken() -> Picture:
        raise InvalidImage("no")

    async def scene() -> None:
        runner = Echo()
        with batching(runner, workers=workers) as batcher:
            decoded, finished = await names_of(batcher, here=True)
            assert decoded == threading.current_thread().name
            assert finished == (RUNNER if workers is None else "finisher")
            with pytest.raises(InvalidImage, match="no"):
                await batcher.run(broken, ("logits",), same, LATER, here=True)
            assert batcher.waiting == 0
        assert runner.batches == [[1]]

    asyncio.run(scene())


def test_without_workers_two_runners_decode_two_pictures_side_by_side() -> None:
    """Large pictures that come together do not wait for each other in one thread while another has nothing to do."""

    async def scene() -> None:
        both = threading.Barrier(2)

        def meet(number: float) -> Picture:
            both.wait(PATIENCE)
            return image(number)

        with batching(Echo(), Echo(), workers=None, max_batch=8) as batcher:
            tasks = [
                asyncio.create_task(batcher.run(lambda n=n: meet(n), ("logits",), same, LATER)) for n in (1, 2, 3, 4)
            ]
            assert [number_of(await task) for task in tasks] == [1, 2, 3, 4]

    asyncio.run(scene())


def test_without_workers_who_is_decoded_does_not_wait_for_decoding_that_takes_longer_than_a_run() -> None:
    """A batch is worth waiting for as long as decoding is the smaller part of the work."""

    async def scene() -> None:
        runner, meter, go_on = Echo(), Counts(), threading.Event()

        def slow() -> Picture:
            assert go_on.wait(PATIENCE)
            end = time.monotonic() + 2 * meter.seconds[0]
            while time.monotonic() < end:  # twice as long as the run before it
                pass
            return image(1)

        with batching(runner, workers=None, meter=meter) as batcher:
            await submit(batcher, 0)
            first = asyncio.create_task(batcher.run(slow, ("logits",), same, LATER))
            second = submit(batcher, 2)
            await queued(batcher, 2)
            go_on.set()
            assert [(await task).batch_size for task in (first, second)] == [1, 1]
        assert runner.batches == [[0], [1], [2]]

    asyncio.run(scene())


def test_without_workers_pictures_that_are_decoded_in_less_time_than_a_run_takes_share_one() -> None:
    """The three that came while the first one ran."""

    async def scene() -> None:
        runner = Echo(shut=True)
        with batching(runner, workers=None, max_batch=4) as batcher:
            first = submit(batcher, 0)
            await reached(runner)
            others = [submit(batcher, number) for number in (1, 2, 3)]
            await queued(batcher, 3)
            soon = time.monotonic() + 0.2  # a run that takes longer than decoding does on any machine
            await until(lambda: time.monotonic() > soon)
            runner.gate.set()
            assert [(await task).batch_size for task in (first, *others)] == [1, 3, 3, 3]
        assert runner.batches == [[0], [1, 2, 3]]

    asyncio.run(scene())


@pytest.mark.parametrize("why", ["left", "late"])
def test_without_workers_who_left_or_is_late_is_neither_decoded_nor_run(why: Literal["left", "late"]) -> None:
    """As with them: dropped before anything is spent on it, and counted by its reason."""

    async def scene() -> None:
        runner, meter, decoded = Echo(shut=True), Counts(), []

        def decode(number: int) -> Picture:
            decoded.append(number)
            return image(number)

        with batching(runner, workers=None, meter=meter) as batcher:
            first = submit(batcher, 0)
            await reached(runner)
            late = NOW if why == "late" else LATER
            gone = [asyncio.create_task(batcher.run(lambda n=n: decode(n), ("logits",), same, late)) for n in (1, 2)]
            stays = asyncio.create_task(batcher.run(lambda: decode(3), ("logits",), same, LATER))
            await queued(batcher, 3)
            if why == "left":
                for task in gone:
                    task.cancel()
                await asyncio.gather(*gone, return_exceptions=True)
            runner.gate.set()
            assert [number_of(await task) for task in (first, stays)] == [0, 3]
            ends = await asyncio.gather(*gone, return_exceptions=True)
        assert {type(end) for end in ends} == {DeadlineExceeded if why == "late" else asyncio.CancelledError}
        assert decoded == [3]
        assert meter.reasons == [why, why]
        assert runner.batches == [[0], [3]]

    asyncio.run(scene())


@pytest.mark.parametrize("workers", [None, 1])
def test_a_body_is_let_go_once_its_picture_is_decoded(workers: int | None) -> None:
    """Twenty megabytes of upload do not wait for the engine beside the picture that was made of them."""

    class Body:
        def decode(self) -> Picture:
            return image(1)

    async def scene() -> None:
        runner, body = Echo(shut=True), Body()
        ghost = weakref.ref(body)
        with batching(runner, workers=workers) as batcher:
            task = asyncio.create_task(batcher.run(body.decode, ("logits",), same, LATER))
            await asyncio.sleep(0)
            del body
            await reached(runner)
            assert ghost() is None
            runner.gate.set()
            await task

    asyncio.run(scene())


def test_without_workers_one_that_is_ready_does_not_wait_for_another_to_be_decoded() -> None:
    """A small picture is answered before the large one that came behind it is looked at."""

    async def scene() -> None:
        runner, go_on = Echo(shut=True), threading.Event()

        def slow() -> Picture:
            assert go_on.wait(PATIENCE)
            return image(3)

        with batching(runner, workers=None, max_batch=8) as batcher:
            first = submit(batcher, 0)
            await reached(runner)
            small = [
                asyncio.create_task(batcher.run(lambda n=n: image(n), ("logits",), same, LATER, here=True))
                for n in (1, 2)
            ]
            large = asyncio.create_task(batcher.run(slow, ("logits",), same, LATER))
            await queued(batcher, 3)
            runner.gate.set()
            assert [(await task).batch_size for task in (first, *small)] == [1, 2, 2]
            assert not large.done()
            go_on.set()
            assert number_of(await large) == 3
        assert runner.batches == [[0], [1, 2], [3]]

    asyncio.run(scene())


def test_without_workers_pictures_that_fail_to_decode_do_not_hold_up_one_that_did() -> None:
    """The time that they take counts, whatever becomes of them."""

    async def scene() -> None:
        runner, meter, broken = Echo(), Counts(), []

        def fail(number: int) -> Picture:
            end = time.monotonic() + 2 * meter.seconds[0]
            while time.monotonic() < end:  # longer than the run before it
                pass
            broken.append((number, list(runner.batches)))
            raise InvalidImage("no")

        with batching(runner, workers=None, meter=meter) as batcher:
            await submit(batcher, 0)
            good = submit(batcher, 1)
            bad = [asyncio.create_task(batcher.run(lambda n=n: fail(n), ("logits",), same, LATER)) for n in (1, 2, 3)]
            assert number_of(await good) == 1
            assert all(isinstance(end, InvalidImage) for end in await asyncio.gather(*bad, return_exceptions=True))
        assert [ran for number, ran in broken if number > 1] == [[[0], [1]]] * 2  # after at most one of them

    asyncio.run(scene())


def test_without_workers_who_leaves_while_another_is_decoded_costs_no_run() -> None:
    """Decoded is not yet running."""

    async def scene() -> None:
        runner, meter, held = Echo(shut=True), Counts(), HeldDecode(2)
        with batching(runner, workers=None, meter=meter) as batcher:
            first = submit(batcher, 0)
            await reached(runner)
            leaves = submit(batcher, 1)
            stays = asyncio.create_task(batcher.run(held, ("logits",), same, LATER))
            await queued(batcher, 2)
            soon = time.monotonic() + 0.2  # a run that takes longer than decoding the first does on any machine
            await until(lambda: time.monotonic() > soon)
            runner.gate.set()
            assert await asyncio.to_thread(held.began.wait, PATIENCE)
            leaves.cancel()
            await asyncio.gather(leaves, return_exceptions=True)
            held.go_on.set()
            assert [number_of(await task) for task in (first, stays)] == [0, 2]
        assert runner.batches == [[0], [2]]
        assert meter.reasons == ["left"]

    asyncio.run(scene())


@pytest.mark.parametrize("workers", [None, 1])
def test_an_upload_of_a_caller_who_left_makes_room_at_once(workers: int | None) -> None:
    """While a run hangs, uploads come and their callers go: what nobody waits for any more is not kept for its turn."""

    class Body:
        def decode(self) -> Picture:
            return image(1)

    async def scene() -> None:
        runner, meter, body = Echo(shut=True), Counts(), Body()
        ghost = weakref.ref(body)
        with batching(runner, workers=workers, meter=meter) as batcher:
            running = submit(batcher, 0)
            await reached(runner)
            task = asyncio.create_task(batcher.run(body.decode, ("logits",), same, LATER))
            await asyncio.sleep(0)
            del body
            await queued(batcher, 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: ghost() is None)
            runner.gate.set()
            await running
        assert meter.reasons == ["left"]
        assert runner.batches == [[0]]

    asyncio.run(scene())


@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("workers", [None, 1])
def test_nothing_of_a_picture_that_failed_waits_for_the_garbage_collector(workers: int | None, here: bool) -> None:
    """A thousand damaged uploads a minute must not stand in memory until some cycle is looked for."""

    class Body:
        def decode(self) -> Picture:
            try:
                raise ValueError(self)  # as Pillow's errors, whose frames hold the file and its pixels
            except ValueError as error:
                raise InvalidImage("damaged") from error

    async def scene() -> None:
        ghosts = []
        with batching(Echo(), workers=workers) as batcher:
            for _ in range(5):
                body = Body()
                ghosts.append(weakref.ref(body))
                with pytest.raises(InvalidImage):
                    await batcher.run(body.decode, ("logits",), same, LATER, here=here)
                del body
            await submit(batcher, 1)
            assert [ghost() for ghost in ghosts] == [None] * 5

    gc.collect()
    gc.disable()
    try:
        asyncio.run(scene())
    finally:
        gc.enable()


@pytest.mark.parametrize("workers", [None, 1])
def test_an_answer_is_let_go_once_it_is_sent(workers: int | None) -> None:
    """A quiet service does not keep the last answers, of which each may have megabytes."""

    class Answer:
        pass

    async def scene() -> None:
        with batching(Echo(), workers=workers) as batcher:
            answer = await batcher.run(lambda: image(1), ("logits",), lambda _: Answer(), LATER)  # type: ignore[arg-type]
            ghost = weakref.ref(answer)
            del answer
            await until(lambda: ghost() is None)

    asyncio.run(scene())


@pytest.mark.parametrize("workers", [None, 1])
def test_an_answer_that_cannot_be_made_is_told_to_its_caller_alone(workers: int | None) -> None:
    """A NaN in one row is no trouble of the other rows; even of SystemExit the threads live on."""

    def fail(error: BaseException) -> Callable[[Ran[Picture]], Ran[Picture]]:
        def finish(_: Ran[Picture]) -> Ran[Picture]:
            raise error

        return finish

    async def scene() -> None:
        runner = Echo(shut=True)
        with batching(runner, workers=workers) as batcher:
            first = submit(batcher, 0)
            await reached(runner)
            finishes = [
                same,
                fail(InferenceFailed("not finite")),
                fail(ZeroDivisionError("no")),
                fail(SystemExit("no")),
            ]
            members = [
                asyncio.create_task(batcher.run(lambda: image(7), ("logits",), finish, LATER, here=True))
                for finish in finishes
            ]
            await queued(batcher, 4)
            runner.gate.set()
            good, *failed = await asyncio.gather(*members, return_exceptions=True)
            assert number_of(await first) == 0
            assert isinstance(good, Ran)
            assert (number_of(good), good.batch_size) == (7, 4)
            assert [type(error) for error in failed] == [InferenceFailed, ZeroDivisionError, InferenceFailed]
            assert str(failed[0]) == "not finite"
            assert number_of(await submit(batcher, 8)) == 8

    asyncio.run(scene())


@pytest.mark.parametrize("workers", [None, 1])
def test_who_leaves_while_his_answer_is_being_made_disturbs_nobody(workers: int | None) -> None:
    """As one whose deadline passes then: the answer has nowhere to go, silently."""

    async def scene() -> None:
        troubles: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
        began, go_on = threading.Event(), threading.Event()

        def finish(ran: Ran[Picture]) -> Ran[Picture]:
            began.set()
            assert go_on.wait(PATIENCE)
            return ran

        with batching(Echo(), workers=workers) as batcher:
            task = asyncio.create_task(batcher.run(lambda: image(1), ("logits",), finish, LATER))
            assert await asyncio.to_thread(began.wait, PATIENCE)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            go_on.set()
            assert number_of(await submit(batcher, 2)) == 2
        assert troubles == []

    asyncio.run(scene())


@pytest.mark.parametrize("workers", [None, 1])
def test_the_queue_shows_what_is_being_decoded(workers: int | None) -> None:
    """An image that is not yet running waits, whatever is done to it meanwhile."""

    async def scene() -> None:
        held = HeldDecode(1)
        with batching(Echo(), workers=workers) as batcher:
            task = asyncio.create_task(batcher.run(held, ("logits",), same, LATER))
            assert await asyncio.to_thread(held.began.wait, PATIENCE)
            assert batcher.waiting == 1
            age = batcher.age
            assert age > 0
            assert batcher.age > age
            held.go_on.set()
            await task
            assert (batcher.waiting, batcher.age) == (0, 0)

    asyncio.run(scene())


def test_closing_waits_for_no_decoding_and_answers_all() -> None:
    """A picture that takes minutes does not hold up the end of the process; its caller and those behind are told."""

    async def scene() -> None:
        runner, held = Echo(), HeldDecode(0)
        with batching(runner, workers=None) as batcher:
            first = asyncio.create_task(batcher.run(held, ("logits",), same, LATER))
            assert await asyncio.to_thread(held.began.wait, PATIENCE)
            behind = [submit(batcher, number) for number in range(1, 9)]
            await queued(batcher, 9)
            closing = asyncio.create_task(asyncio.to_thread(batcher.close))
            for task in behind:
                with pytest.raises(InferenceFailed, match="stopped"):
                    await task
            await closing  # within its two seconds
            with pytest.raises(InferenceFailed, match="stopped"):
                await first
            held.go_on.set()
        assert runner.batches == []

    asyncio.run(scene())


# --- waiting for company


def test_closing_answers_those_too_who_wait_for_others_of_their_batch_to_be_decoded() -> None:
    """A batch that waited for company is taken whole: while its first is decoded, the others are nobody's but its."""

    async def scene() -> None:
        runner, held = Echo(), HeldDecode(0)
        with batching(runner, workers=None, max_batch=3, max_wait_s=3600) as batcher:
            tasks = [asyncio.create_task(batcher.run(held, ("logits",), same, LATER)), submit(batcher, 1)]
            tasks.append(submit(batcher, 2))
            assert await asyncio.to_thread(held.began.wait, PATIENCE)
            await asyncio.to_thread(batcher.close)
            await until(lambda: all(task.done() for task in tasks))
            held.go_on.set()
        assert [str(task.exception()) for task in tasks] == ["the engine has stopped"] * 3
        assert runner.batches == []

    asyncio.run(scene())


def test_with_max_wait_a_batch_waits_until_it_is_full_and_then_goes_at_once() -> None:
    """An hour's wait ends with the last member: nobody waits for a timer once the batch is full."""

    async def scene() -> None:
        runner = Echo()
        with batching(runner, max_batch=3, max_wait_s=3600) as batcher:
            tasks = [submit(batcher, number) for number in (0, 1)]
            await queued(batcher, 2)
            assert runner.batches == []
            tasks.append(submit(batcher, 2))
            answers = await asyncio.gather(*tasks)
            assert runner.batches == [[0, 1, 2]]
            assert [answer.batch_size for answer in answers] == [3, 3, 3]
            more = [submit(batcher, number) for number in range(6)]
            await asyncio.gather(*more)
        assert list(map(len, runner.batches)) == [3, 3, 3]

    asyncio.run(scene())


def test_with_max_wait_whoever_stays_alone_is_run_after_it() -> None:
    """Company is waited for, and not needed."""

    async def scene() -> None:
        runner = Echo()
        with batching(runner, max_batch=3, max_wait_s=0.01) as batcher:
            assert (await submit(batcher, 7)).batch_size == 1
        assert runner.batches == [[7]]

    asyncio.run(scene())


def test_without_max_wait_a_free_runner_takes_what_is_there_at_once() -> None:
    """The default costs a lonely caller nothing, however large a batch may be."""

    async def scene() -> None:
        runner = Echo()
        with batching(runner, max_batch=1000, max_wait_s=0.0) as batcher:
            for number in range(3):
                assert (await submit(batcher, number)).batch_size == 1
        assert runner.batches == [[0], [1], [2]]

    asyncio.run(scene())


def test_closing_does_not_wait_for_company() -> None:
    """Who waits for it is answered at once, and the thread that waited ends: the process exits as after any other."""

    async def scene() -> None:
        runner = Echo()
        before = set(threading.enumerate())
        with batching(runner, max_batch=3, max_wait_s=3600, run_timeout_s=60) as batcher:
            task = submit(batcher, 0)
            await queued(batcher, 1)
            (thread,) = [one for one in threading.enumerate() if one.name == RUNNER and one not in before]
            await asyncio.to_thread(batcher.close)
            with pytest.raises(InferenceFailed, match="stopped"):
                await task
            assert not thread.is_alive()
        assert runner.batches == []

    asyncio.run(scene())


# --- runs that hang


def test_every_member_of_a_run_that_hangs_is_told_after_how_long_and_a_new_runner_goes_on() -> None:
    """`replace` gets the runner that hangs and gives the next; what came meanwhile waits for it and is answered."""

    async def scene() -> None:
        hangs, works, meter, given = Echo(shut=True), Echo(), Counts(), []

        def replace(hung: Runner) -> Runner:
            given.append(hung)
            return works

        options: dict[str, Any] = {"max_wait_s": 3600, "run_timeout_s": SHORT, "replace": replace}
        with batching(hangs, meter=meter, max_batch=3, **options) as batcher:
            members = [submit(batcher, number) for number in (0, 1, 2)]
            await reached(hangs)
            behind = [submit(batcher, number) for number in (3, 4, 5)]
            ends = await asyncio.gather(*members, return_exceptions=True)
            assert [type(end) for end in ends] == [InferenceFailed] * 3
            assert [str(end) for end in ends] == [f"a run of 3 took longer than {SHORT} s"] * 3
            assert [number_of(await task) for task in behind] == [3, 4, 5]
            assert given == [hangs]
            assert meter.hangs == 1
            assert meter.sizes == [3]  # a run that hangs is none that ran
            assert not batcher.broken
            hangs.gate.set()
        assert works.batches == [[3, 4, 5]]

    asyncio.run(scene())


def test_what_comes_back_too_late_from_a_run_that_hung_disturbs_nobody() -> None:
    """Its members have their answer already, and its runner never gets another batch."""

    class Noisy(Echo):
        ended = threading.Event()

        def run(self, pixels: Floats, outputs: Sequence[str], class_index: Indices | None) -> dict[str, Floats]:
            try:
                return super().run(pixels, outputs, class_index)
            finally:
                self.ended.set()

    async def scene() -> None:
        hangs, works, meter = Noisy(shut=True), Echo(), Counts()
        with batching(hangs, meter=meter, run_timeout_s=SHORT, replace=lambda _: works) as batcher:
            with pytest.raises(InferenceFailed, match="took longer"):
                await submit(batcher, 0)
            works.gate.clear()
            running = submit(batcher, 1)
            await reached(works)
            hangs.gate.set()  # while the next one runs
            assert await asyncio.to_thread(hangs.ended.wait, PATIENCE)
            works.gate.set()
            assert number_of(await running) == 1
            for number in range(2, 6):
                assert number_of(await submit(batcher, number)) == number
            assert meter.hangs == 1
            assert meter.sizes == [1] * 5
        assert hangs.batches == [[0]]

    asyncio.run(scene())


def test_while_a_new_runner_is_being_opened_the_engine_is_not_given_up() -> None:
    """Whoever comes in that time waits for it: 500 and a failed liveness are for an engine that will not come back."""

    async def scene() -> None:
        hangs, works, opening, go_on = Echo(shut=True), Echo(), threading.Semaphore(0), threading.Event()

        def replace(_: Runner) -> Runner:
            opening.release()
            assert go_on.wait(PATIENCE)
            return works

        with batching(hangs, run_timeout_s=SHORT, replace=replace) as batcher:
            with pytest.raises(InferenceFailed, match="took longer"):
                await submit(batcher, 0)
            assert await asyncio.to_thread(opening.acquire, timeout=PATIENCE)
            assert not batcher.broken
            task = submit(batcher, 1)
            await queued(batcher, 1)
            go_on.set()
            assert number_of(await task) == 1
            hangs.gate.set()

    asyncio.run(scene())


def test_not_even_for_a_moment_is_an_engine_broken_that_gets_a_new_runner() -> None:
    """A liveness probe in the very moment in which a run is given up must not have the process killed."""

    async def scene() -> None:
        hangs, seen = Echo(shut=True), []

        class Probe(Counts):
            def hung(self) -> None:
                seen.append(batcher.broken)

        with batching(hangs, meter=Probe(), run_timeout_s=SHORT, replace=lambda _: Echo()) as batcher:
            with pytest.raises(InferenceFailed, match="took longer"):
                await submit(batcher, 0)
            hangs.gate.set()
            await submit(batcher, 1)
        assert seen == [False]

    asyncio.run(scene())


def test_without_a_replacement_callers_are_told_at_once_that_no_session_is_left() -> None:
    """Those who wait, and those who come."""

    async def scene() -> None:
        hangs, meter = Echo(shut=True), Counts()
        with batching(hangs, meter=meter, max_batch=1, run_timeout_s=SHORT) as batcher:
            member = submit(batcher, 0)
            await reached(hangs)
            waiting = [submit(batcher, number) for number in (1, 2)]
            await queued(batcher, 2)
            with pytest.raises(InferenceFailed, match="took longer"):
                await member
            for task in (*waiting, submit(batcher, 3)):
                with pytest.raises(InferenceFailed, match="no session is left that works"):
                    await task
            assert batcher.broken
            assert batcher.waiting == 0
            assert meter.hangs == 1
            hangs.gate.set()
        assert hangs.batches == [[0]]

    asyncio.run(scene())


def test_after_the_fourth_run_that_hangs_no_session_is_opened_any_more() -> None:
    """Each leaves a session and a thread behind: three times that is borne, then only a restart helps."""

    async def scene() -> None:
        runners, meter = [Echo(shut=True) for _ in range(10)], Counts()
        more = iter(runners[1:])
        with batching(runners[0], meter=meter, run_timeout_s=SHORT, replace=lambda _: next(more)) as batcher:
            for number in range(4):
                assert not batcher.broken
                with pytest.raises(InferenceFailed, match="took longer"):
                    await submit(batcher, number)
            await until(lambda: batcher.broken)
            with pytest.raises(InferenceFailed, match="no session is left that works"):
                await submit(batcher, 4)
            assert meter.hangs == 4
            for runner in runners:
                runner.gate.set()
        assert [len(runner.batches) for runner in runners] == [1] * 4 + [0] * 6

    asyncio.run(scene())


def test_where_no_new_runner_can_be_opened_the_engine_is_given_up() -> None:
    """A device that is gone does not come back by trying: those who wait are told."""

    async def scene() -> None:
        hangs, go_on = Echo(shut=True), threading.Event()

        def replace(_: Runner) -> Runner:
            assert go_on.wait(PATIENCE)
            raise RuntimeError("no device")

        with batching(hangs, run_timeout_s=SHORT, replace=replace) as batcher:
            with pytest.raises(InferenceFailed, match="took longer"):
                await submit(batcher, 0)
            waits = submit(batcher, 1)
            await queued(batcher, 1)
            go_on.set()
            for task in (waits, submit(batcher, 2)):
                with pytest.raises(InferenceFailed, match="no session is left that works"):
                    await task
            assert batcher.broken
            hangs.gate.set()

    asyncio.run(scene())


def test_a_new_runner_that_does_not_open_is_given_up_too() -> None:
    """After ten run timeouts: who waits for it is told, and not left to his deadline."""

    async def scene() -> None:
        hangs, meter, go_on = Echo(shut=True), Counts(), threading.Event()

        def replace(_: Runner) -> Runner:
            assert go_on.wait(PATIENCE)
            return Echo()

        with batching(hangs, meter=meter, run_timeout_s=0.05, replace=replace) as batcher:
            with pytest.raises(InferenceFailed, match="took longer"):
                await submit(batcher, 0)
            waits = submit(batcher, 1)
            with pytest.raises(InferenceFailed, match="no session is left that works"):
                await waits
            assert batcher.broken
            assert meter.hangs == 2
            hangs.gate.set()
            go_on.set()

    asyncio.run(scene())


def test_a_new_runner_that_opens_after_it_was_given_up_takes_no_work() -> None:
    """Beside another that works: what it took, nobody would answer."""

    async def scene() -> None:
        hangs, works, late = Echo(shut=True), Echo(shut=True), Echo()
        meter, go_on, before = Counts(), threading.Event(), set(threading.enumerate())

        def replace(_: Runner) -> Runner:
            assert go_on.wait(PATIENCE)
            return late

        with batching(hangs, works, meter=meter, max_batch=1, run_timeout_s=SHORT, replace=replace) as batcher:
            tasks = [submit(batcher, 0), submit(batcher, 1)]
            await asyncio.gather(reached(hangs), reached(works))
            works.gate.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            await until(lambda: batcher.sessions == 1)  # the new one took longer than ten runs may
            opening = [one for one in threading.enumerate() if one.name == RUNNER and one not in before]
            hangs.gate.set()
            go_on.set()
            await until(lambda: sum(one.is_alive() for one in opening) == 1)
            for number in range(2, 10):
                assert number_of(await submit(batcher, number)) == number
        assert late.batches == []

    asyncio.run(scene())


def test_runs_that_hang_and_come_back_are_forgotten() -> None:
    """Only threads that are lost count against the three: a slow disk once an hour does not end the service."""

    async def scene() -> None:
        runners, meter = [Echo(shut=True) for _ in range(8)], Counts()
        more, before = iter(runners[1:]), set(threading.enumerate())

        def new() -> list[threading.Thread]:
            return [one for one in threading.enumerate() if one.name == RUNNER and one not in before]

        with batching(runners[0], meter=meter, run_timeout_s=0.05, replace=lambda _: next(more)) as batcher:
            for number, runner in enumerate(runners[:-1]):
                await until(lambda: len(new()) == 1)  # the next one's thread begins while the last one's ends
                (thread,) = new()
                with pytest.raises(InferenceFailed, match="took longer"):
                    await submit(batcher, number)
                runner.gate.set()
                await asyncio.to_thread(thread.join, PATIENCE)
                assert not batcher.broken
            runners[-1].gate.set()
            assert number_of(await submit(batcher, 9)) == 9
            assert meter.hangs == 7

    asyncio.run(scene())


def test_of_two_runners_one_that_hangs_leaves_the_other_working() -> None:
    """Half of the engine is better than none."""

    async def scene() -> None:
        hangs, works, meter = Echo(shut=True), Echo(shut=True), Counts()
        with batching(hangs, works, meter=meter, max_batch=1, run_timeout_s=SHORT) as batcher:
            tasks = {submit(batcher, 0), submit(batcher, 1)}
            await asyncio.gather(reached(hangs), reached(works))
            works.gate.set()
            done, lost = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            assert [number_of(task.result()) for task in done] == works.batches[0]
            for task in lost:
                with pytest.raises(InferenceFailed, match="took longer"):
                    await task
            assert not batcher.broken
            assert [number_of(await submit(batcher, number)) for number in range(2, 8)] == list(range(2, 8))
            assert len(hangs.batches) == 1
            assert meter.hangs == 1
            hangs.gate.set()

    asyncio.run(scene())


def test_a_runner_whose_late_run_came_back_is_let_go() -> None:
    """Its session is as large as the model: it is freed, not kept beside the one in its place."""

    async def scene() -> None:
        hangs, workers = Echo(shut=True), Workers(1)
        gate, ghost = hangs.gate, weakref.ref(hangs)
        batcher: Batcher[Picture, Ran[Picture]] = Batcher(
            [hangs], write, workers, Counts(), max_batch=1, capacity=9, run_timeout_s=SHORT, replace=lambda _: Echo()
        )
        del hangs
        try:
            with pytest.raises(InferenceFailed, match="took longer"):
                await submit(batcher, 0)
            gate.set()
            assert number_of(await submit(batcher, 1)) == 1  # the one in its place is at work
            async with asyncio.timeout(5):
                while ghost() is not None:  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0)
        finally:
            batcher.close()
            workers.close()

    asyncio.run(scene())


def test_a_run_that_ends_in_time_is_never_given_up() -> None:
    """The watch is on each run, not on the runner: many of them together take longer than one may."""

    async def scene() -> None:
        runner, meter = Echo(), Counts()
        with batching(runner, meter=meter, run_timeout_s=SHORT) as batcher:
            end = time.monotonic() + 3 * SHORT
            for number in itertools.count():
                assert number_of(await submit(batcher, number)) == number
                if time.monotonic() > end:
                    break
            assert meter.hangs == 0

    asyncio.run(scene())


def test_closing_does_not_wait_for_a_run_that_hangs() -> None:
    """The process can end: the caller of that run is told."""

    async def scene() -> None:
        hangs = Echo(shut=True)
        with batching(hangs, run_timeout_s=SHORT) as batcher:
            task = submit(batcher, 0)
            await reached(hangs)
            await asyncio.to_thread(batcher.close)
            with pytest.raises(InferenceFailed):
                await task
            hangs.gate.set()

    asyncio.run(scene())


# --- what the queue shows


def test_the_age_of_the_queue_is_that_of_the_oldest_who_waits() -> None:
    """Zero where nobody waits; it grows while somebody does."""

    async def scene() -> None:
        runner = Echo(shut=True)
        with batching(runner, max_batch=1) as batcher:
            assert (batcher.waiting, batcher.age) == (0, 0)
            first = submit(batcher, 0)
            await reached(runner)
            assert (batcher.waiting, batcher.age) == (0, 0)  # it runs; nobody waits
            before = time.monotonic()
            tasks = [submit(batcher, number) for number in (1, 2)]
            await queued(batcher, 2)
            age, most = batcher.age, time.monotonic() - before
            assert 0 < age <= most
            assert batcher.age > age
            runner.gate.set()
            await asyncio.gather(first, *tasks)
            assert (batcher.waiting, batcher.age) == (0, 0)

    asyncio.run(scene())


# --- when to come again


def worth(runs: Sequence[tuple[int, float, float]]) -> tuple[float, float]:
    """The images and the busy seconds of (images, first came, ended), each run worth 0.95 of the one after it."""
    images = seconds = 0.0
    last = 0.0
    for index, (count, came, ended) in enumerate(runs):
        weight = 0.95 ** (len(runs) - 1 - index)
        images += weight * count
        seconds += weight * (ended - max(came, last))
        last = ended
    return images, seconds


@pytest.mark.parametrize(
    "runs",
    [
        [(4, 10.0, 12.0)],
        [(4, 10.0, 12.0), (8, 11.0, 15.0)],
        [(1, 10.0, 14.0), (16, 10.5, 20.0), (2, 13.0, 21.0), (7, 20.5, 30.0)],
        [(4, 10.0, 12.0), (4, 1000.0, 1002.0)],  # idle for a quarter of an hour between
        [(4, float(i), i + 0.5) for i in range(10, 60)],
    ],
)
@pytest.mark.parametrize("waiting", [1, 10, 37, 64])
def test_retry_after_is_the_time_in_which_so_many_images_get_done(
    runs: list[tuple[int, float, float]], waiting: int
) -> None:
    """Images over busy seconds of the last runs; time in which nothing was asked for does not count."""
    rate = _Rate()
    for images, came, ended in runs:
        rate.add(images, came, ended)
    images, seconds = worth(runs)
    assert rate.seconds_for(waiting) == min(max(math.ceil(waiting * seconds / images), 1), 60)


def test_an_idle_night_does_not_make_the_engine_look_slow() -> None:
    """Two images a second, before the night and after it."""
    rate = _Rate()
    rate.add(10, 0.0, 5.0)
    assert rate.seconds_for(10) == 5
    rate.add(10, 40_000.0, 40_005.0)
    assert rate.seconds_for(10) == 5


def test_two_runners_at_once_get_twice_as_much_done() -> None:
    """Seconds in which both ran count once: 4 images each in the same two seconds are 4 a second."""
    rate = _Rate()
    rate.add(4, 10.0, 12.0)
    rate.add(4, 10.0, 12.0)
    # 4 * 0.95 + 4 images in 2 * 0.95 seconds
    assert rate.seconds_for(100) == math.ceil(100 * 1.9 / 7.8)


def test_retry_after_is_a_whole_second_at_least_and_a_minute_at_most() -> None:
    """Nothing measured yet: one second. Nobody is sent away for an hour."""
    rate = _Rate()
    assert rate.seconds_for(100) == 1
    rate.add(1000, 10.0, 10.001)
    assert rate.seconds_for(1) == 1
    slow = _Rate()
    slow.add(1, 10.0, 100.0)
    assert slow.seconds_for(1) == 60


def test_who_is_refused_is_told_by_the_measured_rate() -> None:
    """Seven in the queue of an engine that needs five seconds an image: come again in 35."""
    with batching(Echo(), capacity=7) as batcher:
        batcher._rate.add(10, 50.0, 100.0)
        places = [batcher.admission() for _ in range(7)]
        for place in places:
            place.__enter__()
        with pytest.raises(Overloaded) as caught, batcher.admission():
            pass
        assert caught.value.retry_after == 35
        for place in places:
            place.__exit__(None, None, None)
        assert batcher.admitted == 0


def test_each_run_is_counted_once_with_its_size() -> None:
    """A batch of three is one run; one that failed is none."""

    async def scene() -> None:
        runner, meter = Echo(shut=True), Counts()
        with batching(runner, meter=meter) as batcher:
            first = submit(batcher, 0)
            await reached(runner)
            members = [submit(batcher, number) for number in (1, 2, 3)]
            await queued(batcher, 3)
            runner.gate.set()
            answers = await asyncio.gather(first, *members)
            runner.failures = [ValueError("no")]
            with pytest.raises(InferenceFailed):
                await submit(batcher, 4)
            assert number_of(await submit(batcher, 5)) == 5
        assert meter.sizes == [1, 3, 1]
        assert [answer.run_s for answer in answers] == [meter.seconds[0], *[meter.seconds[1]] * 3]

    asyncio.run(scene())


# --- maps of the gradient


@pytest.mark.parametrize("workers", [1, None])
def test_images_with_as_many_classes_share_a_batch_and_each_has_its_own_classes(workers: int | None) -> None:
    """The first that waits, and of those behind it who asks for as many; the others keep their places, in order."""
    asked = [(), (3,), (), (-1, -2), (5,), (), (0, 1), (7, 8, 9)]

    async def scene() -> None:
        runner, meter = Echo(shut=True), Counts()
        with batching(runner, workers=workers, meter=meter) as batcher:
            tasks = [submit(batcher, 100)]
            await reached(runner)
            tasks += [submit(batcher, number, class_index=one) for number, one in enumerate(asked)]
            await queued(batcher, len(asked))
            runner.gate.set()
            answers = await asyncio.gather(*tasks)
        expected = [[100], [0, 2, 5], [1, 4], [3, 6], [7]]
        if workers is None:  # those that it decodes itself it takes one by one, as long as a run lasts
            assert [number for batch in runner.batches for number in batch][1] == 0
            assert all(len({len(asked[int(number)]) for number in batch}) == 1 for batch in runner.batches[1:])
        else:
            assert runner.batches == expected
            assert meter.explained == [0, 0, 1, 2, 3]
        for batch, classes in zip(runner.batches[1:], runner.classes[1:], strict=True):
            own = [list(asked[int(number)]) for number in batch]
            assert classes == (own if own[0] else None)
        assert [number_of(answer) for answer in answers] == [100, *range(len(asked))]

    asyncio.run(scene())


@pytest.mark.parametrize(("classes", "sizes"), [(1, [4, 3]), (2, [2, 2, 2, 1]), (3, [1] * 7), (9, [1] * 7)])
def test_a_batch_has_fewer_images_the_more_classes_they_have(classes: int, sizes: list[int]) -> None:
    """So that it takes no more memory than one of labels; one image runs always."""

    async def scene() -> None:
        runner = Echo(shut=True)
        with batching(runner, max_batch=4) as batcher:
            tasks = [submit(batcher, 0)]
            await reached(runner)
            tasks += [submit(batcher, number, class_index=tuple(range(classes))) for number in range(1, 8)]
            await queued(batcher, 7)
            runner.gate.set()
            await asyncio.gather(*tasks)
        assert [len(batch) for batch in runner.batches[1:]] == sizes
        assert [number for batch in runner.batches for number in batch] == list(range(8))

    asyncio.run(scene())


def test_neither_labels_nor_maps_starve_behind_each_other() -> None:
    """While one kind keeps coming, the first of the other runs in its turn: who waits longest is next."""

    async def scene() -> None:
        runner = Echo(shut=True)
        with batching(runner, max_batch=2) as batcher:
            tasks = [submit(batcher, 0)]
            await reached(runner)
            kinds = [(), (1,), (), (), (2,), (), (), (3,), ()]
            tasks += [submit(batcher, number, class_index=one) for number, one in enumerate(kinds, 1)]
            await queued(batcher, len(kinds))
            runner.gate.set()
            await asyncio.gather(*tasks)
        assert runner.batches == [[0], [1, 3], [2, 5], [4, 6], [7, 9], [8]]

    asyncio.run(scene())


def test_who_waits_for_company_waits_for_his_kind() -> None:
    """A batch is full once there are as many as run together; others that wait are no company."""

    async def scene() -> None:
        runner = Echo()
        with batching(runner, max_batch=4, max_wait_s=3600) as batcher:
            pairs = [submit(batcher, number, class_index=(1, 2)) for number in (1, 2)]
            assert [number_of(answer) for answer in await asyncio.gather(*pairs)] == [1, 2]
            one = submit(batcher, 3, class_index=(1,))
            others = [submit(batcher, number) for number in (4, 5, 6)]
            await queued(batcher, 4)
            last = [submit(batcher, number, class_index=(1,)) for number in (7, 8, 9)]
            await asyncio.gather(one, *last)
            await asyncio.gather(*others, submit(batcher, 10))
        assert runner.batches == [[1, 2], [3, 7, 8, 9], [4, 5, 6, 10]]

    asyncio.run(scene())


def test_a_full_batch_goes_before_who_came_first_and_waits_for_company() -> None:
    """One who asks for maps of the gradient does not hold labels back; he is next once his own batch is full."""

    async def scene() -> None:
        runner = Echo()
        with batching(runner, max_batch=3, max_wait_s=3600) as batcher:
            first = submit(batcher, 0, class_index=(1,))
            await queued(batcher, 1)
            labels = [submit(batcher, number) for number in (1, 2, 3)]
            assert [answer.batch_size for answer in await asyncio.gather(*labels)] == [3, 3, 3]
            await asyncio.gather(first, *[submit(batcher, number, class_index=(1,)) for number in (4, 5)])
        assert runner.batches == [[1, 2, 3], [0, 4, 5]]

    asyncio.run(scene())


def test_full_batches_do_not_starve_who_has_waited_long_enough_for_company() -> None:
    """His wait ends after `max_wait_s` though others have a full batch at each turn."""

    async def scene() -> None:
        runner = Echo(shut=True)
        with batching(runner, workers=None, max_batch=2, max_wait_s=SHORT) as batcher:
            tasks = [submit(batcher, 1, class_index=(1, 2))]  # as many as run together
            await reached(runner)
            tasks.append(submit(batcher, 2, class_index=(1,)))
            tasks += [submit(batcher, number) for number in (3, 4, 5, 6)]
            await queued(batcher, 5)
            over = time.monotonic() + SHORT
            await until(lambda: time.monotonic() > over)
            runner.gate.set()
            await asyncio.gather(*tasks)
        assert runner.batches == [[1], [2], [3, 4], [5, 6]]

    asyncio.run(scene())


@pytest.mark.parametrize("end", ["answered", "left", "late"])
def test_who_waits_for_something_to_be_opened_counts_as_waiting(end: Literal["answered", "left", "late"]) -> None:
    """In number, in age and in the time that he is told; and as dropped if he leaves. Others run meanwhile."""

    async def scene() -> None:
        runner, meter, open_now = Echo(), Counts(), asyncio.Event()

        async def opened() -> None:
            await open_now.wait()

        with batching(runner, meter=meter) as batcher:
            deadline = NOW if end == "late" else LATER
            task = asyncio.create_task(
                batcher.run(lambda: image(1), ("logits",), same, deadline, class_index=(1,), opened=opened)
            )
            await queued(batcher, 1)
            await submit(batcher, 2)
            assert batcher.waiting == 1
            waited = batcher.age
            assert waited > 0
            if end == "answered":
                open_now.set()
                assert (await task).queue_s >= waited
            else:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert batcher.waiting == 0
        assert meter.reasons == ([] if end == "answered" else [end])
        assert runner.batches == ([[2], [1]] if end == "answered" else [[2]])

    asyncio.run(scene())

"""The batcher, on runners that wait, fail and count; no engine and no clock."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from saccade.errors import DeadlineExceeded, InferenceFailed, Overloaded
from service.batcher import Batcher, Floats, Ran, Runner

LATER = time.monotonic() + 3600
NOW = time.monotonic() - 1


class Echo:
    """Output `name` of a picture is the picture's first number plus the name's length; waits at its gate."""

    def __init__(self, shut: bool = False) -> None:
        self.gate = threading.Event()
        if not shut:
            self.gate.set()
        self.began = threading.Semaphore(0)
        self.batches: list[list[float]] = []
        self.asked: list[tuple[str, ...]] = []
        self.failures: list[BaseException] = []
        self.rows = 0

    def run(self, pixels: Floats, outputs: Sequence[str]) -> dict[str, Floats]:
        self.batches.append(pixels[:, 0, 0, 0].tolist())
        self.asked.append(tuple(outputs))
        self.began.release()
        assert self.gate.wait(30)
        if self.failures:
            raise self.failures.pop()
        rows = pixels[: len(pixels) + self.rows]
        return {name: rows[:, 0, 0, :1] + np.float32(len(name)) for name in outputs}


def image(number: float) -> Floats:
    return np.full((3, 2, 2), number, np.float32)


@contextmanager
def batching(
    *runners: Runner, max_batch: int = 4, capacity: int = 100, on_drop: Callable[[], None] = lambda: None
) -> Iterator[Batcher]:
    batcher = Batcher(runners, max_batch=max_batch, capacity=capacity, on_drop=on_drop)
    try:
        yield batcher
    finally:
        batcher.close()


def submit(batcher: Batcher, number: float, *outputs: str, deadline: float = LATER) -> "asyncio.Task[Ran]":
    return asyncio.create_task(batcher.run(image(number), outputs or ("logits",), deadline))


async def reached(runner: Echo) -> None:
    """Waits until one more run has begun."""
    assert await asyncio.to_thread(runner.began.acquire, timeout=30)


async def queued() -> None:
    """Lets the tasks made so far put themselves into the queue."""
    await asyncio.sleep(0)


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
            await queued()
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
                leave = asyncio.Event()
                tasks = [asyncio.create_task(one(batcher, seen, leave)) for _ in range(50)]
                await queued()
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
            await queued()
            runner.failures = [ValueError("no"), ValueError("no")]
            runner.gate.set()
            results = await asyncio.gather(first, *members, return_exceptions=True)
            assert all(isinstance(result, InferenceFailed) for result in results)
            assert [str(result) for result in results[1:]] == ["a batch of 3 failed: ValueError"] * 3
            assert (await submit(batcher, 4)).outputs["logits"].item() == 10

    asyncio.run(scene())


@pytest.mark.parametrize("spare", ["cancelled", "late"])
def test_who_left_or_is_late_never_costs_a_run_and_is_counted(spare: str) -> None:
    """Work of a caller who went away is dropped before it reaches the engine."""

    async def scene() -> None:
        runner = Echo(shut=True)
        dropped: list[int] = []
        with batching(runner, on_drop=lambda: dropped.append(1)) as batcher:
            first = submit(batcher, 0)
            await reached(runner)
            gone = [submit(batcher, number, deadline=NOW if spare == "late" else LATER) for number in (1, 2)]
            stays = submit(batcher, 3)
            await queued()
            if spare == "cancelled":
                for task in gone:
                    task.cancel()
                await asyncio.gather(*gone, return_exceptions=True)
            runner.gate.set()
            assert (await first).batch_size == (await stays).batch_size == 1
            assert runner.batches == [[0], [3]]
            assert len(dropped) == 2
            ends = await asyncio.gather(*gone, return_exceptions=True)
            assert {type(end) for end in ends} == {DeadlineExceeded if spare == "late" else asyncio.CancelledError}

    asyncio.run(scene())


def test_who_leaves_while_his_batch_runs_does_not_disturb_the_others() -> None:
    """The run goes on; the others are answered."""

    async def scene() -> None:
        runner = Echo(shut=True)
        with batching(runner) as batcher:
            leaves = submit(batcher, 0)
            await reached(runner)
            stays = submit(batcher, 1)
            await queued()
            leaves.cancel()
            runner.gate.set()
            assert (await stays).outputs["logits"].item() == 7
            assert leaves.cancelled()

    asyncio.run(scene())


def test_closing_answers_those_who_wait_and_those_who_come() -> None:
    """The running batch ends; nobody hangs."""

    async def scene() -> None:
        runner = Echo(shut=True)
        batcher = Batcher([runner], max_batch=1, capacity=10)
        running = submit(batcher, 0)
        await reached(runner)
        waiting = [submit(batcher, number) for number in (1, 2)]
        await queued()
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        for task in waiting:
            with pytest.raises(InferenceFailed, match="stopped"):
                await task
        runner.gate.set()
        assert (await running).outputs["logits"].item() == 6
        await closing
        with pytest.raises(InferenceFailed, match="stopped"):
            await submit(batcher, 3)
        assert runner.batches == [[0]]

    asyncio.run(scene())


def test_closing_after_the_event_loop_has_gone_ends_cleanly() -> None:
    """The command line's loop is over before its engine is closed."""
    runner = Echo(shut=True)
    batcher = Batcher([runner], max_batch=1, capacity=10)

    async def scene() -> None:
        tasks = [submit(batcher, 0)]
        await reached(runner)
        tasks.append(submit(batcher, 1))
        await queued()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scene())
    closing = threading.Thread(target=batcher.close)
    closing.start()
    runner.gate.set()
    closing.join(30)
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
            await queued()
            runner.gate.set()
            for task in (first, *others):
                with pytest.raises(InferenceFailed, match="ValueError"):
                    await task

    asyncio.run(scene())


def test_a_run_without_an_output_is_a_failure() -> None:
    """As if the engine had raised."""

    class Forgetful(Echo):
        def run(self, pixels: Floats, outputs: Sequence[str]) -> dict[str, Floats]:
            return super().run(pixels, outputs[:1])

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
            await queued()
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
        with batching(*runners, max_batch=16, capacity=2000) as batcher:
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

"""The threads that decode: work in the order it came, and threads that outlive it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from service.workers import Workers


@contextmanager
def working(threads: int = 1) -> Iterator[Workers]:
    workers = Workers(threads)
    try:
        yield workers
    finally:
        workers.close()


def test_work_is_begun_in_the_order_it_came() -> None:
    """First come, first served, whether it was submitted or called."""
    done: list[int] = []

    async def scene(workers: Workers) -> None:
        calls = []
        for number in range(100):
            if number % 2:
                workers.submit(lambda number=number: done.append(number))
            else:
                calls.append(asyncio.create_task(workers.call(lambda number=number: done.append(number))))
                await asyncio.sleep(0)  # the task puts its work in
        await asyncio.gather(*calls)

    with working() as workers:
        asyncio.run(scene(workers))
    assert done == list(range(100))


def test_each_thread_works_at_once_and_none_is_the_event_loops() -> None:
    """Three threads meet where three are needed to go on."""
    meeting = threading.Barrier(3)

    def meet() -> str:
        meeting.wait(30)
        return threading.current_thread().name

    async def scene(workers: Workers) -> list[str]:
        return await asyncio.gather(*(workers.call(meet) for _ in range(3)))

    with working(3) as workers:
        names = asyncio.run(scene(workers))
    assert len(set(names)) == 3
    assert threading.current_thread().name not in names


def test_call_gives_what_the_work_gave_each_to_its_own_caller() -> None:
    """No result is lost, doubled or swapped."""

    async def scene(workers: Workers) -> list[int]:
        return await asyncio.gather(*(workers.call(lambda number=number: number**2) for number in range(200)))

    with working(3) as workers:
        assert asyncio.run(scene(workers)) == [number**2 for number in range(200)]


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError(), asyncio.CancelledError("odd")])
def test_call_raises_what_the_work_raised(error: BaseException) -> None:
    """The very exception, in the caller; the thread lives on."""

    def fail() -> None:
        raise error

    async def scene(workers: Workers) -> None:
        with pytest.raises(type(error)) as caught:
            await workers.call(fail)
        assert caught.value is error
        assert await workers.call(lambda: "alive") == "alive"

    with working() as workers:
        asyncio.run(scene(workers))


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit("no"), KeyboardInterrupt()])
def test_threads_survive_whatever_their_work_raises(error: BaseException) -> None:
    """One bad picture must not leave a service without decoders."""

    def fail() -> None:
        raise error

    async def scene(workers: Workers) -> None:
        for _ in range(5):
            workers.submit(fail)
        assert await workers.call(lambda: "alive") == "alive"

    with working(2) as workers:
        asyncio.run(scene(workers))


def test_work_that_nobody_waits_for_any_more_is_not_begun() -> None:
    """A caller who left before his turn costs nothing."""
    done: list[str] = []
    go_on = threading.Event()

    async def scene(workers: Workers) -> None:
        first = asyncio.create_task(workers.call(lambda: go_on.wait(30)))
        gone = asyncio.create_task(workers.call(lambda: done.append("gone")))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        go_on.set()
        assert await first
        await workers.call(lambda: done.append("stays"))

    with working() as workers:
        asyncio.run(scene(workers))
    assert done == ["stays"]


@pytest.mark.parametrize("ends", [lambda: "done", lambda: 1 / 0])
def test_who_leaves_in_the_middle_of_the_work_disturbs_nobody(ends: Callable[[], object]) -> None:
    """Its result or its error has nowhere to go, silently."""
    began, go_on, troubles = threading.Event(), threading.Event(), []

    def work() -> object:
        began.set()
        assert go_on.wait(30)
        return ends()

    async def scene(workers: Workers) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
        task = asyncio.create_task(workers.call(work))
        assert await asyncio.to_thread(began.wait, 30)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        go_on.set()
        assert await workers.call(lambda: "next") == "next"

    with working() as workers:
        asyncio.run(scene(workers))
    assert troubles == []


def test_close_returns_when_what_was_submitted_is_done() -> None:
    """Nothing accepted is lost at the end, and no thread stays."""
    before = threading.active_count()
    workers, go_on, done = Workers(3), threading.Event(), []

    def work(number: int) -> None:
        assert go_on.wait(30)
        done.append(number)

    for number in range(50):
        workers.submit(lambda number=number: work(number))
    closing = threading.Thread(target=workers.close)
    closing.start()
    assert closing.is_alive()
    assert done == []
    go_on.set()
    closing.join(30)
    assert not closing.is_alive()
    assert sorted(done) == list(range(50))
    assert threading.active_count() == before

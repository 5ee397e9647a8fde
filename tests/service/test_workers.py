"""The threads that decode ahead and make answers: work in the order it came, and threads that outlive it."""

import threading
from collections.abc import Iterator
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
    """First come, first served."""
    done: list[int] = []
    with working() as workers:
        for number in range(100):
            workers.submit(lambda number=number: done.append(number))
    assert done == list(range(100))


def test_what_is_urgent_is_begun_before_all_that_is_not() -> None:
    """An answer that only has to be written does not wait behind pictures that came later."""
    done: list[object] = []
    began, go_on = threading.Event(), threading.Event()

    def first() -> None:
        began.set()
        done.append(go_on.wait(30))

    with working() as workers:
        workers.submit(first)
        assert began.wait(30)
        for name in ("picture 1", "picture 2"):
            workers.submit(lambda name=name: done.append(name))
        for name in ("answer 1", "answer 2"):
            workers.submit(lambda name=name: done.append(name), first=True)
        go_on.set()
    assert done == [True, "answer 1", "answer 2", "picture 1", "picture 2"]


def test_each_thread_works_at_once_and_none_is_the_callers() -> None:
    """Three threads meet where three are needed to go on."""
    meeting, names = threading.Barrier(3), []

    def meet() -> None:
        meeting.wait(30)
        names.append(threading.current_thread().name)

    with working(3) as workers:
        for _ in range(3):
            workers.submit(meet)
    assert len(set(names)) == 3
    assert threading.current_thread().name not in names


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit("no"), KeyboardInterrupt(), MemoryError()])
def test_threads_survive_whatever_their_work_raises(error: BaseException) -> None:
    """One bad picture must not leave a service without decoders."""
    done: list[bool] = []

    def fail() -> None:
        raise error

    with working() as workers:
        workers.submit(fail)
        workers.submit(lambda: done.append(True))
    assert done == [True]


def test_closing_lets_what_was_submitted_finish() -> None:
    """Nothing accepted is thrown away, whichever way it was submitted, and no thread stays."""
    done: list[int] = []
    before, go_on = threading.active_count(), threading.Event()
    workers = Workers(2)
    workers.submit(lambda: done.append(go_on.wait(30)))
    for number in range(50):
        workers.submit(lambda number=number: done.append(number), first=number % 2 == 0)
    go_on.set()
    workers.close()
    assert sorted(done) == sorted([True, *range(50)])
    assert threading.active_count() == before


def test_without_threads_there_is_nothing_to_close() -> None:
    """A plan in which sessions decode for themselves."""
    Workers(0).close()

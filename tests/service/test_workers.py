"""The threads beside the sessions': work in the order it came, and threads that outlive it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.workers import Workers


@contextmanager
def working(decoders: int = 1) -> Iterator[Workers]:
    workers = Workers(decoders)
    try:
        yield workers
    finally:
        workers.close()


@pytest.mark.parametrize("kind", ["decode", "finish"])
def test_work_is_begun_in_the_order_it_came(kind: str) -> None:
    """First come, first served."""
    done: list[int] = []
    with working() as workers:
        for number in range(100):
            getattr(workers, kind)(lambda number=number: done.append(number))
    assert done == list(range(100))


def test_an_answer_waits_for_no_decoding() -> None:
    """However long every decoder has to do, and whatever waits for them."""
    go_on, answered = threading.Event(), threading.Event()
    with working(2) as workers:
        for _ in range(10):
            workers.decode(lambda: go_on.wait(30))
        workers.finish(answered.set)
        assert answered.wait(30)
        assert not go_on.is_set()
        go_on.set()


def test_each_decoder_works_at_once_and_none_is_the_callers() -> None:
    """Three threads meet where three are needed to go on."""
    meeting, names = threading.Barrier(3), []

    def meet() -> None:
        meeting.wait(30)
        names.append(threading.current_thread().name)

    with working(3) as workers:
        for _ in range(3):
            workers.decode(meet)
    assert len(set(names)) == 3
    assert threading.current_thread().name not in names


@pytest.mark.parametrize("kind", ["decode", "finish"])
@pytest.mark.parametrize("error", [ValueError("no"), SystemExit("no"), KeyboardInterrupt(), MemoryError()])
def test_threads_survive_whatever_their_work_raises(kind: str, error: BaseException) -> None:
    """One bad picture must not leave a service without decoders."""
    done: list[bool] = []

    def fail() -> None:
        raise error

    with working() as workers:
        getattr(workers, kind)(fail)
        getattr(workers, kind)(lambda: done.append(True))
    assert done == [True]


def test_closing_lets_what_was_submitted_finish() -> None:
    """Nothing accepted is thrown away, and no thread stays."""
    done: list[int] = []
    before, go_on = threading.active_count(), threading.Event()
    workers = Workers(2)
    for _ in range(2):
        workers.decode(lambda: go_on.wait(30))
    for number in range(50):
        workers.decode(lambda number=number: done.append(number))
        workers.finish(lambda number=number: done.append(-1 - number))
    go_on.set()
    workers.close()
    assert sorted(done) == list(range(-50, 50))
    assert threading.active_count() == before


def test_without_decoders_there_is_no_thread() -> None:
    """A plan in which sessions do everything themselves."""
    before = threading.active_count()
    workers = Workers(0)
    assert threading.active_count() == before
    workers.close()

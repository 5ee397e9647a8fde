"""Work on many items in threads, results in the items' order, with bounded memory however many there are."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(
    items: Iterable[_Item],
    work: Callable[[_Item], _Result],
    *,
    threads: int,
    give_up: Callable[[], None] = lambda: None,
) -> Iterator[_Result]:
    """Calls `work` on up to `threads` items at a time and yields what it gives, first item first.

    At most four times as many items are taken and not yet yielded, so that one that takes long does not hold up the
    others at once. `items` are drawn in those threads, one at a time. What `items` or `work` raises is raised in its
    place, and ends it. Whoever stops early has `give_up` called, to end what is being waited for.
    """
    line = _Line(items, work, threads)
    workers = [threading.Thread(target=line.serve, name="saccade-client", daemon=True) for _ in range(threads)]
    try:
        for worker in workers:
            worker.start()
        yield from line
        for worker in workers:
            worker.join()
    finally:
        line.stop()
        if any(worker.is_alive() for worker in workers):  # not waited for: they may be in a read that never ends
            give_up()


_LATEST_S = 0.02
"""How long a result may lie there. To wake who takes them for each would cost more than some of them."""


class _Did(Generic[_Result]):
    def __init__(self, value: _Result) -> None:
        self.value = value


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Line(Generic[_Item, _Result]):
    def __init__(self, items: Iterable[_Item], work: Callable[[_Item], _Result], threads: int) -> None:
        self._items = iter(items)
        self._work = work
        self._room = 4 * threads
        self._enough = (threads + 1) // 2
        self._drawing = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        self._done: dict[int, _Did[_Result] | _Failed] = {}
        self._drawn = 0
        self._given = 0
        self._ended = False

    def serve(self) -> None:
        while (drawn := self._draw()) is not None:
            number, item = drawn
            try:
                result: _Did[_Result] | _Failed = _Did(self._work(item))
            except BaseException as error:
                result = _Failed(error)
            del item, drawn
            with self._changed:
                self._done[number] = result
                waiting = len(self._done)
                if self._given in self._done and (waiting >= self._enough or waiting == self._drawn - self._given):
                    self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[_Result]:
        while True:
            with self._changed:
                while self._given not in self._done:
                    if self._ended and self._given == self._drawn:
                        return
                    self._changed.wait(_LATEST_S if self._drawn > self._given else None)
                ready: list[_Did[_Result] | _Failed] = []
                while (result := self._done.pop(self._given + len(ready), None)) is not None:
                    ready.append(result)
            ready.reverse()
            while ready:  # each is let go as it is given
                result = ready.pop()
                self._given += 1  # by this thread alone
                if isinstance(result, _Failed):
                    raise result.error
                yield result.value
            with self._changed:
                self._changed.notify_all()  # somebody may wait for room

    def _draw(self) -> tuple[int, _Item] | None:
        with self._drawing:  # not the lock of the results: who draws may wait for a pipe
            with self._changed:
                while self._drawn - self._given >= self._room and not self._ended:
                    self._changed.wait()
                if self._ended:
                    return None
            try:
                item = next(self._items)
            except StopIteration:
                self.stop()
                return None
            except BaseException as error:
                with self._changed:
                    self._done[self._drawn] = _Failed(error)
                    self._drawn += 1
                self.stop()
                return None
            with self._changed:
                number = self._drawn
                self._drawn += 1
            return number, item

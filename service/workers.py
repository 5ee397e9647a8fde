"""The threads that decode pictures, and encode what is large: work in the order it came, and nothing given back.

Work goes to the next step by itself, or tells the event loop: no future and no wake-up is spent between two steps.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

log = logging.getLogger("saccade.workers")

_Result = TypeVar("_Result")


class Workers:
    def __init__(self, threads: int) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{index}", daemon=True) for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], None]) -> None:
        """Runs `work` in one of the threads; it answers for its own errors."""
        self._queue.put(work)

    async def call(self, work: Callable[[], _Result]) -> _Result:
        """What `work` gives or raises, worked out in one of the threads."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                result = work()
            except BaseException as error:
                loop.call_soon_threadsafe(_fail, future, error)
            else:
                loop.call_soon_threadsafe(_finish, future, result)

        self.submit(run)
        return await future

    def close(self) -> None:
        """Returns when what was submitted before is done."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while work := self._queue.get():
            try:
                work()
            except BaseException:  # a thread must outlive whatever its work raises
                log.exception("work failed")


def _finish(future: "asyncio.Future[_Result]", result: _Result) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[_Result]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)

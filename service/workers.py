"""The threads that decode pictures ahead of a run and make answers behind it, where sessions do not do so themselves.

Work goes to the next step by itself, or tells the event loop: no future and no wake-up is spent between two steps.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger("saccade.workers")


class Workers:
    def __init__(self, threads: int) -> None:
        self._urgent: deque[Callable[[], None]] = deque()
        self._usual: deque[Callable[[], None]] = deque()
        self._tickets: SimpleQueue[bool] = SimpleQueue()  # one for each piece of work
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{index}", daemon=True) for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], None], *, first: bool = False) -> None:
        """Runs `work` in one of the threads, in the order it came; it answers for its own errors.

        `first`: before all that is not, as answers are that wait for nothing else.
        """
        (self._urgent if first else self._usual).append(work)
        self._tickets.put(True)

    def close(self) -> None:
        """Returns when what was submitted before is done."""
        for _ in self._threads:
            self._tickets.put(False)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while self._tickets.get():
            try:
                work = self._urgent.popleft()
            except IndexError:
                work = self._usual.popleft()  # there is one: each ticket is put after its work
            try:
                work()
            except BaseException:  # a thread must outlive whatever its work raises
                log.exception("work failed")
            del work  # the next may be hours away

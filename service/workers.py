"""Threads beside the sessions': some that decode ahead of a run, and one that makes the answers behind it.

Work goes to the next step by itself, or tells the event loop: no future and no wake-up is spent between two steps.
"""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger("saccade.workers")

Work = Callable[[], None]


class Workers:
    """Each queue in the order in which work came. Work answers for its own errors."""

    def __init__(self, decoders: int) -> None:
        """With no decoders there is no thread at all: sessions do everything themselves."""
        self._decoding: SimpleQueue[Work | None] = SimpleQueue()
        self._finishing: SimpleQueue[Work | None] = SimpleQueue()
        threads = [(self._decoding, f"decoder-{index}") for index in range(decoders)]
        if decoders:
            threads.append((self._finishing, "finisher"))
        self._threads = [
            threading.Thread(target=_work, args=(queue,), name=name, daemon=True) for queue, name in threads
        ]
        for thread in self._threads:
            thread.start()

    def decode(self, work: Work) -> None:
        self._decoding.put(work)

    def finish(self, work: Work) -> None:
        """It waits for no decoding. One thread is enough: to write JSON holds the GIL."""
        self._finishing.put(work)

    def close(self) -> None:
        """Returns when what was submitted before is done."""
        for _ in self._threads:
            self._decoding.put(None)
            self._finishing.put(None)
        for thread in self._threads:
            thread.join()


def _work(queue: SimpleQueue[Work | None]) -> None:
    while work := queue.get():
        try:
            work()
        except BaseException:  # a thread must outlive whatever its work raises
            log.exception("work failed")
        del work  # the next may be hours away

"""Notices a caller who left, so that work for nobody is dropped before it costs a run."""

import asyncio
from types import TracebackType

from starlette.requests import ClientDisconnect
from starlette.types import Receive

_FIRST_LOOK_S = 0.01
"""Most answers are ready before, and a timer that is taken back costs a tenth of a task."""


class Presence:
    """Around the work for one request, as a context manager; `watch` is to be called once the body is read.

    From a hundredth of a second later the connection is watched. When it closes, or has closed meanwhile, what runs
    inside is cancelled and ClientDisconnect raised. Not before `watch`: until then the next message of the connection
    is a part of the body, which belongs to its reader.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._left = False

    def watch(self) -> None:
        work = asyncio.current_task()
        assert work is not None
        self._timer = asyncio.get_running_loop().call_later(_FIRST_LOOK_S, self._look, work)

    def _look(self, work: "asyncio.Task[object]") -> None:
        self._watcher = asyncio.create_task(self._wait_for_the_end(work))

    async def _wait_for_the_end(self, work: "asyncio.Task[object]") -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        work.cancel()

    def __enter__(self) -> "Presence":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # its end holds this: with it the request would be a circle, and garbage
        if self._left and isinstance(error, asyncio.CancelledError):
            work = asyncio.current_task()
            assert work is not None
            work.uncancel()
            raise ClientDisconnect from None

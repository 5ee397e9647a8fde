"""Notices a caller who left, so that work for nobody is dropped before it costs a run."""

import asyncio
from types import TracebackType

from starlette.requests import ClientDisconnect
from starlette.types import Receive


class Presence:
    """Around the work for one request, as a context manager; `watch` is to be called once the body is read.

    From then on the connection is watched. When it closes, what runs inside is cancelled and ClientDisconnect raised.
    Not before: until then the next message of the connection is a part of the body, which belongs to its reader.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self._left = False

    def watch(self) -> None:
        work = asyncio.current_task()
        assert work is not None
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
        if self._watcher is not None:
            self._watcher.cancel()
        if self._left and isinstance(error, asyncio.CancelledError):
            work = asyncio.current_task()
            assert work is not None
            work.uncancel()
            raise ClientDisconnect from None

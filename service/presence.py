"""Notices a caller who left, so that work for nobody is dropped before it costs a run."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect


@asynccontextmanager
async def presence(request: Request) -> AsyncIterator[Callable[[], None]]:
    """Around the work for one request; gives a function to call once the body is read.

    From then on the connection is watched. When it closes, what runs inside is cancelled and ClientDisconnect raised.
    Not before: until then the next message of the connection is a part of the body, which belongs to its reader.
    """
    work = asyncio.current_task()
    assert work is not None
    watcher: asyncio.Task[None] | None = None
    left = False

    async def wait_for_the_end() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        work.cancel()

    def watch() -> None:
        nonlocal watcher
        watcher = asyncio.create_task(wait_for_the_end())

    try:
        yield watch
    except asyncio.CancelledError:
        if not left:
            raise
        work.uncancel()
        raise ClientDisconnect from None
    finally:
        if watcher is not None:
            watcher.cancel()

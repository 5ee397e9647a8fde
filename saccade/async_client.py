"""`Client` for asyncio: the same requests, in threads, so that an event loop goes on meanwhile."""

import asyncio
import functools
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from saccade.api import Answer, ModelInfo, ModelList
from saccade.client import Client, Effort, Outcome, check_concurrency
from saccade.errors import SaccadeError
from saccade.picture import Picture

_Result = TypeVar("_Result")


class AsyncClient:
    """As `Client`, with at most `concurrency` requests on their way; who comes later waits for one of them to end.

    In threads, so that files are read beside the event loop too, and there is one client to be right. A task that is
    cancelled closes its connection, and the service drops its work.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout: float = 60.0,
        retries: int = 8,
        longest_wait: float = 60.0,
        tls: ssl.SSLContext | None = None,
        concurrency: int = 16,
    ) -> None:
        """As of `Client`."""
        check_concurrency(concurrency)
        self._client = Client(url, key=key, timeout=timeout, retries=retries, longest_wait=longest_wait, tls=tls)
        self._concurrency = concurrency
        self._threads = ThreadPoolExecutor(concurrency, "saccade-client")

    async def classify(self, picture: Picture, **options: Any) -> Answer:
        """As of `Client`."""
        return await self._classify(self._client.classifying(options), picture)

    async def classify_many(
        self, pictures: Iterable[Picture] | AsyncIterable[Picture], **options: Any
    ) -> AsyncIterator[Outcome]:
        """One outcome a picture, in their order; as many pictures are drawn ahead as `Client.classify_many` draws."""
        classify = self._client.classifying(options)

        async def attempt(picture: Picture) -> Outcome:
            try:
                return Outcome(picture, await self._classify(classify, picture), None)
            except SaccadeError as error:
                return Outcome(picture, None, error)

        line: asyncio.Queue[asyncio.Future[Outcome] | None] = asyncio.Queue()
        room = asyncio.Semaphore(4 * self._concurrency)
        drawing = asyncio.create_task(_draw(pictures, attempt, line, room))
        try:
            while (outcome := await line.get()) is not None:
                yield await outcome
                room.release()
        finally:
            drawing.cancel()
            await asyncio.wait([drawing])
            left = []
            while not line.empty():
                if (outcome := line.get_nowait()) is not None:
                    outcome.cancel()
                    left.append(outcome)
            await asyncio.gather(*left, return_exceptions=True)  # each closes its connection

    async def models(self) -> ModelList:
        """As of `Client`."""
        return await self._in_a_thread(self._client.models)

    async def model(self, name: str) -> ModelInfo:
        """As of `Client`."""
        return await self._in_a_thread(functools.partial(self._client.model, name))

    async def close(self) -> None:
        """Waits for the requests that are on their way."""
        await asyncio.to_thread(self._threads.shutdown)
        self._client.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _classify(self, classify: Callable[[Picture, Effort], Answer], picture: Picture) -> Answer:
        effort = Effort()
        try:
            return await self._in_a_thread(functools.partial(classify, picture, effort))
        except asyncio.CancelledError:
            effort.give_up()
            raise

    async def _in_a_thread(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


async def _draw(
    pictures: Iterable[Picture] | AsyncIterable[Picture],
    attempt: Callable[[Picture], Coroutine[Any, Any, Outcome]],
    line: "asyncio.Queue[asyncio.Future[Outcome] | None]",
    room: asyncio.Semaphore,
) -> None:
    """Puts a task for each picture into the line, and None at its end; an error of the source stands in its place."""
    try:
        if isinstance(pictures, AsyncIterable):
            async for picture in pictures:
                await room.acquire()
                line.put_nowait(asyncio.create_task(attempt(picture)))
        else:
            for picture in pictures:
                await room.acquire()
                line.put_nowait(asyncio.create_task(attempt(picture)))
                await asyncio.sleep(0)  # a long list must not keep the event loop from the answers
    except asyncio.CancelledError:  # by whoever takes the outcomes, or by the source itself
        ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        ended.cancel()
        line.put_nowait(ended)
    except Exception as error:
        failed: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        failed.set_exception(error)
        line.put_nowait(failed)
    finally:
        line.put_nowait(None)
        if hasattr(pictures, "aclose"):
            await pictures.aclose()

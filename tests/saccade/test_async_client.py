"""`AsyncClient` is `Client` for an event loop: the same answers, the same refusals, and cancelling means it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade import AsyncClient, Client
from saccade.client import Outcome
from saccade.errors import DataError, InvalidImage, InvalidParameter, Overloaded, UnknownModel, Unreachable
from saccade.picture import Picture
from tests.conftest import Server
from tests.saccade.stub import HANG, Stub, good, refusal
from tests.saccade.test_client import numbered

Run = Callable[[Callable[[AsyncClient], Coroutine[Any, Any, Any]]], Any]


@pytest.fixture
def run(server: Server) -> Run:
    """A function: what a client of the real server is asked, as a coroutine -> what it gave."""

    def runs(work: Callable[[AsyncClient], Coroutine[Any, Any, Any]]) -> Any:
        async def main() -> Any:
            async with AsyncClient(server.url, concurrency=4) as client:
                return await work(client)

        return asyncio.run(main())

    return runs


def test_an_answer_is_the_one_that_client_gets(run: Run, server: Server, tmp_path: Path) -> None:
    """Of a path, an array, a PIL image; with its map to be drawn."""
    pixels = np.random.default_rng(5).integers(0, 256, (20, 30, 3), np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    with Client(server.url) as client:
        expected = client.classify(path, decimals=9)
    for picture in (path, pixels, Image.fromarray(pixels)):
        answer = run(lambda client, picture=picture: client.classify(picture, decimals=9))
        assert (answer.labels, answer.maps, answer.geometry) == (expected.labels, expected.maps, expected.geometry)
        assert np.array_equal(np.asarray(answer.overlay()), np.asarray(expected.overlay()))


def test_a_refusal_comes_as_its_class(run: Run) -> None:
    for options, kind in (({"model": "absent"}, UnknownModel), ({"top_k": 0}, InvalidParameter)):
        with pytest.raises(kind):
            run(lambda client, options=options: client.classify(numbered(1)[0], **options))
    with pytest.raises(InvalidImage):
        run(lambda client: client.classify(b"text"))
    with pytest.raises(InvalidParameter, match="concurrency"):
        AsyncClient(concurrency=0)


def test_the_models_and_their_cards_are_read(run: Run) -> None:
    assert {model.name for model in run(lambda client: client.models()).models} >= {"tiny-vit"}
    assert run(lambda client: client.model("tiny-vit")).manifest.name == "tiny-vit"


@pytest.mark.parametrize("kind", ["list", "iterator", "asynchronous"])
def test_many_pictures_are_answered_in_their_order(run: Run, kind: str) -> None:
    """From a list, a generator, or an asynchronous one; the damaged ones with their error in their place."""
    pictures: list[Picture] = [*numbered(30)]
    pictures[7], pictures[23] = b"no picture", "/no/such/file.png"

    async def stream() -> AsyncIterator[Picture]:
        for picture in pictures:
            yield picture

    async def work(client: AsyncClient) -> list[Outcome]:
        source = {"list": pictures, "iterator": iter(pictures), "asynchronous": stream()}[kind]
        return [outcome async for outcome in client.classify_many(source, top_k=1)]

    outcomes = run(work)
    assert [outcome.picture for outcome in outcomes] == pictures
    assert {number: type(one.error) for number, one in enumerate(outcomes) if one.error} == {
        7: InvalidImage,
        23: DataError,
    }


def test_a_long_list_is_drawn_as_answers_are_taken(run: Run) -> None:
    """And not at once: memory stays what it is with four requests on their way."""
    drawn = taken = most = 0

    def pictures() -> Iterator[Picture]:
        nonlocal drawn, most
        for picture in numbered(150):
            drawn += 1
            most = max(most, drawn - taken)
            yield picture

    async def work(client: AsyncClient) -> None:
        nonlocal taken
        async for outcome in client.classify_many(pictures()):
            assert outcome.answer is not None
            taken += 1

    run(work)
    assert taken == 150
    assert most <= 4 * 4 + 2


def test_a_stream_that_waits_holds_nobody_up(run: Run) -> None:
    """The first answer is there while the second picture is still to come."""

    async def work(client: AsyncClient) -> None:
        first_is_there = asyncio.Event()

        async def pictures() -> AsyncIterator[Picture]:
            yield numbered(1)[0]
            await first_is_there.wait()
            yield numbered(1)[0]

        seen = 0
        async for _ in client.classify_many(pictures()):
            first_is_there.set()
            seen += 1
        assert seen == 2

    run(work)


def test_an_error_of_the_stream_is_raised_in_its_place(run: Run) -> None:
    async def pictures() -> AsyncIterator[Picture]:
        for picture in numbered(3):
            yield picture
        raise OSError("the camera is gone")

    seen = 0

    async def work(client: AsyncClient) -> None:
        nonlocal seen
        async for _ in client.classify_many(pictures()):
            seen += 1

    with pytest.raises(OSError, match="the camera is gone"):
        run(work)
    assert seen == 3


def test_busy_is_tried_again_here_too() -> None:
    async def main(url: str, retries: int) -> None:
        async with AsyncClient(url, retries=retries) as client:
            await client.classify(b"picture")

    with Stub(refusal(429, "overloaded", "retry-after: 0"), good()) as stub:
        asyncio.run(main(stub.url, 1))
        assert len(stub.requests) == 2
    with Stub(refusal(429, "overloaded")) as stub, pytest.raises(Overloaded):
        asyncio.run(main(stub.url, 0))


def test_a_task_that_is_cancelled_closes_its_connection() -> None:
    """The service sees that nobody waits any more; the client can be used further, and closes at once."""

    async def main(stub: Stub) -> None:
        async with AsyncClient(stub.url, concurrency=1) as client:
            await client.classify(b"one")
            hanging = asyncio.create_task(client.classify(b"two"))
            assert await asyncio.to_thread(stub.hanging.wait, 60)
            hanging.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hanging
            assert (await client.classify(b"three")).labels[0].label == "cat"

    with Stub(good(), HANG, good()) as stub:
        asyncio.run(main(stub))
        assert [request.body for request in stub.requests] == [b"one", b"two", b"three"]


def test_who_stops_early_leaves_nothing_running() -> None:
    """Not even where the service hangs: every connection is closed, every task has ended, and so has closing."""

    async def main(stub: Stub) -> None:
        async with AsyncClient(stub.url, concurrency=3) as client:
            outcomes = client.classify_many([b"%d" % number for number in range(1000)])
            assert (await anext(outcomes)).answer is not None
            await outcomes.aclose()  # type: ignore[attr-defined]
            assert asyncio.all_tasks() == {asyncio.current_task()}
        assert await asyncio.to_thread(stub.all_left)

    with Stub(lambda request: good() if request.body == b"0" else HANG) as stub:
        asyncio.run(main(stub))
        assert len(stub.requests) <= 1 + 4 * 3 + 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("saccade-client_")]


def test_a_stream_that_is_cancelled_ends_the_outcomes(run: Run) -> None:
    """What the source raises arrives, that too."""

    async def pictures() -> AsyncIterator[Picture]:
        yield numbered(1)[0]
        raise asyncio.CancelledError

    async def work(client: AsyncClient) -> None:
        outcomes = client.classify_many(pictures())
        assert (await anext(outcomes)).answer is not None
        with pytest.raises(asyncio.CancelledError):
            await anext(outcomes)

    run(work)


def test_a_call_that_is_not_answered_can_be_cancelled(full: str) -> None:
    """While it connects: closing does not wait for the connection's time."""

    async def main() -> None:
        async with AsyncClient(full) as client:
            task = asyncio.create_task(client.classify(b"picture"))
            while not [thread for thread in threading.enumerate() if thread.name.startswith("saccade-client_")]:
                await asyncio.to_thread(lambda: None)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_wrong_address_is_told_at_once() -> None:
    async def main() -> None:
        async with AsyncClient("http://127.0.0.1:9") as client:
            await client.models()

    with pytest.raises(Unreachable, match="does not answer"):
        asyncio.run(main())

"""Nothing of a request waits for the garbage collector, which would come ever more often under load."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from saccade.bundle import open_bundle
from tests.service.reference import PATIENCE, PNG, Gated, put_runner

CLASSIFY = "/v1/classify"


class Caller:
    """As a server's, which knows what was asked: the body comes at once, and nothing more until the caller leaves."""

    def __init__(self, path: str, query: str = "") -> None:
        self.heard: list[str] = []
        self.watched, self.leaves = asyncio.Event(), asyncio.Event()
        self.scope = {
            "type": "http",
            "method": "POST" if path == CLASSIFY else "GET",
            "path": path,
            "query_string": query.encode(),
            "headers": [(b"x-request-id", b"1")],
        }
        self._sent = False

    async def receive(self) -> Message:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": PNG, "more_body": False}
        self.watched.set()
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.heard.append(message["type"])


def when_let_go(caller: Caller) -> threading.Event:
    """Set then; a thread that answered may be about to let go of it."""
    gone = threading.Event()
    weakref.finalize(caller, gone.set)
    return gone


@pytest.fixture
def _uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def run(client: TestClient, scene: Callable[[Any], Any]) -> Any:
    """On the service's event loop, with its application."""
    assert client.portal is not None
    return client.portal.call(scene, client.app)


@pytest.mark.usefixtures("_uncollected")
@pytest.mark.parametrize(
    "path", [CLASSIFY, "/v2/health/live", "/v1/models/tiny-cct", "/nowhere", "/v1/classify?top_k=0"]
)
def test_a_request_is_let_go_once_it_is_answered(service: TestClient, path: str) -> None:
    """Or refused."""

    async def scene(app: Any) -> threading.Event:
        path_alone, _, query = path.partition("?")
        caller = Caller(path_alone, query)
        await app(caller.scope, caller.receive, caller.send)
        assert caller.heard == ["http.response.start", "http.response.body"]
        return when_let_go(caller)

    assert run(service, scene).wait(PATIENCE)


@pytest.mark.usefixtures("_uncollected")
@pytest.mark.parametrize("leaves", [False, True])
def test_a_request_that_takes_long_is_let_go_once_it_is_answered_or_its_caller_left(
    serve: Callable[..., TestClient], models: Path, leaves: bool
) -> None:
    """Meanwhile the connection is watched."""
    client, runner = serve(), Gated(open_bundle(models / "tiny-cct" / "1"))
    app: Any = client.app
    put_runner(app.state.service, runner)

    async def scene(app: Any) -> threading.Event:
        caller = Caller(CLASSIFY)
        answering = asyncio.create_task(app(caller.scope, caller.receive, caller.send))
        await caller.watched.wait()
        (caller.leaves if leaves else runner.go_on).set()
        await answering
        assert caller.heard == ([] if leaves else ["http.response.start", "http.response.body"])
        return when_let_go(caller)

    try:
        gone = run(client, scene)
    finally:
        runner.go_on.set()
    assert gone.wait(PATIENCE)

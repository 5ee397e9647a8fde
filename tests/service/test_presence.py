"""Callers who leave, on real connections to uvicorn in a thread, with a runner that waits."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import uvicorn

from saccade.bundle import open_bundle
from service.app import Service, create_app_for
from service.batcher import Batcher
from service.settings import Settings
from tests.service.reference import PNG, Gated

HEAD = f"POST /v1/classify HTTP/1.1\r\nHost: here\r\nContent-Length: {len(PNG)}\r\n\r\n".encode()


class Scene:
    """A service on a real socket, whose one runner begins and then waits for `runner.go_on`."""

    def __init__(self, models: Path) -> None:
        self.service = Service(Settings(models=models, default_model="tiny-cct"))
        self.runner = Gated(open_bundle(models / "tiny-cct" / "1"))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.loaded = threading.Event()
        config = uvicorn.Config(create_app_for(self.service), lifespan="off", log_config=None, access_log=False)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()))
        self.thread.start()
        assert self.loaded.wait(60)

    async def run(self) -> None:
        await self.service.load()
        classifier = self.service.registry().get("tiny-cct")
        classifier.batcher.close()
        dropped = self.service.metrics.dropped(classifier.manifest)
        self.batcher = classifier.batcher = Batcher([self.runner], max_batch=1, capacity=8, on_drop=dropped)
        self.loaded.set()
        await self.server.serve(sockets=[self.listener])
        self.service.close()

    def waiting(self) -> int:
        """Images accepted and not yet answered, as /metrics says: each look is a turn of the service's loop."""
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            if line.startswith('saccade_queue_images{model="tiny-cct@1"}'):
                return self.batcher.admitted
        raise AssertionError("no such metric")

    def until_waiting(self, count: int) -> None:
        for _ in range(2000):
            if self.waiting() == count:
                return
        raise AssertionError(f"{self.waiting()} images are waiting, not {count}")

    def stop(self) -> None:
        self.runner.go_on.set()
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def scene(models: Path) -> Iterator[Scene]:
    it = Scene(models)
    yield it
    it.stop()


def test_work_of_a_caller_who_left_costs_no_run_and_is_counted(scene: Scene) -> None:
    """A caller who gives up does not slow down those who wait."""
    with ThreadPoolExecutor(1) as threads:
        stays = threads.submit(httpx.post, f"{scene.url}/v1/classify", content=PNG, timeout=60)
        assert scene.runner.began.acquire(timeout=30)
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", scene.port)) as leaves:
                leaves.sendall(HEAD + PNG)
                scene.until_waiting(2)
            scene.until_waiting(1)
        scene.runner.go_on.set()
        assert stays.result().status_code == 200
    assert httpx.post(f"{scene.url}/v1/classify", content=PNG).status_code == 200
    assert scene.runner.sizes == [1, 1]
    assert 'saccade_dropped_images_total{model="tiny-cct@1"} 3.0' in httpx.get(f"{scene.url}/metrics").text


def test_a_caller_who_leaves_in_the_middle_of_the_body_gives_its_place_back(scene: Scene) -> None:
    """A broken upload holds nothing."""
    with socket.create_connection(("127.0.0.1", scene.port)) as leaves:
        leaves.sendall(HEAD + PNG[:20])
        scene.until_waiting(1)
    scene.until_waiting(0)
    assert scene.runner.sizes == []


def test_a_place_is_taken_before_the_body_is_read(scene: Scene) -> None:
    """What is not admitted costs no memory: the ninth upload is refused although none has arrived yet."""
    uploads = [socket.create_connection(("127.0.0.1", scene.port)) for _ in range(8)]
    for upload in uploads:
        upload.sendall(HEAD)
    scene.until_waiting(8)
    with socket.create_connection(("127.0.0.1", scene.port)) as ninth:
        ninth.sendall(HEAD)
        assert ninth.recv(100).startswith(b"HTTP/1.1 429 ")
    for upload in uploads:
        upload.close()
    scene.until_waiting(0)

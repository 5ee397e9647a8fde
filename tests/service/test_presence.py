"""Callers who leave, on real connections, with a runner that waits."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from saccade.bundle import open_bundle
from tests.service.reference import PNG, Gated, Scene

HEAD = f"POST /v1/classify HTTP/1.1\r\nHost: here\r\nContent-Length: {len(PNG)}\r\n\r\n".encode()


@pytest.fixture
def runner(models: Path) -> Gated:
    """Each of its runs begins and then waits for `go_on`."""
    return Gated(open_bundle(models / "tiny-cct" / "1"))


@pytest.fixture
def scene(models: Path, runner: Gated) -> Iterator[Scene]:
    it = Scene(models, runner, max_batch=1, queue_images=8)
    yield it
    runner.go_on.set()
    it.stop()


def test_work_of_a_caller_who_left_costs_no_run_and_is_counted(scene: Scene, runner: Gated) -> None:
    """A caller who gives up does not slow down those who wait."""
    with ThreadPoolExecutor(1) as threads:
        stays = threads.submit(scene.post)
        assert runner.began.acquire(timeout=30)
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", scene.port)) as leaves:
                leaves.sendall(HEAD + PNG)
                scene.until("saccade_admitted_images", 2)
            scene.until("saccade_admitted_images", 1)
        runner.go_on.set()
        assert stays.result().status_code == 200
    assert scene.post().status_code == 200
    assert runner.sizes == [1, 1]
    assert scene.metric("saccade_dropped_images_total", reason="left") == 3
    assert scene.metric("saccade_dropped_images_total", reason="late") == 0


def test_a_caller_who_leaves_in_the_middle_of_the_body_gives_its_place_back(scene: Scene, runner: Gated) -> None:
    """A broken upload holds nothing."""
    with socket.create_connection(("127.0.0.1", scene.port)) as leaves:
        leaves.sendall(HEAD + PNG[:20])
        scene.until("saccade_admitted_images", 1)
    scene.until("saccade_admitted_images", 0)
    assert runner.sizes == []


def test_a_place_is_taken_before_the_body_is_read(scene: Scene) -> None:
    """What is not admitted costs no memory: the ninth upload is refused although none has arrived yet."""
    uploads = [socket.create_connection(("127.0.0.1", scene.port)) for _ in range(8)]
    for upload in uploads:
        upload.sendall(HEAD)
    scene.until("saccade_admitted_images", 8)
    with socket.create_connection(("127.0.0.1", scene.port)) as ninth:
        ninth.sendall(HEAD)
        assert ninth.recv(100).startswith(b"HTTP/1.1 429 ")
    for upload in uploads:
        upload.close()
    scene.until("saccade_admitted_images", 0)


def test_at_capacity_a_refusal_is_answered_while_the_engine_is_blocked(scene: Scene, runner: Gated) -> None:
    """429 waits for nobody: each of many comes back although not one of the accepted can; those are answered later."""
    with ThreadPoolExecutor(8) as threads:
        accepted = [threads.submit(scene.post) for _ in range(8)]
        scene.until("saccade_admitted_images", 8)
        for _ in range(20):
            response = scene.post()
            assert (response.status_code, response.json()["code"]) == (429, "overloaded")
            assert 1 <= int(response.headers["retry-after"]) <= 60
        assert runner.sizes == []
        assert not any(one.done() for one in accepted)
        runner.go_on.set()
        assert [one.result().status_code for one in accepted] == [200] * 8


@pytest.mark.parametrize("reads", [True, False])
def test_an_answer_keeps_its_place_until_it_is_read_or_its_caller_leaves(
    scene: Scene, runner: Gated, reads: bool
) -> None:
    """Callers who do not read can make the service hold as many large answers as it admits images, and no more."""
    runner.go_on.set()
    scene.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # its connections inherit it
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", scene.port))
        everything = b"classify?attention=all&heads=all&decimals=9"
        slow.sendall(HEAD.replace(b"classify", everything).replace(b"Host", b"Connection: close\r\nHost") + PNG)
        scene.until("saccade_images_total", 1)
        for _ in range(20):
            assert scene.metric("saccade_admitted_images") == 1
        if reads:
            with slow.makefile("rb") as stream:
                assert stream.read().endswith(b"}")
    scene.until("saccade_admitted_images", 0)

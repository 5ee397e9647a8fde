"""A run that never ends: what callers, probes and the end of the process see of it, on real connections."""

import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from saccade.bundle import open_bundle
from service.batcher import Runner
from tests.conftest import Server
from tests.service.reference import BLACK, PNG, Gated, Real, Scene, hanging_bundle

SHORT = 0.25
HEALTH = ("/v2/health/ready", "/v2/health/live")

Start = Callable[..., tuple[Scene, list[Gated]]]


@pytest.fixture
def start(models: Path) -> Iterator[Start]:
    """A function: (how many hanging runners, replace, plan) -> a scene on them, and the runners."""
    scenes: list[Scene] = []
    hanging: list[Gated] = []

    def make(count: int = 1, replace: Callable[[Runner], Runner] | None = None, **plan: Any) -> Any:
        runners = [Gated(open_bundle(models / "tiny-cct" / "1")) for _ in range(count)]
        hanging.extend(runners)
        scenes.append(Scene(models, *runners, replace=replace, run_timeout_s=SHORT, **plan))
        return scenes[-1], runners

    yield make
    for runner in hanging:
        runner.go_on.set()
    for scene in scenes:
        scene.stop()


def told(response: httpx.Response, status: int, code: str, words: str) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert words in response.json()["error"]


def test_callers_of_a_run_that_hangs_get_a_500_and_the_next_are_answered_by_a_new_session(
    models: Path, start: Start
) -> None:
    """Each member of the batch is told after how many seconds it was given up; the service goes on, healthy."""
    works = Real(open_bundle(models / "tiny-cct" / "1"))
    scene, (hangs,) = start(replace=lambda _: works, max_batch=3, max_wait_ms=60_000)
    with ThreadPoolExecutor(3) as threads:
        members = [threads.submit(scene.post) for _ in range(3)]
        for member in members:
            told(member.result(), 500, "inference_failed", f"a run of 3 took longer than {SHORT} s")
        assert scene.metric("saccade_hung_runs_total") == 1
        hangs.go_on.set()  # what comes back now has no caller any more
        answers = [threads.submit(scene.post) for _ in range(3)]
        for answer in answers:
            assert answer.result().status_code == 200
            assert answer.result().json()["timing"]["batch_size"] == 3
    assert works.sizes == [3]
    assert [scene.get(path).status_code for path in HEALTH] == [200, 200]
    assert scene.metric("saccade_images_total") == 3
    assert scene.metric("saccade_batch_images_count", graph="model") == 1
    assert scene.metric("saccade_admitted_images") == 0


def test_while_a_run_hangs_nobody_else_is_held_up(start: Start) -> None:
    """Probes, metrics, the list of models, and the other models: each is answered while the run still hangs."""
    scene, (hangs,) = start()
    with ThreadPoolExecutor(1) as threads:
        member = threads.submit(scene.post)
        assert hangs.began.acquire(timeout=30)
        for path in (*HEALTH, "/metrics", "/v1/models", "/v1/models/tiny-cct"):
            assert scene.get(path).status_code in (200, 503)  # 503 once it has been given up
        assert scene.post(model="tiny-resnet").status_code == 200
        told(member.result(), 500, "inference_failed", f"{SHORT} s")
        assert scene.post(model="tiny-resnet").status_code == 200


def test_without_a_session_that_works_callers_and_probes_are_told_at_once(start: Start) -> None:
    """500 for who asks, 503 with the model's name for readiness and liveness: the orchestrator restarts the process."""
    scene, (hangs,) = start()
    assert [scene.get(path).status_code for path in HEALTH] == [200, 200]
    told(scene.post(), 500, "inference_failed", f"{SHORT} s")
    for _ in range(3):
        told(scene.post(), 500, "inference_failed", "no session is left that works")
    for path in HEALTH:
        told(scene.get(path), 503, "not_ready", "tiny-cct@1")
    assert not hangs.go_on.is_set()
    assert scene.metric("saccade_hung_runs_total") == 1
    assert scene.post(model="tiny-resnet").status_code == 200


def test_the_fourth_run_that_hangs_is_the_last(models: Path, start: Start) -> None:
    """Three new sessions are tried; then liveness fails, and no further one is opened."""
    opened: list[Gated] = []

    def replace(_: Runner) -> Runner:
        opened.append(Gated(open_bundle(models / "tiny-cct" / "1")))
        return opened[-1]

    scene, _ = start(replace=replace)
    for _ in range(4):
        told(scene.post(), 500, "inference_failed", f"a run of 1 took longer than {SHORT} s")
    told(scene.post(), 500, "inference_failed", "no session is left that works")
    for path in HEALTH:
        told(scene.get(path), 503, "not_ready", "tiny-cct@1")
    assert len(opened) == 3
    assert scene.metric("saccade_hung_runs_total") == 4
    for runner in opened:
        runner.go_on.set()


def test_of_two_sessions_one_that_hangs_leaves_the_other_serving(start: Start) -> None:
    """The service stays ready on the half that works."""
    scene, (hangs, works) = start(2, max_batch=1)
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(scene.post) for _ in range(2)]
        assert hangs.began.acquire(timeout=30)
        assert works.began.acquire(timeout=30)
        works.go_on.set()
        assert sorted(one.result().status_code for one in both) == [200, 500]
        for _ in range(5):
            assert scene.post().status_code == 200
    assert [scene.get(path).status_code for path in HEALTH] == [200, 200]
    assert scene.metric("saccade_hung_runs_total") == 1


# --- real processes on a real engine that hangs

UNHEARING = """
import sys
from service import __main__
from service.session import OnnxRunner
OnnxRunner.stop = lambda self: print('deaf', file=sys.stderr, flush=True)  # an engine whose run cannot be ended
sys.exit(__main__.main())
"""


def value(server: Server, name: str) -> float:
    found = re.search(rf"^{name}{{.*}} (\S+)$", httpx.get(f"{server.url}/metrics").text, flags=re.M)
    assert found
    return float(found[1])


def post(server: Server, body: bytes) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/classify", content=body, timeout=60)


def test_a_picture_on_which_the_engine_hangs_costs_its_caller_a_500_and_nobody_else_anything(
    models: Path, tmp_path: Path
) -> None:
    """A real graph that loops for ever: its run is ended and its thread goes, the new session serves."""
    hanging_bundle(models, tmp_path)
    with Server(models=tmp_path, port=0, drain_grace_s=0, run_timeout_s=1, intra_op_threads=1) as server:
        tasks = Path(f"/proc/{server.process.pid}/task")
        assert post(server, PNG).status_code == 200
        before = len(list(tasks.iterdir()))
        told(post(server, BLACK), 500, "inference_failed", "a run of 1 took longer than 1 s")
        assert post(server, PNG).status_code == 200
        assert value(server, "saccade_hung_runs_total") == 1
        for path in HEALTH:
            assert httpx.get(f"{server.url}{path}").status_code == 200
        for _ in range(1000):
            if len(list(tasks.iterdir())) == before:
                break
            httpx.get(f"{server.url}/v2/health/live")
        assert len(list(tasks.iterdir())) == before
        assert server.stop() == 0


@pytest.mark.parametrize("when", ["while it hangs", "after it was given up"])
def test_a_process_whose_engine_hangs_for_ever_still_ends_with_0(models: Path, tmp_path: Path, when: str) -> None:
    """Not even a run that nothing can end keeps it alive: the thread that is in it is left behind."""
    hanging_bundle(models, tmp_path)
    with (
        Server(UNHEARING, models=tmp_path, port=0, drain_grace_s=0, run_timeout_s=1) as server,
        ThreadPoolExecutor(1) as threads,
    ):
        member = threads.submit(post, server, BLACK)
        if when == "while it hangs":
            while not value(server, "saccade_admitted_images"):
                assert not member.done()
            server.process.send_signal(signal.SIGTERM)
        told(member.result(), 500, "inference_failed", "a run of 1 took longer than 1 s")
        if when != "while it hangs":
            assert post(server, PNG).status_code == 200  # by the session in its place
        assert server.stop() == 0

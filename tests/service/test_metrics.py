"""What Prometheus reads."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from saccade.bundle import open_bundle
from service.metrics import Histogram
from tests.conftest import NETS
from tests.service.reference import PNG, Gated, Scene, ask

Start = Callable[..., TestClient]
STEPS_TOLD = ("decode", "queue", "run")


def samples(client: TestClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(client: TestClient, name: str, **labels: str) -> float:
    return samples(client).get((name, frozenset(labels.items())), 0.0)


def test_every_metric_has_the_prefix(service: TestClient) -> None:
    """They do not mix with those of other programs."""
    ask(service)
    names = {name for name, _ in samples(service)}
    assert names
    assert all(name.startswith("saccade_") for name in names)


def test_requests_are_counted_by_route_and_status(serve: Start) -> None:
    """By the route's pattern, so that paths of strangers make no new series."""
    client = serve()
    for _ in range(3):
        ask(client)
    client.post("/v1/classify", content=b"")
    client.get("/v1/models/tiny-cct")
    client.get("/v1/models/nobody")
    client.get("/somewhere")
    client.get("/elsewhere")
    assert value(client, "saccade_requests_total", route="/v1/classify", status="200") == 3
    assert value(client, "saccade_requests_total", route="/v1/classify", status="400") == 1
    assert value(client, "saccade_requests_total", route="/v1/models/{name}", status="200") == 1
    assert value(client, "saccade_requests_total", route="/v1/models/{name}", status="404") == 1
    assert value(client, "saccade_requests_total", route="other", status="404") == 2


def test_refusals_are_counted_by_code(serve: Start) -> None:
    """Each refusal once, under the code that the caller saw."""
    client = serve()
    codes = [
        client.post("/v1/classify", content=b"").json()["code"],
        client.post("/v1/classify?top_k=0", content=PNG).json()["code"],
        client.post("/v1/classify?top_k=0", content=PNG).json()["code"],
        client.get("/nowhere").json()["code"],
        client.put("/v1/classify").json()["code"],
    ]
    for code in set(codes):
        assert value(client, "saccade_refusals_total", code=code) == codes.count(code)


def test_images_batches_and_steps_are_counted_a_model(serve: Start) -> None:
    """How many pictures, in what batches, and where their time went."""
    client = serve()
    for _ in range(4):
        ask(client)
    ask(client, model="tiny-vit")
    assert value(client, "saccade_images_total", model="tiny-cct@1") == 4
    assert value(client, "saccade_images_total", model="tiny-vit@1") == 1
    assert value(client, "saccade_batch_images_count", model="tiny-cct@1", graph="model") == 4
    assert value(client, "saccade_batch_images_sum", model="tiny-cct@1", graph="model") == 4
    steps = {dict(labels)["step"] for name, labels in samples(client) if name == "saccade_step_seconds_count"}
    assert steps == {"receive", "decode", "queue", "run", "encode"}
    for step in steps:
        assert value(client, "saccade_step_seconds_count", model="tiny-cct@1", step=step) == 4
        assert value(client, "saccade_step_seconds_count", model="tiny-vit@1", step=step) == 1
    assert value(client, "saccade_run_seconds_count", model="tiny-cct@1", graph="model") == 4


def test_the_times_of_the_steps_are_those_of_the_answers(serve: Start) -> None:
    """What the metrics add up is what each caller was told, and no step takes longer than the whole."""
    client = serve()
    told = [ask(client)["timing"] for _ in range(5)]
    for step in ("decode", "queue", "run"):
        seconds = sum(timing[f"{step}_ms"] for timing in told) / 1000
        seen = value(client, "saccade_step_seconds_sum", model="tiny-cct@1", step=step)
        assert seen == pytest.approx(seconds, abs=5 * 0.5e-6 + 1e-9)
    whole = sum(timing["total_ms"] for timing in told) / 1000
    parts = [
        value(client, "saccade_step_seconds_sum", model="tiny-cct@1", step=step) for step in ("receive", *STEPS_TOLD)
    ]
    assert sum(parts) <= whole + 1e-5


def test_what_could_happen_shows_as_zero_before_it_does(serve: Start) -> None:
    """An alert on the first drop or the first hung run needs a series to compare with."""
    client = serve()
    seen = samples(client)
    for model in [f"{name}@1" for name in NETS]:
        for name, labels in [
            ("saccade_images_total", {}),
            ("saccade_admitted_images", {}),
            ("saccade_queue_images", {}),
            ("saccade_queue_age_seconds", {}),
            ("saccade_hung_runs_total", {}),
            ("saccade_batch_images_count", {"graph": "model"}),
            ("saccade_run_seconds_count", {"graph": "model"}),
            ("saccade_dropped_images_total", {"reason": "left"}),
            ("saccade_dropped_images_total", {"reason": "late"}),
        ]:
            assert seen[name, frozenset({"model": model, **labels}.items())] == 0, name


def test_the_queue_shows_how_many_wait_and_for_how_long(models: Path) -> None:
    """Length and age are those of the moment in which one looks; batches are counted a run, with their sizes."""
    runner = Gated(open_bundle(models / "tiny-cct" / "1"))
    scene = Scene(models, runner, max_batch=4)
    try:
        with ThreadPoolExecutor(8) as threads:
            assert (scene.metric("saccade_queue_images"), scene.metric("saccade_queue_age_seconds")) == (0, 0)
            asked = [threads.submit(scene.post)]
            assert runner.began.acquire(timeout=30)
            assert scene.metric("saccade_admitted_images") == 1
            assert (scene.metric("saccade_queue_images"), scene.metric("saccade_queue_age_seconds")) == (0, 0)
            asked += [threads.submit(scene.post) for _ in range(7)]
            scene.until("saccade_queue_images", 7)
            assert scene.metric("saccade_admitted_images") == 8
            age = scene.metric("saccade_queue_age_seconds")
            assert age > 0
            assert scene.metric("saccade_queue_age_seconds") > age
            assert scene.metric("saccade_batch_images_count", graph="model") == 0
            runner.go_on.set()
            assert {one.result().status_code for one in asked} == {200}
        assert runner.sizes == [1, 4, 3]
        assert scene.metric("saccade_admitted_images") == 0
        assert (scene.metric("saccade_queue_images"), scene.metric("saccade_queue_age_seconds")) == (0, 0)
        assert (
            scene.metric("saccade_batch_images_count", graph="model")
            == scene.metric("saccade_run_seconds_count", graph="model")
            == 3
        )
        assert scene.metric("saccade_batch_images_sum", graph="model") == scene.metric("saccade_images_total") == 8
        for bound, runs in (("1.0", 1), ("2.0", 1), ("4.0", 3), ("8.0", 3)):
            assert scene.metric("saccade_batch_images_bucket", graph="model", le=bound) == runs
    finally:
        runner.go_on.set()
        scene.stop()


def test_refusals_of_a_busy_engine_are_counted_by_their_reason(models: Path) -> None:
    """Who came when all places were taken, whose deadline passed, who left: three causes, three numbers."""
    runner = Gated(open_bundle(models / "tiny-cct" / "1"))
    scene = Scene(models, runner, max_batch=1, queue_images=3)
    try:
        with ThreadPoolExecutor(3) as threads:
            accepted = threads.submit(scene.post)
            assert runner.began.acquire(timeout=30)
            late = threads.submit(scene.post, timeout_ms=1500)
            scene.until("saccade_queue_images", 1)
            leaves = httpx.Client(base_url=scene.url)
            with pytest.raises(httpx.ReadTimeout):
                leaves.post("/v1/classify", content=PNG, timeout=httpx.Timeout(30, read=0.1))
            leaves.close()
            assert late.result().json()["code"] == "deadline_exceeded"
            scene.until("saccade_admitted_images", 1)
            others = [threads.submit(scene.post) for _ in range(2)]
            scene.until("saccade_admitted_images", 3)
            for _ in range(4):
                assert scene.post().json()["code"] == "overloaded"
            runner.go_on.set()
            assert [one.result().status_code for one in (accepted, *others)] == [200] * 3
        assert scene.metric("saccade_dropped_images_total", reason="late") == 1
        assert scene.metric("saccade_dropped_images_total", reason="left") == 1
        text = scene.get("/metrics").text
        assert 'saccade_refusals_total{code="overloaded"} 4.0' in text
        assert 'saccade_refusals_total{code="deadline_exceeded"} 1.0' in text
        assert runner.sizes == [1, 1, 1]
    finally:
        runner.go_on.set()
        scene.stop()


def test_the_plan_of_each_model_is_among_the_metrics(serve: Start) -> None:
    """A dashboard shows on what a model runs, in the words of its page."""
    client = serve(instances=2, intra_op_threads=3, max_batch=5, max_wait_ms=1.5, queue_images=77, run_timeout_s=9)
    seen = {
        labels["model"]: labels
        for labels in (dict(labels) for name, labels in samples(client) if name == "saccade_model_info")
    }
    assert set(seen) == {f"{name}@1" for name in NETS}
    for model, labels in seen.items():
        plan = client.get(f"/v1/models/{model}").json()["plan"]
        assert set(labels) == {"model", *plan}
        for name, expected in {
            "provider": "CPUExecutionProvider", "cpu_affinity": str(len(os.sched_getaffinity(0))), "instances": "2",
            "intra_op_threads": "3", "spinning": "False", "max_batch": "5", "max_wait_ms": "1.5",
            "queue_images": "77", "run_timeout_s": "9.0",
        }.items():  # fmt: skip
            assert labels[name] == expected
            assert plan[name] == (json.loads(expected.lower()) if name != "provider" else expected)


def test_a_histogram_is_that_of_the_client_library() -> None:
    """Bounds included, whole numbers among them: what dashboards know of Prometheus's own histograms holds."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    bounds = (0.001, 0.5, 1, 10)
    own = Histogram("some_seconds", "Some time", ["model"], bounds, ours)
    reference = prometheus_client.Histogram("some_seconds", "Some time", ["model"], buckets=bounds, registry=theirs)
    for model in ("a", "b"):
        own.labels(model)
        reference.labels(model)
    for value in (0.0, 0.001, 0.0010001, 0.3, 0.5, 1.0, 1.0001, 10.0, 11.0, 1e9):
        own.labels("a").observe(value)
        reference.labels("a").observe(value)
    expected = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert generate_latest(ours).decode().splitlines() == expected


def test_an_answer_over_the_limit_is_no_image(serve: Start) -> None:
    """It was run, and nobody has it."""
    query = {"attention": "last", "heads": "all", "decimals": 9}
    client = serve(max_response_bytes=len(serve().post("/v1/classify", params=query, content=PNG).content) - 500)
    assert client.post("/v1/classify", params=query, content=PNG).json()["code"] == "response_too_large"
    assert value(client, "saccade_batch_images_sum", model="tiny-cct@1", graph="model") == 1
    assert value(client, "saccade_images_total", model="tiny-cct@1") == 0


def test_refused_pictures_are_no_images(serve: Start) -> None:
    """Only what was answered counts."""
    client = serve()
    client.post("/v1/classify", content=b"nothing")
    assert value(client, "saccade_images_total", model="tiny-cct@1") == 0


def test_two_services_in_one_process_count_apart(serve: Start) -> None:
    """Nothing is global."""
    first, second = serve(), serve()
    ask(first)
    assert value(first, "saccade_images_total", model="tiny-cct@1") == 1
    assert value(second, "saccade_images_total", model="tiny-cct@1") == 0

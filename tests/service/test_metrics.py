"""What Prometheus reads."""

from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from tests.service.reference import PNG, ask

Start = Callable[..., TestClient]


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
    assert value(client, "saccade_batch_images_count", model="tiny-cct@1") == 4
    assert value(client, "saccade_batch_images_sum", model="tiny-cct@1") == 4
    for step in ("decode", "queue", "run"):
        assert value(client, "saccade_step_seconds_count", model="tiny-cct@1", step=step) == 4
    assert value(client, "saccade_queue_images", model="tiny-cct@1") == 0
    assert ("saccade_queue_images", frozenset({("model", "tiny-cct@1")})) in samples(client)


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

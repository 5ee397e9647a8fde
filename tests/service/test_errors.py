"""Every code of the table, reached over HTTP, in the one shape."""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.middleware.cors import CORSMiddleware
from starlette.testclient import TestClient

from saccade.bundle import open_bundle
from service.app import Service, create_app
from service.settings import Settings
from tests.conftest import Server
from tests.service.reference import PNG, Changed, Gated, ask, base64_of, encoded, picture, put_runner

CLASSIFY = "/v1/classify"
Start = Callable[..., TestClient]


def refused(response: Any, status: int, code: str, *words: str) -> str:
    """The sentence of a refusal, which has the one shape and holds `words`."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error", "code", "request_id"]
    assert body["code"] == code
    assert body["request_id"] == response.headers["x-request-id"]
    assert len(response.headers.get_list("x-request-id")) == 1
    sentence: str = body["error"]
    for word in words:
        assert word in sentence
    return sentence


# --- 400


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("top_k=0", ["top_k", "at least 1", "'0'"]),
        ("top_k=100001", ["top_k", "at most 100000", "'100001'"]),
        ("top_k=many", ["top_k", "whole number", "'many'"]),
        ("top_k=", ["top_k", "whole number", "''"]),
        ("top_k=1.5", ["top_k", "whole number", "'1.5'"]),
        ("top_k=5&top_k=6", ["top_k", "twice", "'5'", "'6'"]),
        ("min_score=1.5", ["min_score", "at most 1", "'1.5'"]),
        ("min_score=-1", ["min_score", "at least 0", "'-1'"]),
        ("min_score=nan", ["min_score", "number", "'nan'"]),
        ("min_score=inf", ["min_score", "'inf'"]),
        ("maps=heat", ["maps", "pooling", "rollout", "class", "none", "'heat'"]),
        ("maps=none,rollout", ["maps", "'none,rollout'"]),
        ("maps=", ["maps", "''"]),
        ("classes=10", ["classes", "0 to 9", "10"]),
        ("classes=-1", ["classes", "'-1'"]),
        ("classes=99999999999", ["classes", "0 to 9", "99999999999"]),
        ("classes=elephant", ["classes", "'elephant'", "tiny-cct@1"]),
        ("classes=", ["classes", "''"]),
        ("classes=top1,3", ["classes", "top1 stands alone"]),
        ("attention=2", ["attention", "0 to 1", "2", "layers"]),
        ("attention=first", ["attention", "none, last, all", "'first'"]),
        ("attention=-1", ["attention", "'-1'"]),
        ("attention=all&heads=2", ["heads", "0 to 1", "2"]),
        ("heads=max", ["heads", "mean, all", "'max'"]),
        ("attention=last&rows=64", ["rows", "0 to 63", "64"]),
        ("rows=cls", ["rows", "all, pool", "'cls'"]),
        ("decimals=10", ["decimals", "at most 9", "'10'"]),
        ("decimals=-1", ["decimals", "at least 0", "'-1'"]),
        ("timeout_ms=0", ["timeout_ms", "at least 1", "'0'"]),
        ("timeout_ms=3600001", ["timeout_ms", "at most 3600000", "'3600001'"]),
        ("topk=3", ["unknown parameter", "'topk'", "top_k"]),
    ],
)
def test_a_wrong_parameter_is_named_with_its_bound_and_the_value(
    service: TestClient, query: str, words: list[str]
) -> None:
    """One sentence is enough to mend the request."""
    refused(service.post(f"{CLASSIFY}?{query}", content=PNG), 400, "invalid_parameter", *words)


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"{", "application/json", ["image", "base64", "'{'"]),
        (b"[1]", "application/json", ["image", "base64", "'[1]'"]),
        (b"[" * 100_000, "application/json", ["image", "base64", "'[[["]),
        (b'{"image": "AAAA", "image": "AAAA"}', "application/json", ["image", "nothing else"]),
        (b'{"image": "AAAA", "more": 1}', "application/json", ["nothing else", "more"]),
        (b'{"image": "A\\qA"}', "application/json", ["not JSON"]),
        (b"\xff\xfe{\0", "application/json", ["image", "base64"]),
        (b"\r\n" * 100_000, "multipart/form-data; boundary=x", ["multipart"]),
        (b"--x\r\nA: b\r\n" + b"A: b\r\n" * 10_000, "multipart/form-data; boundary=x", ["multipart"]),
        (b"--x\r\nA: " + b"a" * 2**20, "multipart/form-data; boundary=x", ["multipart"]),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 10_000,
            "multipart/form-data; boundary=x",
            ["multipart", "Too many fields", "8"],
        ),
        (b'{"picture": "AAAA"}', "application/json", ["image", "picture"]),
        (b'{"image": 5}', "application/json", ["image", "base64"]),
        (b"whatever", "multipart/form-data", ["multipart", "boundary"]),
        (b"whatever", "multipart/form-data; boundary=x", ["multipart"]),
    ],
)
def test_a_body_that_is_not_what_its_type_says_is_named(
    service: TestClient, body: bytes, content_type: str, words: list[str]
) -> None:
    """Broken JSON is a mistake of the request, not of the picture."""
    response = service.post(CLASSIFY, content=body, headers={"content-type": content_type})
    code = "invalid_parameter" if response.json()["code"] == "invalid_parameter" else "invalid_image"
    refused(response, 400, code, *words)


JPEG = encoded(picture(), "JPEG")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", ["empty", "0 bytes"]),
        (b"this is no picture", ["18 bytes", "JPEG", "PNG"]),
        (JPEG[: len(JPEG) // 2], ["damaged or cut short", f"{len(JPEG) // 2} bytes"]),
        (PNG[: len(PNG) // 2], ["damaged or cut short"]),
        (PNG[:-20] + b"\0" * 20, ["damaged"]),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ["formats"]),
    ],
)
def test_bytes_that_are_no_whole_picture_are_refused_in_their_own_sentence(
    service: TestClient, body: bytes, words: list[str]
) -> None:
    """Empty, text, truncated: each says what it is, and a damaged picture never gets a label."""
    refused(service.post(CLASSIFY, content=body), 400, "invalid_image", *words)


@pytest.mark.parametrize("text", ["!!!!", "AAA", "ä", base64_of(PNG)[:-1] + "\n"])
def test_wrong_base64_is_refused(service: TestClient, text: str) -> None:
    """Nothing is guessed about what the caller meant."""
    refused(service.post(CLASSIFY, json={"image": text}), 400, "invalid_image", "base64")


def test_empty_base64_is_an_empty_picture(service: TestClient) -> None:
    """The same sentence as for an empty body."""
    refused(service.post(CLASSIFY, json={"image": ""}), 400, "invalid_image", "empty")


def test_a_form_without_the_field_says_what_it_has(service: TestClient) -> None:
    """The field is called image; a file under another name is a typo to be told."""
    response = service.post(CLASSIFY, files={"picture": ("a.png", PNG)})
    refused(response, 400, "invalid_image", "'image'", "picture")
    refused(service.post(CLASSIFY, files={"image": ("a.png", b"")}), 400, "invalid_image", "empty")


def test_several_models_and_no_default_is_a_request_to_name_one(serve: Start) -> None:
    """The sentence lists what could be named."""
    response = serve(default_model=None).post(CLASSIFY, content=PNG)
    refused(response, 400, "invalid_parameter", "tiny-cct@1", "tiny-vit@1", "tiny-resnet@1")


# --- 401


@pytest.fixture(scope="module")
def locked(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("\ufeff# ours\nsesame\n\n  open-barley \n", encoding="utf-8")
    settings = Settings(models=models, default_model="tiny-cct", api_keys_file=keys)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-api-key": "wrong"}, {"authorization": "Bearer wrong"}, {"authorization": "Basic sesame"},
     {"authorization": "Bearer "}, {"authorization": "sesame"}, {"x-api-key": "# ours"}, {"x-api-key": "Sesame"}],
)  # fmt: skip
@pytest.mark.parametrize("path", [CLASSIFY, "/v1/models", "/metrics", "/nowhere", "/docs/else"])
def test_without_a_known_key_nothing_is_told(locked: TestClient, path: str, headers: dict[str, str]) -> None:
    """Missing or wrong: 401, with the challenge that the standard wants."""
    method = "POST" if path == CLASSIFY else "GET"
    response = locked.request(method, path, headers=headers)
    refused(response, 401, "unauthorized", "key")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers",
    [{"x-api-key": "sesame"}, {"x-api-key": "open-barley"}, {"authorization": "Bearer sesame"},
     {"authorization": "bearer open-barley"}, {"x-api-key": "wrong", "authorization": "Bearer sesame"}],
)  # fmt: skip
def test_each_key_opens_in_either_header(locked: TestClient, headers: dict[str, str]) -> None:
    """Bearer and X-API-Key are the same key."""
    assert locked.post(CLASSIFY, content=PNG, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json", "/docs/assets/swagger-ui.css"]
)
def test_health_and_the_api_page_are_open_to_everybody(locked: TestClient, path: str) -> None:
    """Orchestrators carry no key, and a browser learns on the page how to send one."""
    assert locked.get(path).status_code == 200


# --- 404, 405, 406


@pytest.mark.parametrize("model", ["nobody", "tiny-cct@2", "tiny-cct@x", "tiny-cct@1@1", "tiny-cct@99999999999", "@1"])
def test_an_unknown_model_is_told_with_those_there_are(service: TestClient, model: str) -> None:
    """In the query and in the path."""
    words = (repr(model), "tiny-cct@1", "tiny-resnet@1")
    refused(service.post(CLASSIFY, params={"model": model}, content=PNG), 404, "unknown_model", *words)
    refused(service.get(f"/v1/models/{model}"), 404, "unknown_model", *words)


ROUTES = {
    CLASSIFY: {"POST"},
    "/v1/models": {"GET"},
    "/v1/models/tiny-cct": {"GET"},
    "/v2/health/live": {"GET"},
    "/v2/health/ready": {"GET"},
    "/metrics": {"GET"},
    "/docs": {"GET"},
    "/openapi.json": {"GET", "HEAD"},
    "/docs/assets/swagger-ui.css": {"GET", "HEAD"},
}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"])
@pytest.mark.parametrize("path", ROUTES)
def test_a_wrong_method_is_told_the_right_one(service: TestClient, path: str, method: str) -> None:
    """405 with Allow, on every route, the framework's own included."""
    if method in ROUTES[path]:
        return
    response = service.request(method, path)
    refused(response, 405, "method_not_allowed", method, path)
    assert {part.strip() for part in response.headers["allow"].split(",")} == ROUTES[path]


def test_every_route_of_the_application_is_among_those_walked(service: TestClient) -> None:
    """A route that is added comes under the same rule."""
    paths = service.get("/openapi.json").json()["paths"]
    assert {path.replace("{name}", "tiny-cct") for path in paths} <= set(ROUTES)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/classify/more", "/v3", "/docs/assets/nothing.js", "/docs/assets/../../x", "/%00", "/ü"]
)
def test_an_unknown_path_has_the_one_shape(service: TestClient, path: str, method: str) -> None:
    """A typo in the address gets a sentence and a request id, not the framework's page."""
    response = service.request(method, path)
    if response.json()["code"] == "method_not_allowed":
        assert path.startswith("/docs/assets")
        assert method != "GET"
        return
    refused(response, 404, "unknown_route", "/docs")


@pytest.mark.parametrize("accept", ["text/html", "image/png, text/*", "application/json;q=0", "application/xml"])
def test_a_caller_who_takes_no_json_is_told_so(service: TestClient, accept: str) -> None:
    """Before any work is done."""
    response = service.post(CLASSIFY, content=PNG, headers={"accept": accept})
    refused(response, 406, "not_acceptable", "application/json", accept)


# --- 413, 415


def test_a_body_over_the_limit_is_refused_by_its_declared_length(serve: Start) -> None:
    """Before it is read."""
    response = serve(max_body_bytes=1024).post(CLASSIFY, content=b"x" * 1025)
    refused(response, 413, "body_too_large", "1025", "limit is 1024")


def test_a_body_of_the_limit_is_read(serve: Start) -> None:
    """The bound itself is allowed: this one is refused as a picture, not as a body."""
    refused(serve(max_body_bytes=1024).post(CLASSIFY, content=b"x" * 1024), 400, "invalid_image", "1024 bytes")


def test_a_body_without_a_length_is_refused_while_it_arrives(models: Path) -> None:
    """The refusal comes as soon as the limit is passed: this body never ends."""
    server = Server(models=models, default_model="tiny-cct", port=0, drain_grace_s=0, max_body_bytes=100_000)
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80), timeout=30) as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(101):
            connection.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        answer = connection.makefile("rb")
        assert answer.readline().startswith(b"HTTP/1.1 413 ")
        for line in iter(answer.readline, b"\r\n"):
            length = int(line.split(b":")[1]) if line.lower().startswith(b"content-length") else 0
            if length:
                break
        assert length > 50
        answer.close()
    assert server.stop() == 0


def test_a_streamed_body_over_the_limit_has_its_sentence(serve: Start) -> None:
    """The same code as with a declared length."""

    def chunks() -> Iterator[bytes]:
        yield from [b"x" * 600] * 3

    response = serve(max_body_bytes=1024).post(CLASSIFY, content=chunks())
    refused(response, 413, "body_too_large", "limit is 1024")


@pytest.mark.parametrize("form", ["raw", "json", "multipart"])
def test_a_bomb_is_refused_before_it_is_decoded(serve: Start, form: str) -> None:
    """A few kB that would become gigabytes: the header says so, and the sentence says the size and the limit."""
    bomb = encoded(picture().resize((1200, 1000)).quantize(2), "PNG")
    client = serve(max_pixels=1_000_000)
    if form == "raw":
        response = client.post(CLASSIFY, content=bomb)
    elif form == "json":
        response = client.post(CLASSIFY, json={"image": base64_of(bomb)})
    else:
        response = client.post(CLASSIFY, files={"image": ("a.png", bomb)})
    refused(response, 413, "image_too_large", "1200 x 1000 = 1200000", "limit is 1000000")


def follow(client: TestClient, query: dict[str, Any], sentence: str, limit: int) -> None:
    """Does what the sentence of a response_too_large says, and sees it succeed within the size that it states."""
    found = re.search(r"limit is (\d+); with (\S+) it has at most (\d+)$", sentence)
    assert found, sentence
    assert int(found[1]) == limit
    change = dict(pair.split("=") for pair in found[2].split("&"))
    response = client.post(CLASSIFY, params={**query, **change}, content=PNG)
    assert response.status_code == 200, response.text
    assert len(response.content) <= int(found[3]) <= limit


@pytest.mark.parametrize("limit", [4096, 6000, 12_000, 30_000, 60_000])
@pytest.mark.parametrize(
    "query",
    [
        {"model": "tiny-cct", "attention": "all", "heads": "all"},
        {"model": "tiny-cct", "attention": "all", "heads": "all", "maps": "class", "classes": "topk", "top_k": 10},
        {"model": "tiny-cct", "attention": "last", "heads": "0,1", "rows": "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"},
        {"model": "tiny-vit", "attention": "all", "heads": "all", "decimals": 9},
        {"model": "tiny-vit-mean", "attention": "all", "heads": "all", "classes": "topk", "maps": "class,rollout"},
        {"model": "tiny-resnet", "maps": "class", "classes": "topk", "top_k": 10},
        {"model": "tiny-resnet", "maps": "class", "classes": "0,1,2,3,4,5,6,7,8,9", "decimals": 0},
    ],
)
def test_an_answer_over_the_limit_names_a_smaller_request_that_succeeds(
    serve: Start, query: dict[str, Any], limit: int
) -> None:
    """413 is no dead end: whoever does what it says gets an answer of no more bytes than it says."""
    client = serve(max_response_bytes=limit)
    response = client.post(CLASSIFY, params=query, content=PNG)
    if response.status_code == 200:
        assert len(response.content) <= limit
        return
    sentence = refused(response, 413, "response_too_large", f"limit is {limit}", "bytes")
    follow(client, query, sentence, limit)


def test_what_can_only_be_too_large_is_refused_before_it_runs(serve: Start, models: Path) -> None:
    """The early path: "at least", and no run is spent."""
    client = serve(max_response_bytes=16_000)
    runner = Changed(open_bundle(models / "tiny-cct" / "1"), lambda outputs: outputs)
    put_runner(client.app.state.service, runner)
    query = {"attention": "all", "heads": "all"}
    sentence = refused(client.post(CLASSIFY, params=query, content=PNG), 413, "response_too_large", "at least 6")
    assert runner.sizes == []
    follow(client, query, sentence, 16_000)


def test_what_turns_out_too_large_is_refused_with_its_exact_size(serve: Start) -> None:
    """The exact path: the size is that of the answer as the generous service gives it, but for the times in it."""
    query: dict[str, Any] = {"attention": "last", "heads": "all", "decimals": 9}
    full = len(serve().post(CLASSIFY, params=query, content=PNG).content)
    client = serve(max_response_bytes=full - 500)
    sentence = refused(client.post(CLASSIFY, params=query, content=PNG), 413, "response_too_large")
    found = re.search(r"would have (\d+) bytes", sentence)
    assert found
    assert abs(int(found[1]) - full) < 100
    follow(client, query, sentence, full - 500)


@pytest.mark.parametrize("content_type", ["text/plain", "application/pdf", "video/mp4", "nonsense"])
def test_a_type_that_is_no_picture_is_told_those_that_are(service: TestClient, content_type: str) -> None:
    """The list is in the sentence."""
    response = service.post(CLASSIFY, content=PNG, headers={"content-type": content_type})
    refused(response, 415, "unsupported_media_type", repr(content_type), "image/jpeg", "multipart/form-data")


def test_a_compressed_body_is_refused(service: TestClient) -> None:
    """Pictures are compressed already, and an unpacked size could not be bounded early."""
    response = service.post(CLASSIFY, content=PNG, headers={"content-encoding": "gzip"})
    refused(response, 415, "unsupported_media_type", "'gzip'")


# --- 422


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"model": "tiny-resnet", "maps": "rollout"}, ["tiny-resnet@1", "rollout", "class", "no attention layers"]),
        ({"model": "tiny-resnet", "maps": "pooling"}, ["tiny-resnet@1", "pooling", "class"]),
        ({"model": "tiny-resnet", "attention": "last"}, ["tiny-resnet@1", "no attention layers", "none", "'last'"]),
        ({"model": "tiny-resnet", "attention": "0"}, ["tiny-resnet@1", "no attention layers"]),
        ({"model": "tiny-vit", "maps": "pooling"}, ["tiny-vit@1", "pooling", "not learned", "rollout"]),
        ({"model": "tiny-vit", "maps": "rollout,class"}, ["tiny-vit@1", "class", "rollout"]),
        ({"model": "tiny-vit-mean", "maps": "pooling"}, ["tiny-vit-mean@1", "not learned", "rollout, class"]),
    ],
)
def test_a_map_that_this_model_cannot_give_says_why_and_what_it_has(
    service: TestClient, query: dict[str, str], words: list[str]
) -> None:
    """It exists, but not here: the caller learns both."""
    refused(service.post(CLASSIFY, params=query, content=PNG), 422, "unsupported_map", *words)


# --- 429, 500, 503, 504


def test_a_full_queue_is_told_with_when_to_come_again(serve: Start, models: Path) -> None:
    """429 at once, with Retry-After in whole seconds; who was accepted still gets an answer."""
    client, runner = serve(), Gated(open_bundle(models / "tiny-cct" / "1"))
    put_runner(client.app.state.service, runner, queue_images=1)
    with ThreadPoolExecutor(1) as threads:
        accepted = threads.submit(client.post, CLASSIFY, content=PNG)
        assert runner.began.acquire(timeout=30)
        response = client.post(CLASSIFY, content=PNG)
        refused(response, 429, "overloaded", "1 images are waiting", "limit is 1")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        runner.go_on.set()
        assert accepted.result().status_code == 200
    assert client.post(CLASSIFY, content=PNG).status_code == 200


def test_a_failed_run_is_told_and_the_next_request_is_answered(serve: Start, models: Path) -> None:
    """500 with its own code; the service goes on."""
    calls: list[int] = []

    def fail_once(outputs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("the device is gone")
        return outputs

    client = serve()
    put_runner(client.app.state.service, Changed(open_bundle(models / "tiny-cct" / "1"), fail_once))
    refused(client.post(CLASSIFY, content=PNG), 500, "inference_failed", "RuntimeError")
    assert client.post(CLASSIFY, content=PNG).status_code == 200


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("output", ["logits", "rollout", "pooling", "attention_00", "class_tokens"])
def test_what_is_not_finite_never_reaches_an_answer(serve: Start, models: Path, output: str, value: float) -> None:
    """A NaN or an infinity anywhere is a 500, not a null in the JSON."""

    def spoil(outputs: Any) -> Any:
        spoiled = {name: values.copy() for name, values in outputs.items()}
        spoiled[output].flat[-1] = value
        return spoiled

    client = serve()
    put_runner(client.app.state.service, Changed(open_bundle(models / "tiny-cct" / "1"), spoil))
    query = {"maps": "rollout,pooling,class", "attention": "0"}
    refused(client.post(CLASSIFY, params=query, content=PNG), 500, "inference_failed", "not finite", output)


def test_finite_outputs_whose_map_overflows_are_a_failure_too(serve: Start, models: Path) -> None:
    """The class map is a product made here: what overflows in it is no answer either."""

    def swell(outputs: Any) -> Any:
        return {
            name: np.full_like(values, 3e38) if name == "class_tokens" else values for name, values in outputs.items()
        }

    client = serve()
    put_runner(client.app.state.service, Changed(open_bundle(models / "tiny-cct" / "1"), swell))
    refused(client.post(CLASSIFY, params={"maps": "class"}, content=PNG), 500, "inference_failed", "not finite")


def test_before_the_models_are_loaded_work_is_refused_and_life_is_affirmed(models: Path) -> None:
    """503 not_ready on all that needs a model; live and metrics answer."""
    client = TestClient(create_app(Settings(models=models)), raise_server_exceptions=False)  # no lifespan
    refused(client.post(CLASSIFY, content=PNG), 503, "not_ready", "loaded")
    for path in ("/v2/health/ready", "/v1/models", "/v1/models/tiny-cct"):
        refused(client.get(path), 503, "not_ready")
    assert client.get("/v2/health/live").status_code == client.get("/metrics").status_code == 200


def drain_of(client: TestClient) -> Callable[[], Awaitable[None]]:
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    return service.drain


def test_while_draining_new_work_is_refused_and_life_is_affirmed(serve: Start) -> None:
    """503 draining after the grace."""
    client = serve(drain_grace_s=0)
    assert client.portal is not None
    client.portal.call(drain_of(client))
    refused(client.post(CLASSIFY, content=PNG), 503, "draining", "stopping")
    refused(client.get("/v2/health/ready"), 503, "draining", "stopping")
    assert client.get("/v2/health/live").status_code == 200


def test_in_the_grace_readiness_is_503_and_work_is_still_taken(serve: Start) -> None:
    """A balancer needs time to see it; nobody is refused meanwhile."""
    client = serve(drain_grace_s=600)
    assert client.portal is not None
    draining = client.portal.start_task_soon(drain_of(client))
    client.portal.call(asyncio.sleep, 0)  # the drain has begun when the loop comes round
    refused(client.get("/v2/health/ready"), 503, "draining")
    ask(client)
    draining.cancel()


def test_a_drain_waits_for_what_was_taken(serve: Start, models: Path) -> None:
    """An accepted request is finished, however long its run takes."""
    client, runner = serve(drain_grace_s=0), Gated(open_bundle(models / "tiny-cct" / "1"))
    put_runner(client.app.state.service, runner)
    assert client.portal is not None
    with ThreadPoolExecutor(1) as threads:
        accepted = threads.submit(client.post, CLASSIFY, content=PNG)
        assert runner.began.acquire(timeout=30)
        draining = client.portal.start_task_soon(drain_of(client))
        client.portal.call(asyncio.sleep, 0)
        refused(client.post(CLASSIFY, content=PNG), 503, "draining")
        assert not draining.done()
        runner.go_on.set()
        assert accepted.result().status_code == 200
        draining.result(timeout=30)


def test_past_its_deadline_a_request_is_told_so(serve: Start, models: Path) -> None:
    """504 with the deadline that held, the caller's or the service's; the batch behind it goes on."""
    client, runner = serve(timeout_ms=40), Gated(open_bundle(models / "tiny-cct" / "1"))
    put_runner(client.app.state.service, runner)
    refused(client.post(CLASSIFY, params={"timeout_ms": 20}, content=PNG), 504, "deadline_exceeded", "20 ms")
    refused(client.post(CLASSIFY, content=PNG), 504, "deadline_exceeded", "40 ms")
    runner.go_on.set()
    assert client.post(CLASSIFY, params={"timeout_ms": 30_000}, content=PNG).status_code == 200


# --- the request id, and what nobody foresaw


@pytest.mark.parametrize("given", ["abc-123", "a/b:c=d+e.f_g", "x" * 128])
def test_the_callers_request_id_is_kept(service: TestClient, given: str) -> None:
    """In header and body, of successes and refusals, so that logs of both sides meet."""
    headers = {"x-request-id": given}
    good = service.post(CLASSIFY, content=PNG, headers=headers)
    assert good.headers["x-request-id"] == good.json()["request_id"] == given
    bad = service.get("/nowhere", headers=headers)
    assert bad.headers["x-request-id"] == bad.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", 'a"b', "<script>"])
def test_an_unfit_request_id_is_replaced(service: TestClient, given: str) -> None:
    """Nothing that could break a log line is echoed."""
    seen = service.get("/nowhere", headers={"x-request-id": given}).json()["request_id"]
    assert re.fullmatch(r"[0-9a-f]{16}", seen)


def test_request_ids_differ(service: TestClient) -> None:
    """Each request has its own."""
    assert len({service.get("/v2/health/live").headers["x-request-id"] for _ in range(50)}) == 50


def test_a_defect_of_the_service_has_the_one_shape_and_tells_nothing_of_the_inside(serve: Start) -> None:
    """500 with the request id to be found in the log."""

    class Broken:
        def admission(self) -> Any:
            raise ZeroDivisionError("secret detail")

        def close(self) -> None:
            pass

    client = serve()
    classifier: Any = client.app.state.service.registry().get("tiny-cct")  # type: ignore[attr-defined]
    classifier.batcher.close()
    classifier.batcher = Broken()
    sentence = refused(client.post(CLASSIFY, content=PNG), 500, "internal", "log", "request_id")
    assert "secret" not in sentence


def test_a_query_longer_than_any_that_makes_sense_is_refused(service: TestClient) -> None:
    """Queries are remembered, so that their length is bounded; each row of a large model still fits."""
    refused(service.post(f"/v1/classify?rows={'0,' * 9_000}0", content=PNG), 400, "invalid_parameter", "limit is 16384")
    rows = ",".join(map(str, range(16)))
    assert service.post(f"/v1/classify?attention=last&rows={rows}", content=PNG).status_code == 200


def test_a_layer_that_would_stand_behind_ours_is_refused(models: Path) -> None:
    """Most requests never come to the framework's layers: whoever embeds the service is told to wrap it instead."""
    app = create_app(Settings(models=models))
    with pytest.raises(RuntimeError, match="wrap the application"):
        app.add_middleware(CORSMiddleware, allow_origins=["*"])
    with TestClient(CORSMiddleware(app, allow_origins=["https://here"])) as client:
        response = client.get("/v2/health/live", headers={"origin": "https://here"})
        assert response.headers["access-control-allow-origin"] == "https://here"


@pytest.mark.parametrize(
    ("query", "body", "content_type"),
    [
        ("x" * 30_000 + "=1", PNG, ""),
        ("model=a&model=" + "x" * 30_000, PNG, ""),
        ("", b'{"' + b"x" * 100_000 + b'": 1}', "application/json"),
        ("", b'{"image": "' + b"%" * 100_000 + b'"}', "application/json"),
    ],
)
def test_a_refusal_is_short_however_long_the_request(
    service: TestClient, query: str, body: bytes, content_type: str
) -> None:
    """What a caller sent comes back in part at the most."""
    response = service.post(f"/v1/classify?{query}", content=body, headers={"content-type": content_type})
    assert response.status_code == 400
    assert len(response.content) < 2000

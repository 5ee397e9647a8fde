"""The same picture, however it is sent."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.body import RAW
from tests.service.reference import NAMES, PNG, ask, base64_of, encoded, picture


def labels(response: Any) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["labels"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "content_type", [None, "application/x-www-form-urlencoded", "image/png; a=b", "IMAGE/PNG", *RAW]
)
def test_a_raw_body_is_the_picture_whatever_its_type_says(
    service: TestClient, name: str, content_type: str | None
) -> None:
    """curl --data-binary with no header at all is enough; the bytes say what they are."""
    headers = {} if content_type is None else {"content-type": content_type}
    seen = service.post("/v1/classify", params={"model": name}, content=PNG, headers=headers)
    assert labels(seen) == ask(service, model=name)["labels"]


@pytest.mark.parametrize("name", NAMES)
def test_multipart_and_json_give_the_answer_of_the_raw_body(service: TestClient, name: str) -> None:
    """A form in a browser and a script that has only JSON are served too."""
    raw = ask(service, model=name)
    form = service.post("/v1/classify", params={"model": name}, files={"image": ("a.png", PNG, "image/png")})
    document = service.post("/v1/classify", params={"model": name}, json={"image": base64_of(PNG)})
    for response in (form, document):
        assert labels(response) == raw["labels"]
        assert response.json()["maps"] == raw["maps"]


@pytest.mark.parametrize(
    "write",
    [
        lambda text: json.dumps({"image": text}, indent=4),
        lambda text: json.dumps({"image": text}).replace("/", "\\/"),  # as PHP writes it
        lambda text: json.dumps({"image": text}).replace("+", "\\u002B"),  # as .NET writes it
    ],
    ids=["indented", "slashes escaped", "plus signs escaped"],
)
def test_the_json_of_every_writer_is_read(service: TestClient, write: Callable[[str], str]) -> None:
    """White space and escapes are the writer's own affair."""
    assert "+" in base64_of(PNG)
    assert "/" in base64_of(PNG)
    headers = {"content-type": "application/json"}
    seen = service.post("/v1/classify", content=write(base64_of(PNG)), headers=headers)
    assert labels(seen) == ask(service)["labels"]


@pytest.mark.parametrize("size", [3 * 2**16, 3 * 2**16 + 1, 3 * 2**16 + 2, 3 * 2**16 - 1, 2**18, 2**19 + 1])
def test_base64_of_any_length_is_read_whole(service: TestClient, size: int) -> None:
    """Nothing is lost where a long text is read in pieces: a PNG with so many bytes behind its end."""
    picture = PNG + bytes(size - len(PNG))
    assert labels(service.post("/v1/classify", json={"image": base64_of(picture)})) == ask(service)["labels"]
    text = base64_of(picture)
    for spoilt in (text[:1000] + "=" + text[1000:], text[:996] + "AA==" + text[1000:] + "AAAA"):
        response = service.post("/v1/classify", json={"image": spoilt})
        assert (response.status_code, response.json()["code"]) == (400, "invalid_image")


def test_other_fields_of_a_form_do_no_harm(service: TestClient) -> None:
    """Browsers send what else the form has."""
    seen = service.post("/v1/classify", files={"image": ("a.png", PNG)}, data={"comment": "hello"})
    assert labels(seen) == ask(service)["labels"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_each_format_is_read(service: TestClient, kind: str) -> None:
    """The six formats of the documentation."""
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(picture(), kind, **options)
    answer = ask(service, data)
    if kind in ("PNG", "WEBP", "BMP", "TIFF"):
        assert answer["labels"] == ask(service)["labels"]


def test_a_body_in_chunks_of_unknown_length_is_taken(service: TestClient) -> None:
    """A caller that pipes need not know the size before."""

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(PNG), 100):
            yield PNG[start : start + 100]

    assert labels(service.post("/v1/classify", content=chunks())) == ask(service)["labels"]


@pytest.mark.parametrize(
    "accept",
    ["*/*", "application/json", "application/*", "text/html, */*;q=0.1", "application/json; charset=utf-8", "", " "],
)
def test_a_caller_who_takes_json_is_served(service: TestClient, accept: str) -> None:
    """Whatever a browser or curl says by default."""
    assert service.post("/v1/classify", content=PNG, headers={"accept": accept}).status_code == 200

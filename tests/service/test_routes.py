"""The API page and its OpenAPI: true, and from this host alone."""

import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from saccade.api import ClassifyOptions
from service.errors import STATUS
from tests.service.reference import NAMES, PNG, ask

Json = Any


@pytest.fixture(scope="module")
def document(service: TestClient) -> dict[str, Json]:
    found: dict[str, Json] = service.get("/openapi.json").json()
    return found


def mistakes(document: dict[str, Json], schema: Json, value: Json, where: str = "$") -> list[str]:
    """What of `value` is not as `schema` says: the part of JSON Schema that the document uses."""
    if "$ref" in schema:
        found = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return mistakes(document, found, value, where)
    if "anyOf" in schema:
        tried = [mistakes(document, one, value, where) for one in schema["anyOf"]]
        return [] if [] in tried else [f"{where}: none of anyOf: {tried}"]
    if "const" in schema and value != schema["const"]:
        return [f"{where}: {value!r} is not {schema['const']!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is not one of {schema['enum']}"]
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "null": type(None),
        "boolean": bool,
    }
    kind = schema.get("type")
    if kind and not isinstance(value, kinds[kind]):
        return [f"{where}: {type(value).__name__} is no {kind}"]
    wrong: list[str] = []
    if kind == "object":
        properties = schema.get("properties", {})
        wrong += [f"{where}: no {name}" for name in schema.get("required", ()) if name not in value]
        if schema.get("additionalProperties") is False:
            wrong += [f"{where}: {name} is not documented" for name in value if name not in properties]
        for name, inner in value.items():
            if name in properties:
                wrong += mistakes(document, properties[name], inner, f"{where}.{name}")
    if kind == "array":
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            wrong.append(f"{where}: {len(value)} items")
        prefix = schema.get("prefixItems", [])
        for index, inner in enumerate(value):
            one = prefix[index] if index < len(prefix) else schema.get("items", {})
            wrong += mistakes(document, one, inner, f"{where}[{index}]")
    if kind == "string" and "pattern" in schema and not re.search(schema["pattern"], value):
        wrong.append(f"{where}: {value!r} does not match {schema['pattern']}")
    return wrong


def body_schema(document: dict[str, Json], path: str, method: str, status: int) -> Json:
    return document["paths"][path][method]["responses"][str(status)]["content"]["application/json"]["schema"]


@pytest.mark.parametrize("name", NAMES)
def test_real_answers_are_as_documented(service: TestClient, document: dict[str, Json], name: str) -> None:
    """A client generated from the document reads every answer."""
    schema = body_schema(document, "/v1/classify", "post", 200)
    queries: list[dict[str, str]] = [{}, {"maps": "none"}]
    if name != "tiny-vit":
        queries.append({"maps": "class", "classes": "topk"})
    if name != "tiny-resnet":
        queries += [
            {"attention": "all", "heads": heads, "rows": rows}
            for heads in ("mean", "all")
            for rows in ("all", "pool", "0")
        ]
    for query in queries:
        assert mistakes(document, schema, ask(service, model=name, **query)) == []
    info = service.get(f"/v1/models/{name}").json()
    assert mistakes(document, body_schema(document, "/v1/models/{name}", "get", 200), info) == []


def test_lists_and_refusals_are_as_documented(service: TestClient, document: dict[str, Json]) -> None:
    """The error's schema is the one shape."""
    assert mistakes(document, body_schema(document, "/v1/models", "get", 200), service.get("/v1/models").json()) == []
    refusal = service.post("/v1/classify?top_k=0", content=PNG).json()
    assert mistakes(document, body_schema(document, "/v1/classify", "post", 400), refusal) == []
    wrong = {"error": 5, "code": "x"}
    assert len(mistakes(document, body_schema(document, "/v1/classify", "post", 400), wrong)) == 2


def test_every_documented_path_exists_and_every_path_is_documented(document: dict[str, Json]) -> None:
    """The five of the API and the metrics, each under its one method."""
    assert {path: set(methods) for path, methods in document["paths"].items()} == {
        "/v1/classify": {"post"},
        "/v1/models": {"get"},
        "/v1/models/{name}": {"get"},
        "/v2/health/live": {"get"},
        "/v2/health/ready": {"get"},
        "/metrics": {"get"},
    }


def test_every_documented_path_answers(service: TestClient, document: dict[str, Json]) -> None:
    """With the status and the type that the document gives."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            url = path.replace("{name}", "tiny-cct")
            response = service.request(method.upper(), url, content=PNG if method == "post" else None)
            assert response.status_code == 200
            documented = operation["responses"]["200"].get("content", {"application/json": {}})
            assert response.headers["content-type"].partition(";")[0] in documented


def test_every_parameter_is_documented_with_its_bounds_and_default(document: dict[str, Json]) -> None:
    """What the document says of a parameter is what the service checks."""
    parameters = {one["name"]: one for one in document["paths"]["/v1/classify"]["post"]["parameters"]}
    assert set(parameters) == set(ClassifyOptions.model_fields)
    assert all(one["in"] == "query" and one["description"] for one in parameters.values())
    schemas = {name: one["schema"] for name, one in parameters.items()}
    assert (schemas["top_k"]["minimum"], schemas["top_k"]["maximum"], schemas["top_k"]["default"]) == (1, 100_000, 5)
    assert (schemas["min_score"]["minimum"], schemas["min_score"]["maximum"]) == (0, 1)
    assert (schemas["decimals"]["minimum"], schemas["decimals"]["maximum"], schemas["decimals"]["default"]) == (0, 9, 6)
    assert (schemas["timeout_ms"]["minimum"], schemas["timeout_ms"]["maximum"]) == (1, 3_600_000)
    assert schemas["classes"]["type"] == "array"
    assert schemas["attention"]["default"] == "none"
    assert (schemas["heads"]["default"], schemas["rows"]["default"]) == ("mean", "all")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("maps", ["none", "rollout", "class,pooling"], ["", "none,rollout", "heat", "rollout,"]),
        ("attention", ["none", "last", "all", "0", "1,0"], ["", "first", "0,", "-1"]),
        ("heads", ["mean", "all", "0", "1,0"], ["", "max", "0;1"]),
        ("rows", ["all", "pool", "0", "3,1"], ["", "cls", "1,,2"]),
        ("windows", ["all"], ["", "pool", "1,,2"]),
    ],
)
def test_the_documented_patterns_are_those_that_are_checked(
    service: TestClient, document: dict[str, Json], name: str, good: list[str], bad: list[str]
) -> None:
    """A value that fits the pattern is not refused for its form, and one that does not fit is."""
    parameters = {one["name"]: one["schema"] for one in document["paths"]["/v1/classify"]["post"]["parameters"]}
    for value in good:
        assert re.search(parameters[name]["pattern"], value)
        ask(service, **{name: value})
    for value in bad:
        assert not re.search(parameters[name]["pattern"], value)
        assert service.post("/v1/classify", params={name: value}, content=PNG).status_code == 400


def test_the_documented_statuses_are_those_of_the_table(document: dict[str, Json]) -> None:
    """Nothing is promised that cannot come, and nothing comes that is not promised: 405 is no answer of a method."""
    table = {str(status) for status in STATUS.values()}
    documented = {
        path: set(operation["responses"]) - {"200"}
        for path, methods in document["paths"].items()
        for operation in methods.values()
    }
    assert documented["/v1/classify"] == table - {"405"}
    assert all(statuses <= table for statuses in documented.values())
    assert documented["/v1/models/{name}"] == {"401", "404", "503"}
    assert documented["/v2/health/ready"] == {"503"}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for status in documented[path]:
                codes = {error.code for error, number in STATUS.items() if str(number) == status}
                said = set(re.findall(r"[a-z]+_?[a-z_]*", operation["responses"][status]["description"])) - {"or"}
                assert said <= codes


def test_the_documented_ways_to_send_a_picture_all_work(service: TestClient, document: dict[str, Json]) -> None:
    """Each content type of the request body is taken."""
    from tests.service.reference import base64_of

    content = document["paths"]["/v1/classify"]["post"]["requestBody"]["content"]
    for media_type in content:
        if media_type == "multipart/form-data":
            response = service.post("/v1/classify", files={"image": ("a.png", PNG)})
        elif media_type == "application/json":
            response = service.post("/v1/classify", json={"image": base64_of(PNG)})
        else:
            response = service.post("/v1/classify", content=PNG, headers={"content-type": media_type})
        assert response.status_code == 200, media_type


def test_the_api_page_takes_nothing_from_another_host(service: TestClient) -> None:
    """It works in a closed network, and tells nobody that it was opened."""
    page = service.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "https://" not in page.text
    assert "http://" not in page.text
    assert not re.search(r"[\"']//", page.text)
    assert "default-src 'self'" in page.headers["content-security-policy"]
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 3
    for link in links:
        asset = service.get(link)
        assert asset.status_code == 200
        assert len(asset.content) > 300
    assert "'/openapi.json'" in page.text


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/classify/", "/docs/"])
def test_a_trailing_slash_is_an_unknown_route_and_no_redirect(service: TestClient, path: str) -> None:
    """A redirect would be built from the Host header that the caller made up."""
    response = service.get(path, follow_redirects=False)
    assert (response.status_code, response.json()["code"]) == (404, "unknown_route")


def test_the_ways_to_send_a_key_are_documented(service: TestClient) -> None:
    """The API page has an Authorize button, and the open routes are marked as such."""
    document = service.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert {(scheme["type"], scheme.get("scheme", scheme.get("name"))) for scheme in schemes.values()} == {
        ("http", "bearer"),
        ("apiKey", "X-API-Key"),
    }
    assert {name for entry in document["security"] for name in entry} == set(schemes)
    for path, methods in document["paths"].items():
        assert all((one.get("security") == []) == path.startswith("/v2/health/") for one in methods.values())

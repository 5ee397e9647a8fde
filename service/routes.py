"""The routes, each a few lines; and what OpenAPI says of them, made from the types they really use."""

import functools
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from saccade import api
from saccade.api import ClassifyOptions
from saccade.errors import InvalidParameter
from service.body import FIELD, JSON, MULTIPART, RAW, check_accept, read_picture
from service.classifier import Body, Classifier
from service.encode import to_json
from service.errors import STATUS
from service.plain import Json, Plain
from service.presence import Presence

_MEANING = {status: [] for status in sorted(set(STATUS.values()))}  # type: dict[int, list[str]]
for _error, _status in STATUS.items():
    _MEANING[_status].append(_error.code)


def _header(description: str, kind: str = "string") -> dict[str, Any]:
    return {"description": description, "required": True, "schema": {"type": kind}}


_HEADERS: dict[int | str, dict[str, Any]] = {
    401: {"WWW-Authenticate": _header("`Bearer`")},
    429: {"Retry-After": _header("Seconds to wait", "integer")},
}


def _answers(success: dict[str, Any], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of a route's answers, 200 and `statuses`; each carries the request's id."""
    answers: dict[int | str, dict[str, Any]] = {200: success}
    answers |= {one: {"model": api.Error, "description": " or ".join(_MEANING[one])} for one in statuses}
    for status, answer in answers.items():
        identity = _header("That of the request, or one made for it")
        answer["headers"] = {"X-Request-Id": identity, **_HEADERS.get(status, {})}
    return answers


def _query() -> list[dict[str, Any]]:
    schema = ClassifyOptions.model_json_schema()["properties"]
    parameters = []
    for name, field in schema.items():
        description = field.pop("description")
        kinds = [kind for kind in field.pop("anyOf", [field]) if kind.get("type") != "null"]
        clean = {
            key: value for key, value in {**field, **kinds[0]}.items() if key not in ("title",) and value is not None
        }
        parameters.append({"name": name, "in": "query", "description": description, "schema": clean})
    return parameters


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_CLASSIFY = {
    "parameters": _query(),
    "requestBody": {
        "required": True,
        "description": "The picture: raw, as multipart field `image`, or as base64 in JSON",
        "content": {
            **dict.fromkeys(RAW, _BINARY),
            MULTIPART: {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "string", "format": "binary"}},
                }
            },
            JSON: {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "additionalProperties": False,
                    "properties": {FIELD: {"type": "string", "contentEncoding": "base64"}},
                }
            },
        },
    },
}
_MODEL = {
    "parameters": [
        {
            "name": "name",
            "in": "path",
            "required": True,
            "description": "`name` or `name@version`",
            "schema": {"type": "string"},
        }
    ]
}


router = APIRouter(route_class=Plain)


@router.post(
    "/v1/classify",
    summary="Labels and attention of one picture",
    responses=_answers({"model": api.Answer}, 400, 401, 404, 406, 408, 413, 415, 422, 429, 431, 500, 503, 504),
    openapi_extra=_CLASSIFY,
)
async def classify(request: Request) -> None:
    scope = request.scope
    state = scope["state"]
    service = scope["app"].state.service
    headers = state["headers"]
    check_accept(headers.get("accept"))
    with service.work() as registry, Presence(request.receive) as presence:
        options = _options(scope["query_string"])
        classifier: Classifier = registry.get(options.model)

        async def receive() -> "Body":  # in quotes, or it would be worked out at each request
            body = await read_picture(headers, request.receive, service.settings.max_body_bytes)
            presence.watch()
            return body

        async def deliver(answer: bytes) -> None:
            await Json(answer)(scope, request.receive, state["send"])

        await classifier.classify(receive, deliver, options, state["request_id"], state["received"])


_LONGEST_QUERY = 2**14
"""Enough for each row and class of a large model by number."""


@functools.lru_cache(256)  # a caller asks for the same thing of many pictures
def _options(query: bytes) -> ClassifyOptions:
    if len(query) > _LONGEST_QUERY:
        raise InvalidParameter(f"the query has {len(query)} bytes; the limit is {_LONGEST_QUERY}")
    return ClassifyOptions.from_query(parse_qsl(query.decode("latin-1"), keep_blank_values=True))


@router.get("/v1/models", summary="What is served", responses=_answers({"model": api.ModelList}, 401, 503))
async def models(request: Request) -> Response:
    registry = request.app.state.service.registry()
    return Json(to_json({"models": [_summary(one, registry.default) for one in registry]}))


@router.get(
    "/v1/models/{name}",
    summary="Maps, manifest, card, parity and plan of one model",
    responses=_answers({"model": api.ModelInfo}, 401, 404, 503),
    openapi_extra=_MODEL,
)
async def model(request: Request) -> Response:
    classifier: Classifier = request.app.state.service.registry().get(request.path_params["name"])
    manifest = classifier.manifest.model_dump(mode="json")
    info = {
        "name": manifest["name"],
        "version": manifest["version"],
        "maps": list(classifier.maps),
        "manifest": manifest,
        "card": manifest["card"],
        "parity": manifest["parity"],
        "plan": classifier.plan.model_dump(),
    }
    return Json(to_json(info))


@router.get(
    "/v2/health/live",
    summary="200 while the process can do its work",
    responses=_answers({"model": api.Live}, 503),
    openapi_extra={"security": []},
)
async def live(request: Request) -> Response:
    request.app.state.service.alive()
    return Json(to_json({"live": True}))


@router.get(
    "/v2/health/ready",
    summary="200 while new work is welcome",
    responses=_answers({"model": api.Ready}, 503),
    openapi_extra={"security": []},
)
async def ready(request: Request) -> Response:
    request.app.state.service.ready()
    return Json(to_json({"ready": True}))


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    responses=_answers({"content": {"text/plain": {}}, "description": "metrics, prefix saccade_"}, 401),
)
async def metrics(request: Request) -> Response:
    service = request.app.state.service
    return Response(service.metrics.text(), media_type=service.metrics.content_type)


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """Swagger UI from the installed package: nothing comes from another host, not even the validator's badge."""
    page = get_swagger_ui_html(
        openapi_url=request.app.url_path_for("openapi"),
        title="Saccade",
        swagger_js_url="/docs/assets/swagger-ui-bundle.js",
        swagger_css_url="/docs/assets/swagger-ui.css",
        swagger_favicon_url="/docs/assets/favicon-32x32.png",
        swagger_ui_parameters={"validatorUrl": None, "tryItOutEnabled": True},
    )
    page.headers["content-security-policy"] = "default-src 'self' 'unsafe-inline'; img-src 'self' data:"
    return page


SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
"""Either one; where no keys are set the empty alternative says so."""


def add_routes(app: FastAPI) -> None:
    app.router.routes.extend(router.routes)  # include_router would match each request twice
    described = app.openapi

    def openapi() -> dict[str, Any]:
        schema = described()
        schema["components"]["securitySchemes"] = SECURITY
        schema["security"] = [*({name: []} for name in SECURITY), *([] if app.state.service.keys.set else [{}])]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]))


def _summary(classifier: Classifier, default: Classifier | None) -> dict[str, Any]:
    manifest = classifier.manifest
    return api.ModelSummary(
        name=manifest.name,
        version=manifest.version,
        default=classifier is default,
        labels=len(manifest.labels),
        maps=list(classifier.maps),
        attention_layers=len(manifest.attention),
        scores=manifest.scores,
        precision=manifest.precision,
        parent=manifest.parent and manifest.parent.id,
        input_size=(manifest.preprocessing.height, manifest.preprocessing.width),
    ).model_dump()

"""The outermost ASGI layer: request id, keys, metrics, and the error shape for whatever is raised inside."""

import logging
import random
import re
import time
from collections.abc import Callable

from fastapi import FastAPI, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade.errors import SaccadeError
from service.errors import error_response, status_of
from service.keys import Keys
from service.metrics import Metrics
from service.plain import Plain

log = logging.getLogger("saccade.http")

OPEN_ROUTES = ("/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json")
"""Asked without a key: by orchestrators, and by the browser of whoever wants to know how to send one."""
OPEN_PREFIX = "/docs/assets/"

_CLOSE = (b"connection", b"close")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class Edge:
    def __init__(
        self, app: FastAPI, inside: ASGIApp, keys: Keys, metrics: Metrics, draining: Callable[[], bool]
    ) -> None:
        """Calls routes of `app` of fixed path directly: the framework's way there costs more than they do.

        The rest goes to `inside`. While `draining` no connection is kept: at the end the kept ones would be closed with
        requests on their way.
        """
        self._app = app
        self._inside = inside
        self._fixed = {
            (method, route.path): route
            for route in app.routes
            if isinstance(route, Plain) and route.fixed
            for method in route.methods or ()
        }
        self._keys = keys
        self._metrics = metrics
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inside(scope, receive, send)
            return
        # of a header that is there twice, the first; as a dict, since it is asked six times
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_request_id()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                if self._draining() and _CLOSE not in message["headers"]:
                    message["headers"].append(_CLOSE)
            await send(message)

        scope.setdefault("state", {}).update(
            request_id=request_id, received=time.monotonic(), headers=headers, send=send_with_id
        )
        try:
            response: ASGIApp = self._inside
            route = self._fixed.get((scope["method"], scope["path"]))
            if route is not None:
                scope["app"] = self._app
                scope["route"] = route
                response = route.app
            if scope["path"] not in OPEN_ROUTES and not scope["path"].startswith(OPEN_PREFIX):
                try:
                    self._keys.check(headers)
                except SaccadeError as error:
                    response = refuse(self._metrics, error, request_id)
            await response(scope, receive, send_with_id)
        except SaccadeError as error:
            await refuse(self._metrics, error, request_id)(scope, receive, send_with_id)
        except ClientDisconnect:
            status = 499  # nobody is left to read an answer
        except Exception:
            log.exception("request %s failed", request_id)
            if status:
                raise  # half an answer is out: the server must cut the connection
            failed = SaccadeError("something went wrong inside of the service; its log has the request_id")
            await refuse(self._metrics, failed, request_id)(scope, receive, send_with_id)
        finally:
            del scope["state"]["send"]  # or the request would be a circle of references, and each of them garbage
            status = scope["state"].get("answered", status)  # by the connection, before anything else could be
            self._metrics.request(getattr(scope.get("route"), "path", "other"), status)
            log.debug("%s %s %s %d", request_id, scope["method"], scope["path"], status)


def new_request_id() -> str:
    return f"{random.getrandbits(64):016x}"


def refuse(metrics: Metrics, error: SaccadeError, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """The answer for an error of the domain, counted by its code."""
    metrics.refusal(error.code)
    if status_of(error) >= 500:
        log.warning("%s: %s: %s", request_id, error.code, error)
    return error_response(error, request_id, headers)

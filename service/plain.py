"""A route that FastAPI documents and that costs what its endpoint costs."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from service.encode import LARGE


class Json(Response):
    """Bytes that are JSON. Its headers are written here, since there is nothing to find out.

    Sending it takes until all but the last kilobytes are on their way to the caller.
    """

    def __init__(self, body: bytes, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> None:
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
            *((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers),
        ]

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        large = len(self.body) > LARGE
        await send({"type": "http.response.body", "body": self.body, "more_body": large})
        if large:
            await send({"type": "http.response.body"})  # waits for its turn


class Plain(APIRoute):
    """A route whose endpoint takes the Request and gives a Response, or None once it has sent one itself.

    FastAPI documents it; to solve dependencies that it does not have would cost more than a small picture's decoding.
    """

    def __init__(self, path: str, endpoint: Callable[[Request], Awaitable[Response | None]], **options: Any) -> None:
        super().__init__(path, endpoint, **options)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive))
            if response is not None:
                await response(scope, receive, send)

        self.app = app

    @property
    def fixed(self) -> bool:
        """Whether its path has no parameters."""
        return not self.param_convertors

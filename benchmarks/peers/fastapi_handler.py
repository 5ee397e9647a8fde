"""Peer: FastAPI that calls the model inside of its `async def` handler, as most tutorials show it.

Settings: intra_op (threads of the session), spin, processes (each with a session of its own).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request, Response

from benchmarks.peers.arguments import arguments
from benchmarks.peers.uvicorn_run import NO_TELEMETRY, announce, serve
from benchmarks.pipeline import Pipeline
from saccade.errors import RequestError

DEFAULTS = {"intra_op": 1, "spin": False, "processes": 1}


def create_app() -> FastAPI:
    given = arguments(DEFAULTS)
    settings = given.settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.pipeline = Pipeline(given.bundle, given.query, settings["intra_op"], settings["spin"])
        announce()
        yield

    app = FastAPI(lifespan=lifespan, telemetry=NO_TELEMETRY)

    @app.post("/v1/classify")
    async def classify(request: Request) -> Response:
        body = await request.body()
        try:
            answer = request.app.state.pipeline.classify([body])[0]
        except RequestError as error:
            raise HTTPException(400, str(error)) from error
        return Response(answer, media_type="application/json")

    @app.get("/ready")
    async def ready() -> Response:
        return Response(b'{"ready":true}', media_type="application/json")

    @app.get("/empty")
    async def empty() -> Response:
        return Response(b"{}", media_type="application/json")

    return app


if __name__ == "__main__":
    start = arguments(DEFAULTS)
    serve("benchmarks.peers.fastapi_handler:create_app", start.port, start.settings["processes"])

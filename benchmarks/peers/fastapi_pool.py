"""Peer: FastAPI whose handler hands each picture to a pool of threads; all of them share one session.

Settings: workers (threads), intra_op (threads of the session), spin, processes (each with a session of its own).
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request, Response

from benchmarks.peers.arguments import arguments
from benchmarks.peers.uvicorn_run import NO_TELEMETRY, announce, serve
from benchmarks.pipeline import Pipeline
from saccade.errors import RequestError

DEFAULTS = {"workers": 2, "intra_op": 1, "spin": False, "processes": 1}


def create_app() -> FastAPI:
    given = arguments(DEFAULTS)
    settings = given.settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.pipeline = Pipeline(given.bundle, given.query, settings["intra_op"], settings["spin"])
        with ThreadPoolExecutor(settings["workers"]) as pool:
            app.state.pool = pool
            announce()
            yield

    app = FastAPI(lifespan=lifespan, telemetry=NO_TELEMETRY)

    @app.post("/v1/classify")
    async def classify(request: Request) -> Response:
        body = await request.body()
        state = request.app.state
        try:
            answers = await asyncio.get_running_loop().run_in_executor(state.pool, state.pipeline.classify, [body])
        except RequestError as error:
            raise HTTPException(400, str(error)) from error
        return Response(answers[0], media_type="application/json")

    @app.get("/ready")
    async def ready() -> Response:
        return Response(b'{"ready":true}', media_type="application/json")

    @app.get("/empty")
    async def empty() -> Response:
        return Response(b"{}", media_type="application/json")

    return app


if __name__ == "__main__":
    start = arguments(DEFAULTS)
    serve("benchmarks.peers.fastapi_pool:create_app", start.port, start.settings["processes"])

"""Peer: LitServe, whose worker processes collect requests into batches.

Settings: workers_per_device and api_servers (processes), max_batch_size, batch_timeout (seconds), fast_queue (answers
travel through ZeroMQ), intra_op (threads of a worker's session), spin.
"""

import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import litserve
from fastapi import Body, HTTPException, Response

from benchmarks.peers.arguments import HOST, arguments
from benchmarks.peers.litserve_queue import mend_fast_queue
from benchmarks.pipeline import Decoded, Outputs, Pipeline
from saccade.errors import RequestError

DEFAULTS = {
    "workers_per_device": 1,
    "api_servers": 1,
    "max_batch_size": 8,
    "batch_timeout": 0.002,
    "fast_queue": True,
    "intra_op": 1,
    "spin": False,
}


class Result(NamedTuple):
    decoded: Decoded
    outputs: Outputs
    batch_size: int
    run_s: float


class Api(litserve.LitAPI):  # type: ignore[misc]  # only the peer's own environment has LitServe
    def __init__(self, bundle: Path, query: str, settings: dict[str, Any]) -> None:
        batch = {name: settings[name] for name in ("max_batch_size", "batch_timeout")}
        super().__init__(**batch, api_path="/v1/classify")
        self._bundle = bundle
        self._query = query
        self._settings = settings

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """In the worker process, after this object travelled there."""
        if self._settings["fast_queue"]:
            mend_fast_queue()
        self._pipeline = Pipeline(self._bundle, self._query, self._settings["intra_op"], self._settings["spin"])

    # LitServe reads a Request as JSON or as a form; a parameter that is bytes is the body as it came.
    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Decoded:
        try:
            return self._pipeline.decode(request)
        except RequestError as error:
            raise HTTPException(400, str(error)) from error

    def batch(self, inputs: list[Decoded]) -> list[Decoded]:
        return inputs  # Pipeline.run makes one array of them

    def predict(self, x: Decoded | list[Decoded]) -> Result | list[Result]:
        batch = [x] if isinstance(x, Decoded) else x  # LitServe does not batch where batches are of one
        started = time.monotonic()
        outputs = self._pipeline.run(batch)
        seconds = time.monotonic() - started
        results = [Result(decoded, each, len(batch), seconds) for decoded, each in zip(batch, outputs, strict=True)]
        return results[0] if isinstance(x, Decoded) else results

    def unbatch(self, output: list[Result]) -> list[Result]:
        return output

    def encode_response(self, output: Result) -> Response:
        body = self._pipeline.encode(
            output.decoded,
            output.outputs,
            batch_size=output.batch_size,
            run_s=output.run_s,
            total_s=output.decoded.seconds + output.run_s,
        )
        return Response(body, media_type="application/json")


def main() -> None:
    given = arguments(DEFAULTS)
    settings = given.settings
    api = Api(given.bundle, given.query, settings)
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=settings["workers_per_device"],
        timeout=False,
        healthcheck_path="/ready",
        fast_queue=settings["fast_queue"],
    )
    if settings["fast_queue"]:
        mend_fast_queue()

    @server.app.get("/empty")  # type: ignore[untyped-decorator]
    async def empty() -> Response:
        return Response(b"{}", media_type="application/json")

    server.run(
        host=HOST,
        port=given.port,
        num_api_servers=settings["api_servers"],
        log_level="warning",
        generate_client_file=False,
        access_log=False,
        loop="uvloop",
        http="httptools",
        backlog=2048,
    )


if __name__ == "__main__":
    main()

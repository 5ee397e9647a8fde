"""uvicorn as both FastAPI peers run it: uvloop, httptools, no access log, one process or several."""

import json
import os
import sys

import uvicorn
from fastapi.telemetry import TelemetryConfig

from benchmarks.peers.arguments import HOST

NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}
"""FastAPI would ask three libraries at each request whether somebody listens; the service does not let it either."""


def serve(factory: str, port: int, processes: int) -> None:
    """Serves `module:function` until a signal."""
    uvicorn.run(
        factory,
        factory=True,
        host=HOST,
        port=port,
        workers=processes,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_level="warning",
        backlog=2048,
    )


def announce() -> None:
    """Says that this process has loaded: the port answers as soon as the first of several has."""
    print(json.dumps({"ready": os.getpid()}), file=sys.stderr, flush=True)

"""From a command's start until it can work: ours until it says that it is ready, against the same imports and sessions.

python -m benchmarks.begin --models F --instances N --intra-op N    the bare start, which says "ready on nothing"
"""

import argparse
import importlib
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PACKAGES = (
    "asyncio", "fastapi", "fastapi.openapi.docs", "httptools", "multipart", "numpy", "onnxruntime", "orjson",
    "PIL.Image", "prometheus_client", "pydantic", "pydantic_settings", "safetensors", "starlette.formparsers",
    "starlette.staticfiles", "uvicorn", "uvloop",
)  # fmt: skip
"""What the service imports of others."""


def seconds_until_ready(command: Sequence[str], environment: dict[str, str], folder: Path) -> float:
    """Until a line of its stderr or stdout says "ready on". Raises RuntimeError where it ends before."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if re.search("ready on", line):
            taken = time.perf_counter() - began
            process.terminate()
            process.stdout.read()
            process.wait()
            return taken
    raise RuntimeError(f"{command} ended with {process.wait()}: {said[-2000:]}")


def bare_command(models: Path, instances: int, intra_op: int) -> list[str]:
    counts = ["--instances", str(instances), "--intra-op", str(intra_op)]
    return [sys.executable, "-m", "benchmarks.begin", "--models", str(models), *counts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--instances", type=int, required=True)
    parser.add_argument("--intra-op", type=int, required=True)
    given = parser.parse_args()
    for package in PACKAGES:
        importlib.import_module(package)
    import onnxruntime

    sessions = []
    for graph in sorted(given.models.glob("*/*/model.onnx")):
        for _ in range(given.instances):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = given.intra_op
            options.inter_op_num_threads = 1
            sessions.append(onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"]))
    print(f"ready on nothing, with {len(sessions)} sessions", flush=True)


if __name__ == "__main__":
    main()

"""The limit of the machine: the pipeline in bare loops, without HTTP, without a queue. One JSON line an answer.

    python -m benchmarks.limit --bundle F --picture P --query Q --threads T --intra-op N --batch B --spin 0|1

Each thread has a session of its own. Lines on stdin say when to work, so that it can take turns with the servers and
stay warm: `run SECONDS` (all threads), `one SECONDS` (one thread, one picture at a time); it ends with the input.
"""

import argparse
import json
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.pipeline import Pipeline


def loop(pipeline: Pipeline, body: bytes, batch: int, seconds: float) -> list[float]:
    """Answers batches until the time is over, at least one; the seconds that each took."""
    durations: list[float] = []
    bodies = [body] * batch
    before = time.perf_counter()
    end = before + seconds
    while before < end or not durations:
        pipeline.classify(bodies)
        after = time.perf_counter()
        durations.append(after - before)
        before = after
    return durations


class Limit:
    def __init__(self, bundle: Path, body: bytes, query: str, *, threads: int, intra_op: int, batch: int, spin: bool):
        self._body = body
        self._batch = batch
        self._pipelines = [Pipeline(bundle, query, intra_op, spin) for _ in range(threads)]
        self._threads = ThreadPoolExecutor(threads)

    def run(self, seconds: float) -> dict[str, Any]:
        """All threads."""
        started = time.perf_counter()
        running = [
            self._threads.submit(loop, pipeline, self._body, self._batch, seconds) for pipeline in self._pipelines
        ]
        durations = [duration for each in running for duration in each.result()]
        elapsed = time.perf_counter() - started
        images = len(durations) * self._batch
        return {
            "images": images,
            "seconds": elapsed,
            "images_per_s": images / elapsed,
        }

    def one(self, seconds: float) -> dict[str, Any]:
        durations = loop(self._pipelines[0], self._body, 1, seconds)
        rate = len(durations) / sum(durations)
        times = {"p50_s": quantile(durations, 0.5), "p99_s": quantile(durations, 0.99)}
        return {"images": len(durations), "images_per_s": rate, **times}


def quantile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--query", default="")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--intra-op", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--spin", type=int, choices=(0, 1), default=0)
    given = parser.parse_args()
    body = given.picture.read_bytes()
    limit = Limit(
        given.bundle, body, given.query,
        threads=given.threads, intra_op=given.intra_op, batch=given.batch, spin=bool(given.spin),
    )  # fmt: skip
    print(json.dumps({"ready": True}), flush=True)
    commands = {"run": limit.run, "one": limit.one}
    for line in sys.stdin:
        name, seconds = line.split()
        print(json.dumps(commands[name](float(seconds))), flush=True)


if __name__ == "__main__":
    main()

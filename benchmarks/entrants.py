"""Whoever takes part in a round, kept warm and stopped in its tracks while the others are measured.

The limit and the servers give the same figures, so that a search and a round need not know which is which.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import httpx

from benchmarks.contestants import SAME, Contestant, Settings, Space, start
from benchmarks.load import TIMEOUT_S, closed
from benchmarks.process import cpu_seconds, peak_memory
from benchmarks.works import QUERIES, ROOT, Work


class Figures(NamedTuple):
    """Of one run; times in seconds, memory in bytes."""

    throughput: float
    """Images a second."""
    p50_s: float | None
    p99_s: float | None
    cpu_s: float
    """CPU time an image, of all processes but the generator."""
    peak_memory: int
    failed: int
    """Requests without a 2xx answer."""
    generator_cpu_share: float


class Live(Protocol):
    """Started and warm. `measure` lets it run for so long alone."""

    pid: int

    def measure(self, callers: int, seconds: float) -> Figures: ...

    def stop(self) -> None: ...


class Entrant(Protocol):
    name: str
    title: str

    def space(self, cpus: int) -> Space: ...

    def defaults(self, cpus: int) -> dict[str, Any]: ...

    def enter(self, work: Work, query: str, settings: Settings, cache: Path) -> Live: ...


class Server:
    """A contestant over HTTP."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.name = contestant.name
        self.title = contestant.title
        self.space = contestant.space
        self.defaults = contestant.defaults

    def enter(self, work: Work, query: str, settings: Settings, cache: Path) -> "LiveServer":
        return LiveServer(self.contestant, work, query, settings, cache)


class LiveServer:
    def __init__(self, contestant: Contestant, work: Work, query: str, settings: Settings, cache: Path) -> None:
        """Raises RuntimeError, with the server's words, where it refuses what it is to be measured with."""
        self.work = work
        self.running = start(contestant, work, query, settings, cache)
        self.pid = self.running.pid
        self.url = self.running.url + contestant.classify_path(query)
        self.empty_url = self.running.url + contestant.empty_path
        try:
            _check(self.url, work)
            closed(self.url, work.picture, work.media_type, 4, 1)  # the first answers build what later ones find
        except BaseException:
            self.running.stop()
            raise
        self.running.pause()

    def measure(self, callers: int, seconds: float) -> Figures:
        self.running.resume()
        try:
            before = cpu_seconds(self.pid)
            load = closed(self.url, self.work.picture, self.work.media_type, callers, seconds)
            cpu = cpu_seconds(self.pid) - before
            return Figures(
                load.throughput,
                load.p50_s,
                load.p99_s,
                cpu / max(load.requests, 1),
                peak_memory(self.pid),
                load.requests - load.ok + load.errors,
                load.generator_cpu_share,
            )
        finally:
            self.running.pause()

    def stop(self) -> None:
        self.running.stop()


def _check(url: str, work: Work) -> None:
    """Asks once: a load of refusals is faster than one of answers."""
    headers = {"content-type": work.media_type}
    with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
        asked = client.post(url, content=work.picture.read_bytes(), headers=headers)
    if not asked.is_success:
        raise RuntimeError(f"{url} answers {work.title} with {asked.status_code}: {asked.text[:500]}")


class Limit:
    """The bare loop of `benchmarks.limit`. One caller: one picture at a time in one thread; more: all threads."""

    name = "limit"
    title = "bare loop, no HTTP: the limit"

    def space(self, cpus: int) -> Space:
        splits = [(threads, max(1, cpus // threads)) for threads in range(1, cpus + 1) if cpus % threads == 0]
        return {"split": tuple(splits), "batch": (1, 2, 4, 8, 16), "spin": (False, True)}

    def defaults(self, cpus: int) -> dict[str, Any]:
        return {"split": (cpus, 1), "batch": 4, "spin": False}

    def enter(self, work: Work, query: str, settings: Settings, cache: Path) -> "LiveLimit":  # noqa: ARG002 - of servers
        return LiveLimit(work, query, settings)


class LiveLimit:
    def __init__(self, work: Work, query: str, settings: Settings) -> None:
        threads, intra_op = settings["split"]
        arguments = {
            "threads": threads,
            "intra-op": intra_op,
            "batch": settings["batch"],
            "spin": int(settings["spin"]),
        }
        given = [f"--{name}={value}" for name, value in arguments.items()]
        files = ["--bundle", str(work.bundle), "--picture", str(work.picture), f"--query={QUERIES[query]}"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.limit", *files, *given],
            cwd=ROOT, env={**os.environ, **SAME}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = self._process.pid
        self._hear()
        self._ask("run", 1)
        self._pause()

    def measure(self, callers: int, seconds: float) -> Figures:
        os.kill(self.pid, signal.SIGCONT)
        try:
            before = cpu_seconds(self.pid)
            if callers == 1:
                said = self._ask("one", seconds)
                rate, p50, p99 = said["images_per_s"], said["p50_s"], said["p99_s"]
            else:
                said = self._ask("run", seconds)
                rate, p50, p99 = said["images_per_s"], None, None
            cpu = cpu_seconds(self.pid) - before
            return Figures(rate, p50, p99, cpu / said["images"], peak_memory(self.pid), 0, 0.0)
        finally:
            self._pause()

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._process.communicate()

    def _pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def _ask(self, command: str, seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command} {seconds}\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the bare loop ended with {self._process.wait()}")
        said: dict[str, Any] = json.loads(line)
        return said


def as_json(figures: Figures) -> Mapping[str, Any]:
    return {name: value for name, value in figures._asdict().items() if value is not None}

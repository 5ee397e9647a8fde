"""The servers that are measured: how each is installed and started, where it answers, and what there is to tune.

A query is given by its name in `benchmarks.works.QUERIES`, settings by a dict of what `space` names.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import python_of
from benchmarks.peers.running import HOST, Running, free_port, launch
from benchmarks.works import QUERIES, ROOT, Work

Settings = Mapping[str, Any]

SAME = {"OPENBLAS_NUM_THREADS": "1"}
"""In everybody's environment, since the service sets it for itself."""
Space = dict[str, tuple[Any, ...]]


class Contestant:
    """A peer; `Ours` says what is different for the service itself."""

    ready_path = "/ready"
    empty_path = "/empty"

    def __init__(self, name: str, short: str, how: str = "") -> None:
        self.name = name
        self.short = short
        self.title = f"{short}, {how}" if how else short

    def space(self, cpus: int) -> Space:
        """The values of each setting that a search may try on so many CPUs."""
        raise NotImplementedError

    def defaults(self, cpus: int) -> dict[str, Any]:
        """What a good engineer would set before any search."""
        raise NotImplementedError

    def environment(self, cache: Path) -> Path:
        """Its Python, installed the first time."""
        return python_of(self.name, cache)

    def command(
        self, work: Work, query: str, settings: Settings, port: int, cache: Path
    ) -> tuple[list[str], dict[str, str], Path]:
        """(argv, environment variables, working folder)."""
        options = ["--bundle", str(work.bundle), f"--query={QUERIES[query]}", "--port", str(port)]
        given = ["--settings", json.dumps(dict(settings))]
        module = f"benchmarks.peers.{self.name}"
        environment = {**_outside(), "PYTHONPATH": str(ROOT)}
        return [str(self.environment(cache)), "-m", module, *options, *given], environment, ROOT

    def classify_path(self, query: str) -> str:  # noqa: ARG002 - a peer is started for its query
        return "/v1/classify"

    def processes(self, settings: Settings) -> int:
        """How many announce themselves on stderr before all of it is ready; the port answers after the first."""
        return int(settings.get("processes", 0))


class Ours(Contestant):
    ready_path = "/v2/health/ready"
    empty_path = "/v2/health/live"

    def space(self, cpus: int) -> Space:
        return {
            "instances": _up_to(cpus),
            "intra_op_threads": _up_to(cpus),
            "max_batch": (1, 2, 4, 8, 16),
            "max_wait_ms": (0, 1, 2, 5),
            "spinning": (False, True),
            "decode_threads": (0, *_up_to(cpus)),
        }

    def defaults(self, cpus: int) -> dict[str, Any]:  # noqa: ARG002 - the service finds out itself
        return {}

    def environment(self, cache: Path) -> Path:  # noqa: ARG002 - it is installed
        return Path(sys.executable)

    def command(
        self,
        work: Work,
        query: str,  # noqa: ARG002 - it is in the URL
        settings: Settings,
        port: int,
        cache: Path,
    ) -> tuple[list[str], dict[str, str], Path]:
        given = {f"SACCADE_{name.upper()}": str(value) for name, value in settings.items()}
        fixed = {
            "SACCADE_HOST": HOST,
            "SACCADE_PORT": str(port),
            "SACCADE_MODELS": str(folder_of_one(work, cache)),
            "SACCADE_DRAIN_GRACE_S": "0",
            "SACCADE_RUN_TIMEOUT_S": "86400",  # a server that was stopped in its tracks must not take its run for hung
        }
        return [str(self.environment(cache)), "-m", "service"], {**_outside(), **given, **fixed}, ROOT

    def classify_path(self, query: str) -> str:
        return "/v1/classify" + (f"?{QUERIES[query]}" if QUERIES[query] else "")


class Pool(Contestant):
    def space(self, cpus: int) -> Space:
        return {
            "workers": (*_up_to(cpus), 2 * cpus),
            "intra_op": _up_to(cpus),
            "spin": (False, True),
            "processes": _up_to(cpus),
        }

    def defaults(self, cpus: int) -> dict[str, Any]:
        return {"workers": cpus, "intra_op": 1, "spin": False, "processes": 1}


class Handler(Contestant):
    def space(self, cpus: int) -> Space:
        return {"intra_op": _up_to(cpus), "spin": (False, True), "processes": _up_to(cpus)}

    def defaults(self, cpus: int) -> dict[str, Any]:
        return {"intra_op": 1, "spin": False, "processes": cpus}


class LitServe(Contestant):
    def space(self, cpus: int) -> Space:
        return {
            "workers_per_device": _up_to(cpus),
            "api_servers": _up_to(cpus),
            "max_batch_size": (1, 2, 4, 8, 16),
            "batch_timeout": (0.0, 0.001, 0.002, 0.005),
            "fast_queue": (True, False),
            "intra_op": _up_to(cpus),
            "spin": (False, True),
        }

    def defaults(self, cpus: int) -> dict[str, Any]:
        servers = max(1, cpus // 2)
        batching = {"max_batch_size": 8, "batch_timeout": 0.002, "fast_queue": True}
        return {"workers_per_device": cpus, "api_servers": servers, **batching, "intra_op": 1, "spin": False}


OURS = Ours("ours", "Saccade")
CONTESTANTS: dict[str, Contestant] = {
    each.name: each
    for each in (
        OURS,
        Pool("fastapi_pool", "FastAPI with a thread pool", "one session a process"),
        Handler("fastapi_handler", "FastAPI, model in the handler"),
        LitServe("litserve_batch", "LitServe", "batching"),
    )
}


def start(contestant: Contestant, work: Work, query: str, settings: Settings, cache: Path) -> Running:
    """Starts it on a free port and waits until it is ready. Raises RuntimeError with the end of its log."""
    port = free_port()
    command, environment, folder = contestant.command(work, query, settings, port, cache)
    return launch(
        command, environment, folder,
        port=port, ready=contestant.ready_path, announced=contestant.processes(settings),
        log=cache / "logs" / f"{contestant.name}-{port}.log",
    )  # fmt: skip


def _up_to(count: int) -> tuple[int, ...]:
    """1, 2, 4 … and `count` itself."""
    return tuple(sorted({1 << power for power in range(count.bit_length()) if 1 << power <= count} | {count}))


def folder_of_one(work: Work, cache: Path) -> Path:
    """A folder of models that holds this work's alone, so that a request need not name it.

    What an earlier state of the benchmarks linked there goes: of two models, a request that names none is refused.
    """
    folder, model = (cache / f"models-{work.name}").absolute(), work.bundle.parent.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / model.name
    for other in folder.iterdir():
        if not other.is_symlink():
            raise SystemExit(f"{other} is no link of the benchmarks: move it away")
        if other != link or other.resolve() != model:
            other.unlink()
    if not link.is_symlink():
        link.symlink_to(model, target_is_directory=True)
    return folder


def _outside() -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if not name.startswith("SACCADE_")}
    return {**given, **SAME}

"""`make bench`: everything that docs/benchmarks.md says, measured in one run and written as JSON.

    python -m benchmarks.run [--quick] [--out FILE] [--works cct,vit-ti,large] [--before REF]

Each part is written as soon as it is there; a run that was interrupted goes on where it stopped when it is started
again with the same FILE.
"""

import argparse
import functools
import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import begin, rounds
from benchmarks.contestants import CONTESTANTS, OURS, Ours, Settings
from benchmarks.entrants import Entrant, Limit, Live, LiveServer, Server
from benchmarks.machine import machine, versions
from benchmarks.search import search
from benchmarks.works import CACHE, ROOT, Work, works
from saccade.api import Plan
from service.plan import find_cpus, make_plan
from service.settings import Settings as ServiceSettings

PACKAGES = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "onnxruntime", "numpy", "pillow", "orjson")
MANY = 16
CALLERS = (1, MANY, 64)
SHARES = (0.5, 0.9, 2.0)


class Effort(NamedTuple):
    """How long and how often."""

    rounds: int
    seconds: Mapping[str, float]
    """Of a run, by work."""
    search: bool
    callers: tuple[int, ...]
    shares: tuple[float, ...]
    images: Mapping[str, tuple[int, int]]
    """After how many memory is read, by work; where there is none, overload and start are not measured either."""
    works: tuple[str, ...]
    alone: tuple[str, ...]
    """Who is asked by one caller."""
    overloaded: tuple[str, ...]
    """Whom the open loop asks: those that refuse nothing take a quarter of a minute each time to drain."""


FULL = Effort(
    rounds=9,
    seconds={"cct": 2, "vit-ti": 3, "large": 3},
    search=True,
    callers=CALLERS,
    shares=SHARES,
    images={"cct": (2_000, 10_000), "vit-ti": (2_000, 10_000)},
    works=("cct", "vit-ti", "large"),
    alone=(Limit.name, *CONTESTANTS),
    overloaded=tuple(CONTESTANTS),
)
QUICK = Effort(
    rounds=3,
    seconds={"cct": 1, "vit-ti": 2, "large": 2},
    search=False,
    callers=(1, 16),
    shares=(2.0,),
    images={"cct": (500, 2_000), "vit-ti": (50, 200)},
    works=("cct", "vit-ti"),
    alone=(Limit.name, OURS.name),
    overloaded=(OURS.name,),
)


class Book:
    """The results, by the name of their part; on disk after each."""

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        """Goes on with what is at `path` if it is of the same run, that is, begins with the parts of `run`."""
        self._path = path
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        run = json.loads(json.dumps(run))
        self.parts: dict[str, Any] = (
            known if all(known.get(name) == value for name, value in run.items()) else dict(run)
        )

    def part(self, name: str, measure: Callable[[], Any]) -> Any:
        """What was measured before under this name, or is now."""
        if name not in self.parts:
            if self.parts.get("code", _code()) != _code():
                raise RuntimeError("the code has changed since this run began: a page is of one state of it")
            print(f"{datetime.now(UTC):%H:%M:%S} {name}", file=sys.stderr, flush=True)
            self.parts[name] = measure()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps(self.parts, indent=1) + "\n")
            part.replace(self._path)
        return self.parts[name]


class Before(Ours):
    """The service as it was at another commit, with the same settings."""

    def __init__(self, folder: Path) -> None:
        super().__init__("before", "Saccade before this engine")
        self._folder = folder

    def command(
        self, work: Work, query: str, settings: Settings, port: int, cache: Path
    ) -> tuple[list[str], dict[str, str], Path]:
        # 0 was one a CPU there, as absent is
        known = {name: value for name, value in settings.items() if name != "decode_threads"}
        command, environment, _ = super().command(work, query, known, port, cache)
        return command, environment, self._folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an indication in some minutes")
    parser.add_argument("--out", type=Path, default=CACHE / "full.json")
    parser.add_argument("--works", default="", help="of cct, vit-ti, large; all if absent")
    parser.add_argument("--before", default="", help="a commit to compare the steps and the CCT with")
    given = parser.parse_args()
    effort = QUICK if given.quick else FULL
    chosen = tuple(given.works.split(",")) if given.works else effort.works
    run = {
        "machine": {**machine(), "packages": versions(PACKAGES), "commit": _commit()},
        "code": _code(),
        "effort": {"quick": given.quick, "rounds": effort.rounds, "seconds": dict(effort.seconds)},
    }
    book = Book(given.out, run)
    before = _tree(given.before, CACHE) if given.before else None
    all_works = works(CACHE)
    for name in chosen:
        _measure(book, all_works[name], effort, before)


def _measure(book: Book, work: Work, effort: Effort, before: Path | None) -> None:
    cpus = find_cpus().usable
    seconds = effort.seconds[work.name]
    entrants: list[Entrant] = [Limit(), *map(Server, CONTESTANTS.values())]
    settings: dict[str, Any] = {}
    for entrant in entrants:
        find = functools.partial(_settings, entrant, work, effort, cpus)
        settings[entrant.name] = book.part(f"{work.name}/settings/{entrant.name}", find)["settings"]
    everybody = tuple(entrant.name for entrant in entrants)
    if before is not None:
        entrants.append(Server(Before(before)))
        settings["before"] = settings[OURS.name]

    def with_all(
        query: str, measure: Callable[[dict[str, Live]], Any], names: tuple[str, ...] = ()
    ) -> Callable[[], Any]:
        def entered() -> Any:
            live: dict[str, Live] = {}
            try:
                for entrant in entrants:
                    if entrant.name in names or not names:
                        live[entrant.name] = entrant.enter(work, query, settings[entrant.name], CACHE)
                return measure(live)
            finally:
                for each in live.values():
                    each.stop()

        return entered

    for callers in effort.callers:
        measure = functools.partial(rounds.closed_rounds, callers=callers, seconds=seconds, rounds=effort.rounds)
        # the service as it was takes part once
        names = () if callers == MANY else effort.alone if callers == 1 else everybody
        book.part(f"{work.name}/closed/map/{callers}", with_all("map", measure, names))
    measure = functools.partial(rounds.closed_rounds, callers=MANY, seconds=seconds, rounds=effort.rounds)
    if effort.search:
        book.part(f"{work.name}/closed/labels/{MANY}", with_all("labels", measure, everybody))
    if work.name in effort.images:
        book.part(f"{work.name}/plan", lambda: plan_of(settings["ours"]).model_dump())
        book.part(f"{work.name}/map-or-labels", lambda: _map_or_labels(work, settings["ours"], effort))
        _open(book, work, effort, with_all)
        growth = functools.partial(_growth, counts=effort.images[work.name])
        book.part(f"{work.name}/memory", with_all("map", growth, ("limit", "ours")))
        book.part(f"{work.name}/start", lambda: _starts(work, settings["ours"], effort))
    book.part(f"{work.name}/steps", lambda: _steps(work, settings["ours"], before))


def _growth(live: dict[str, Live], counts: tuple[int, int]) -> dict[str, dict[str, int]]:
    return {name: rounds.memory_growth(each, counts, MANY) for name, each in live.items()}


def _open(book: Book, work: Work, effort: Effort, with_all: Callable[..., Callable[[], Any]]) -> None:
    def measure(live: dict[str, Live], share: float) -> Any:
        servers = {name: each for name, each in live.items() if isinstance(each, LiveServer) and name != "before"}
        return rounds.open_rounds(servers, capacity, share, effort.seconds[work.name], effort.rounds)

    peak = book.parts[f"{work.name}/closed/map/{effort.callers[-1]}"]
    capacity = {name: sorted(run["throughput"] for run in runs)[len(runs) // 2] for name, runs in peak.items()}
    for share in effort.shares:
        name = f"{work.name}/open/{share:g}"
        book.part(name, with_all("map", functools.partial(measure, share=share), effort.overloaded))


def _settings(entrant: Entrant, work: Work, effort: Effort, cpus: int) -> dict[str, Any]:
    if effort.search:
        found = search(entrant, work, "map", cpus, CACHE, seconds=max(1, effort.seconds[work.name] - 1))
        return found._asdict()
    published = ROOT / "docs/benchmarks.json"
    known = json.loads(published.read_text()) if published.exists() else {}
    here = known.get("machine", {}).get("cpus_usable") == cpus
    earlier = known.get(f"{work.name}/settings/{entrant.name}") if here else None
    return earlier or {"settings": entrant.defaults(cpus), "tried": 0}


def _map_or_labels(work: Work, settings: Settings, effort: Effort) -> Any:
    """The same server twice, asked for labels and for the map in turn."""
    entrant = Server(OURS)
    live: dict[str, Live] = {}
    try:
        for query in ("labels", "map"):
            live[query] = entrant.enter(work, query, settings, CACHE)
        return rounds.closed_rounds(live, MANY, effort.seconds[work.name], effort.rounds)
    finally:
        for each in live.values():
            each.stop()


def _starts(work: Work, settings: Settings, effort: Effort) -> dict[str, list[float]]:
    command, environment, folder = OURS.command(work, "map", settings, 0, CACHE)
    models = Path(environment["SACCADE_MODELS"])
    plan = plan_of(settings)
    bare = begin.bare_command(models, plan.instances, plan.intra_op_threads)
    found: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(effort.rounds):
        found["bare"].append(begin.seconds_until_ready(bare, environment, folder))
        found["ours"].append(begin.seconds_until_ready(command, environment, folder))
    return found


def _steps(work: Work, settings: Settings, before: Path | None) -> dict[str, Any]:
    batch = plan_of(settings).max_batch
    arguments = ["--bundle", str(work.bundle), "--picture", str(work.picture), "--batch", str(batch)]
    found = {}
    for name, tree in (("before", before), ("after", ROOT)):
        if tree is not None:
            ran = subprocess.run(
                [sys.executable, str(ROOT / "benchmarks/steps.py"), *arguments],
                env={**os.environ, "PYTHONPATH": str(tree)}, cwd=tree, capture_output=True, text=True, check=True,
            )  # fmt: skip
            found[name] = json.loads(ran.stdout)
    return {"batch": batch, **found}


def plan_of(settings: Settings) -> Plan:
    """What the service makes of settings on this machine."""
    return make_plan(ServiceSettings(**settings), find_cpus(), "CPUExecutionProvider")


def _commit() -> str:
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or "unknown"


def _code() -> str:
    """A digest of what is measured and of what measures it."""
    digest = hashlib.sha256()
    for folder in ("saccade", "service", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _tree(ref: str, cache: Path) -> Path:
    """The service's files at `ref`, unpacked."""
    packed = subprocess.run(
        ["git", "archive", ref, "saccade", "service"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    folder = cache / "before" / ref
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


if __name__ == "__main__":
    main()

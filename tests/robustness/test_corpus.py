"""Whatever file a caller sends, the service answers, stays up, and gives its memory back."""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.errors import STATUS
from tests.conftest import ROOT, Server
from tests.robustness.corpus import Item, bombs, corpus

CALLERS = 8
GROWTH_MB = 60
"""From the level of a service that has answered some hundred small files; seen were 28. Large blocks go back to the
system at once, and every ten seconds what else is free. A giant picture takes up to 800 MB."""
SETTLED_S = 30

CODES = {error.code: status for error, status in STATUS.items() if 400 <= status < 500}


@pytest.fixture(scope="module")
def shipped() -> Iterator[Server]:
    """A real server on the models in the repository; no deadline, since a shared machine may stand still."""
    with Server(
        models=ROOT / "models", default_model="cifar10-hybrid-s", port=0, drain_grace_s=0, timeout_ms=600_000
    ) as it:
        yield it
        it.stop()


class Told:
    """What the service said: how often each thing, and each answer that it should not have given."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []

    def add(self, item: Item, response: httpx.Response) -> None:
        answer = response.json()
        outcome = "ok" if response.status_code == 200 else str(answer.get("code"))
        self.outcomes[outcome] += 1
        shape = set(answer) == {"error", "code", "request_id"} and CODES.get(outcome) == response.status_code
        if outcome not in item.outcomes or not (outcome == "ok" or shape):
            self.wrong.append(f"{item.name} ({len(item.data)} bytes): {response.status_code} {response.text[:200]}")


async def send(url: str, items: Iterable[Item]) -> Told:
    """Each item over one of a few connections that stay open; a connection that is cut raises."""
    told, waiting = Told(), iter(items)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def call() -> None:
            for item in waiting:
                headers = {"content-type": item.content_type}
                told.add(item, await client.post("/v1/classify?maps=none", content=item.data, headers=headers))

        async with asyncio.TaskGroup() as callers:
            for _ in range(CALLERS):
                callers.create_task(call())
    return told


def resident_mb(server: Server) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 10**6


def settled_mb(server: Server, level: int) -> int:
    """The least that it takes within `SETTLED_S`, in which it is asked for its health alone; at once if little."""
    least, end = resident_mb(server), time.monotonic() + SETTLED_S
    with httpx.Client(base_url=server.url) as client:
        while least > level and time.monotonic() < end:
            assert client.get("/v2/health/ready").status_code == 200
            least = min(least, resident_mb(server))
    return least


def is_a_cat(server: Server) -> bool:
    picture = (ROOT / "examples/chelsea.jpg").read_bytes()
    answer = httpx.post(f"{server.url}/v1/classify", content=picture, headers={"content-type": "image/jpeg"}).json()
    return bool(answer["labels"][0]["label"] == "cat")


def report(name: str, figures: dict[str, Any]) -> None:
    """For docs/robustness.md."""
    folder = ROOT / "build/robustness"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")


def test_whole_odd_and_some_damaged_files_are_answered(shipped: Server) -> None:
    """Every kind of picture gets a label, every other format a refusal; a part of what the slow test sends."""
    told = asyncio.run(send(shipped.url, corpus(share=60)))
    assert told.wrong == []
    assert told.outcomes["ok"] > 200
    assert is_a_cat(shipped)


@pytest.mark.slow
def test_every_broken_file_is_answered_and_memory_returns(shipped: Server) -> None:
    """Cut at each 97th byte, bits turned over, bombs, megabytes of ballast: no 5xx, no cut connection, no leak."""
    before = resident_mb(shipped)
    asyncio.run(send(shipped.url, corpus(share=60)))
    level = resident_mb(shipped)
    told = asyncio.run(send(shipped.url, chain(bombs(), corpus())))
    busy = resident_mb(shipped)
    after = settled_mb(shipped, level)
    status = Path(f"/proc/{shipped.process.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) // 1000
    memory = {"at the start": before, "level": level, "most": peak, "at the end": busy, "some seconds later": after}
    report("corpus", {"inputs": told.outcomes.total(), "outcomes": told.outcomes, "resident MB": memory})
    assert told.wrong == []
    assert is_a_cat(shipped)
    assert after - level <= GROWTH_MB

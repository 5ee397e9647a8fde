"""Measurements that take turns: every entrant once in each round, the first one another each time.

What slows the machine for a while then slows all of them, and figures are compared within a round.
"""

import threading
from collections.abc import Mapping
from typing import Any

from benchmarks.entrants import Limit, Live, LiveServer, as_json
from benchmarks.load import Load, open_loop
from benchmarks.process import peak_memory

PROBES = 25.0
"""Requests a second that ask the empty route while the others are served: too few to matter."""


def closed_rounds(
    live: Mapping[str, Live], callers: int, seconds: float, rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Figures of every entrant, one a round, in the order of the rounds."""
    names = list(live)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(dict(as_json(live[name].measure(callers, seconds))))
    return found


def open_rounds(
    servers: Mapping[str, LiveServer], capacity: Mapping[str, float], share: float, seconds: float, rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Each server at `share` of the capacity that was just measured for it; and its empty route meanwhile."""
    names = list(servers)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            load, empty = _overload(servers[name], share * capacity[name], seconds, seed=number)
            found[name].append({**load._asdict(), "empty_p99_s": empty.p99_s, "empty_ok": empty.ok})
    return found


def _overload(server: LiveServer, rate: float, seconds: float, seed: int) -> tuple[Load, Load]:
    server.running.resume()
    try:
        probes: list[Load] = []
        asking = threading.Thread(
            target=lambda: probes.append(
                open_loop(server.empty_url, None, None, PROBES, seconds, seed, warmup=seconds / 2)
            )
        )
        asking.start()
        load = open_loop(
            server.url, server.work.picture, server.work.media_type, rate, seconds, seed, warmup=seconds / 2
        )
        asking.join()
        return load, probes[0]
    finally:
        server.running.pause()


def memory_growth(live: Live, counts: tuple[int, ...], callers: int) -> dict[str, int]:
    """Peak memory of the process tree, in bytes, once so many images have been answered since its start."""
    done = 0.0
    peaks: dict[str, int] = {}
    for count in counts:
        while done < count:
            figures = live.measure(callers, 2)
            done += figures.throughput * 2
        peaks[str(count)] = peak_memory(live.pid)
    return peaks


def is_server(name: str) -> bool:
    return name != Limit.name

"""Measurements that take turns: every entrant once in each round, the first one another each time.

What slows the machine for a while then slows all of them, and figures are compared within a round.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.entrants import Live, LiveServer, as_json
from benchmarks.load import Load, open_loop
from benchmarks.process import peak_memory
from benchmarks.targets import QUEUE_IMAGES

PROBES = 100.0
"""Requests a second that ask the empty route meanwhile: enough for a p99 over the rounds, too few to matter."""


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
            warmup = seconds / 2
            if share > 1:  # until our queue is full, and as long for the others: what they do then is the question
                warmup += 1.2 * QUEUE_IMAGES / (capacity[name] * (share - 1))
            load, empty = _overload(servers[name], share * capacity[name], seconds, warmup, seed=number)
            found[name].append({**load._asdict(), "empty_p99_s": empty.p99_s, "empty_ok": empty.ok})
    return found


def _overload(server: LiveServer, rate: float, seconds: float, warmup: float, seed: int) -> tuple[Load, Load]:
    server.running.resume()
    try:
        with ThreadPoolExecutor(1) as aside:
            asking = aside.submit(open_loop, server.empty_url, None, None, PROBES, seconds, seed, warmup=warmup)
            load = open_loop(
                server.url, server.work.picture, server.work.media_type, rate, seconds, seed, warmup=warmup
            )
            return load, asking.result()
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

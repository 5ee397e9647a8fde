"""The best settings of an entrant for a work, by the same search for all of them.

Coordinate descent from what a good engineer would set first: each setting in turn, each of its values side by side with
the best so far. A value is taken only where it is faster by more than runs of the same thing differ.
"""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.entrants import Entrant, Live
from benchmarks.works import Work

CALLERS = 16
MARGIN = 1.03


class Found(NamedTuple):
    settings: dict[str, Any]
    tried: int


def search(
    entrant: Entrant, work: Work, query: str, cpus: int, cache: Path, *, seconds: float = 2, pairs: int = 2
) -> Found:
    """The settings that answer the most images a second at `CALLERS` callers."""
    best = entrant.defaults(cpus)
    live = entrant.enter(work, query, best, cache)
    tried = 1
    try:
        for name, values in entrant.space(cpus).items():
            for value in values:
                if best.get(name) == value:
                    continue
                other = {**best, name: value}
                rival = entrant.enter(work, query, other, cache)
                tried += 1
                if _faster(rival, live, seconds, pairs):
                    live, rival, best = rival, live, other
                rival.stop()
    finally:
        live.stop()
    return Found(best, tried)


def _faster(rival: Live, live: Live, seconds: float, pairs: int) -> bool:
    ratios = []
    for _ in range(pairs):
        ours = rival.measure(CALLERS, seconds).throughput
        ratios.append(ours / max(live.measure(CALLERS, seconds).throughput, 1e-9))
        if ratios[0] < 1 / MARGIN:  # clearly slower: a second pair would not change that
            return False
    return statistics.median(ratios) > MARGIN

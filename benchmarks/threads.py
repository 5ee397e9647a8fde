"""Where the CPUs' time goes while the service answers as fast as it can: the profile beside the targets.

    python -m benchmarks.threads [--work cct] [--callers 16] [--seconds 5] [--rounds 5]

Shares of all CPUs: the event loop's thread, the sessions' threads, the generator of the load, everything else that ran,
and nobody. What nobody used, while callers waited, went into waiting for each other: for the GIL above all.
"""

import argparse
import os
import statistics
from pathlib import Path

from benchmarks.contestants import OURS
from benchmarks.entrants import Server
from benchmarks.process import TICKS
from benchmarks.works import CACHE, works

PARTS = ("event loop", "sessions", "generator", "others", "nobody")


def busy_by_thread(pid: int) -> dict[int, float]:
    """CPU seconds of each thread of a process."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found[int(task.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    return found


def machine() -> tuple[float, float]:
    """(busy, idle) CPU seconds of the whole machine since it started."""
    # proc_stat(5): user nice system idle iowait irq softirq steal
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / TICKS, (ticks[3] + ticks[4]) / TICKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="cct", choices=("cct", "vit-ti", "large"))
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    live = Server(OURS).enter(works(CACHE)[given.work], "map", OURS.defaults(os.cpu_count() or 1), CACHE)
    shares: dict[str, list[float]] = {part: [] for part in PARTS}
    rates, switches = [], []
    try:
        for _ in range(given.rounds):
            before, (busy, idle), changed = busy_by_thread(live.pid), machine(), _switches(live.pid)
            figures = live.measure(given.callers, given.seconds)
            after, (busier, idler) = busy_by_thread(live.pid), machine()
            whole = busier - busy + idler - idle
            own = {thread: seconds - before.get(thread, 0.0) for thread, seconds in after.items()}
            loop, generator = own.pop(live.pid), figures.generator_cpu_share * given.seconds
            seconds = (loop, sum(own.values()), generator)
            for part, spent in zip(PARTS, (*seconds, busier - busy - sum(seconds), idler - idle), strict=True):
                shares[part].append(spent / whole)
            rates.append(figures.throughput)
            switches.append((_switches(live.pid) - changed) / (figures.throughput * given.seconds))
    finally:
        live.stop()
    print(f"{statistics.median(rates):,.0f} images/s, {statistics.median(switches):.1f} context switches an image")
    for part in PARTS:
        print(f"{part}: {statistics.median(shares[part]):.0%} of the CPUs")


def _switches(pid: int) -> int:
    """Context switches of all threads of a process, of their own will and not."""
    lines = [
        line for task in Path(f"/proc/{pid}/task").iterdir() for line in (task / "status").read_text().splitlines()
    ]
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


if __name__ == "__main__":
    main()

"""Load on a server over HTTP, from a process of its own: `closed` waits for each answer, `open_loop` waits for none.

Every request shows in the figures: one that was refused, failed or never sent is counted, and the generator says how
much of a core it took itself and how often it was behind.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.stats import percentile

HERE = Path(__file__).parent
OCTETS = "application/octet-stream"
TIMEOUT_S = 15
"""How long an answer may take."""


class Load(NamedTuple):
    """What one run saw; times in seconds, None where there was nothing to take them from."""

    requests: int
    """Answered, with any status."""
    ok: int
    """Answered with 2xx."""
    statuses: dict[str, int]
    """By code; `closed` knows only "2xx" and "non-2xx"."""
    errors: int
    """Connections that failed or were closed before the answer, and answers that did not come in time."""
    seconds: float
    throughput: float
    """2xx answers that came within the run, a second."""
    p50_s: float | None
    p99_s: float | None
    """Of 2xx answers; open loop counts from when the request was due, closed loop from when it was sent."""
    refusal_p50_s: float | None
    refusal_p99_s: float | None
    """Of answers 429 and 503."""
    generator_cpu_share: float
    """Of one core."""
    offered: float | None = None
    """Open loop: requests that were due, a second."""
    late: int | None = None
    """Open loop: requests sent more than 5 ms after they were due."""
    dropped: int | None = None
    """Open loop: requests not sent, because every allowed connection waited for an answer."""


def closed(url: str, body: Path | None, media_type: str | None, callers: int, seconds: float) -> Load:
    """wrk with one thread: `callers` connections, each of which sends again once it has its answer. No body: GET.

    The last request of each caller may go unanswered and uncounted. wrk does not tell latencies by status, so there
    are none where an answer was not 2xx. Raises ValueError for a part of a second, RuntimeError where wrk does not run.
    """
    if seconds != int(seconds) or seconds < 1:
        raise ValueError(f"wrk runs for whole seconds, not {seconds}")
    wrk = shutil.which("wrk")
    if wrk is None:
        raise RuntimeError("the closed loop needs wrk: apt-get install wrk (the Debian package `wrk`)")
    command: list[str | Path] = [wrk, "-t1", f"-c{callers}", f"-d{int(seconds)}s", f"--timeout={TIMEOUT_S}s"]
    command += ["-s", HERE / "post.lua", url]
    if body is not None:
        command += ["--", body.resolve(), media_type or OCTETS]
    said = json.loads(_last_line(command, seconds + 60))
    requests, refused = said["requests"], said["refused"]
    expected = said["duration_us"] // max(requests // callers, 1)
    latencies = as_measured(said["histogram"], expected)
    if len(latencies) != requests - said["timeouts"]:
        raise RuntimeError(f"wrk's latencies are of {len(latencies)} answers, not of {requests}: another wrk than 4.1?")
    told = [] if refused else latencies
    ok, duration = requests - refused, said["duration_us"] / 1e6
    return Load(
        requests=requests,
        ok=ok,
        statuses={name: count for name, count in (("2xx", ok), ("non-2xx", refused)) if count},
        errors=said["sockets"] + said["timeouts"],
        seconds=duration,
        throughput=ok / duration,
        p50_s=percentile(told, 50),
        p99_s=percentile(told, 99),
        refusal_p50_s=None,
        refusal_p99_s=None,
        generator_cpu_share=said["cpu_s"] / duration,
    )


def as_measured(histogram: Iterable[tuple[int, int]], expected: int) -> list[float]:
    """Latencies in seconds from wrk's [microseconds, count], without those that wrk makes up.

    wrk adds, for each answer that took 2 `expected` or more, answers that took 1, 2, ... `expected` less, down to
    `expected` (against coordinated omission). A closed loop omits nothing, and with one slow answer in ten this nearly
    doubles the count. What was added at one latency is all that stands at the latency `expected` higher.
    """
    counts = dict(histogram)
    values: list[float] = []
    for latency, count in counts.items():
        added = counts.get(latency + expected, 0) if latency > expected else 0
        values += [latency / 1e6] * (count - added)
    return values


def open_loop(
    url: str,
    body: Path | None,
    media_type: str | None,
    rate: float,
    seconds: float,
    seed: int,
    connections: int = 2048,
    warmup: float = 0,
) -> Load:
    """`benchmarks.poisson`: arrivals at random, `rate` a second on average, sent when due. No body: GET.

    Raises RuntimeError, with the reason, where the generator ends without a result.
    """
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.poisson", url]
    command += ["--rate", repr(rate), "--seconds", repr(seconds), "--seed", str(seed), "--warmup", repr(warmup)]
    command += ["--connections", str(connections), "--timeout", str(TIMEOUT_S)]
    if body is not None:
        command += ["--body", body.resolve(), "--media-type", media_type or OCTETS]
    return Load(**json.loads(_last_line(command, warmup + seconds + TIMEOUT_S + 60)))


def _last_line(command: Sequence[str | Path], timeout: float) -> str:
    ran = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=timeout, check=False)
    lines = ran.stdout.strip().splitlines()
    if ran.returncode != 0 or not lines or not lines[-1].startswith("{"):
        raise RuntimeError(f"{Path(command[0]).name} ended with {ran.returncode}: {(ran.stderr or ran.stdout).strip()}")
    return lines[-1]

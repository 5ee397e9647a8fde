"""`saccade classify` against the capacity that wrk finds, and an exchange of our client against those of others.

    python -m benchmarks.client [--rounds 7] [--seconds 10] [--callers 16] [--works cct vit-ti]

In pairs, on one service with its defaults: wrk with so many callers, then the command with as many pictures as take
about as long, without its start, which is that of a run with one picture just before. Then the CPU that one exchange
costs this process with each client, in 16 threads.
"""

import argparse
import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from benchmarks.contestants import Ours
from benchmarks.entrants import LiveServer
from benchmarks.load import closed
from benchmarks.stats import paired_ratio
from benchmarks.works import CACHE, QUERIES, ROOT, Work, works
from saccade.api import ClassifyOptions
from saccade.client import Client, Effort

_QUERY = "labels"
_EXCHANGES = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--works", nargs="+", default=["cct", "vit-ti"])
    options = parser.parse_args()
    known = works()
    for name in options.works:
        compare(known[name], options.rounds, options.seconds, options.callers)
    exchanges(known["cct"], options.callers)


def compare(work: Work, rounds: int, seconds: int, callers: int) -> None:
    """Prints images a second of both, each round, and their ratio."""
    live = LiveServer(Ours("ours", "the service"), work, _QUERY, {}, CACHE)
    live.running.resume()
    capacity, reached = [], []
    try:
        with tempfile.TemporaryDirectory(dir=CACHE) as place:
            folder = Path(place)
            for _ in range(rounds):
                load = closed(live.url, work.picture, work.media_type, callers, seconds)
                capacity.append(load.throughput)
                start = _command(live.running.url, folder, callers, _fill(folder / "pictures", work.picture, 1))
                count = _fill(folder / "pictures", work.picture, round(load.throughput * seconds))
                reached.append((count - 1) / (_command(live.running.url, folder, callers, count) - start))
                print(f"{work.name}: wrk {capacity[-1]:.1f} images/s, saccade classify {reached[-1]:.1f}", flush=True)
    finally:
        live.stop()
    ratio = paired_ratio(reached, capacity)
    print(f"{work.name}: {ratio.median:.3f} of the capacity ({ratio.low:.3f} to {ratio.high:.3f}, {ratio.pairs} pairs)")


def exchanges(work: Work, callers: int) -> None:
    """Prints microseconds of CPU an exchange, the median of five."""
    live = LiveServer(Ours("ours", "the service"), work, _QUERY, {}, CACHE)
    live.running.resume()
    body, path = work.picture.read_bytes(), f"/v1/classify?{QUERIES[_QUERY]}"
    address = urlsplit(live.running.url).netloc
    with Client(live.running.url) as client, httpx.Client(base_url=live.running.url) as other:
        ask, effort = client.asking(ClassifyOptions(maps="none")), Effort()

        def ours() -> Callable[[], bytes]:
            return lambda: ask(body, effort)

        def standard() -> Callable[[], bytes]:
            connection = http.client.HTTPConnection(address)

            def exchange() -> bytes:
                connection.request("POST", path, body)
                return connection.getresponse().read()

            return exchange

        def of_httpx() -> Callable[[], bytes]:
            return lambda: other.post(path, content=body).content

        try:
            for name, make in (("saccade", ours), ("http.client", standard), ("httpx", of_httpx)) * 2:
                costs = [_cost(make, callers) for _ in range(5)]
                print(f"{name}: {statistics.median(costs) * 1e6:.0f} microseconds of CPU an exchange")
        finally:
            live.stop()


def _cost(make: Callable[[], Callable[[], bytes]], threads: int) -> float:
    def caller() -> None:
        exchange = make()
        for _ in range(_EXCHANGES):
            assert exchange().startswith(b"{")

    callers = [threading.Thread(target=caller) for _ in range(threads)]
    before = time.process_time()
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    return (time.process_time() - before) / (threads * _EXCHANGES)


def _fill(folder: Path, picture: Path, count: int) -> int:
    """Makes it hold `count` pictures, in so many files."""
    folder.mkdir(exist_ok=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        if number >= count:
            path.unlink()
    for number in range(count):
        path = folder / f"{number:07}{picture.suffix}"
        if not path.exists():
            path.write_bytes(picture.read_bytes())
    return count


def _command(url: str, folder: Path, callers: int, count: int) -> float:
    """Seconds that it takes for all of the `count` pictures."""
    out = folder / "results.jsonl"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "saccade.cli", "classify", str(folder / "pictures"), "--url", url]
    command += ["--out", str(out), "--maps", "none", "--concurrency", str(callers)]
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    assert out.read_bytes().count(b"\n") == count
    return seconds


if __name__ == "__main__":
    main()

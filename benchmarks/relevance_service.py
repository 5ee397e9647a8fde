"""What maps of the gradient cost those who do not ask for them, and those who do, in a running service.

    python -m benchmarks.relevance_service [--rounds 7] [--seconds 5] [--callers 16] [--works cct vit-ti] [--provider P]

In pairs. Labels from a service whose relevance.onnx is open, against one with SACCADE_RELEVANCE=off. A single caller
with `maps=relevance`, for one class and for five, against labels. And how long labels take while as many callers again
ask for relevance, against as many again who ask for labels.
"""

import argparse
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from benchmarks.contestants import Ours
from benchmarks.entrants import Figures, LiveServer
from benchmarks.load import Load, closed
from benchmarks.stats import Ratio, paired_ratio
from benchmarks.works import CACHE, QUERIES, Work, works
from service.placement import CPU

LABELS = QUERIES["labels"]
ONE, FIVE = "maps=relevance", "maps=relevance&classes=topk&top_k=5"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--works", nargs="+", default=["cct", "vit-ti"])
    parser.add_argument("--provider", default=CPU, help="the services' execution provider")
    options = parser.parse_args()
    known = works()
    for name in options.works:
        work = known[name]
        with ExitStack() as stack:
            live: dict[str, LiveServer] = {}
            for relevance in ("start", "off"):
                settings = {"relevance": relevance, "providers": options.provider}
                live[relevance] = LiveServer(Ours("ours", "the service"), work, "labels", settings, CACHE)
                stack.callback(live[relevance].stop)
            with_ = live["start"]
            pay_nothing(work, with_, live["off"], options.rounds, options.seconds, options.callers)
            with_.running.resume()
            cost(work, with_.running.url, options.rounds, options.seconds)
            beside(work, with_.running.url, options.rounds, options.seconds, options.callers // 2)


def pay_nothing(work: Work, with_: LiveServer, without: LiveServer, rounds: int, seconds: int, callers: int) -> None:
    """Prints ratios, with over without, of images a second, the median time and the CPU time of an image: of many
    callers, and of one.
    """
    for count in (callers, 1):
        found: Mapping[bool, list[Figures]] = {True: [], False: []}
        for number in range(rounds):
            pair = ((True, with_), (False, without))
            for key, live in pair if number % 2 else reversed(pair):
                figures = live.measure(count, seconds)
                if figures.failed:
                    raise RuntimeError(f"{work.name}: {figures.failed} requests of {count} callers had no 2xx answer")
                found[key].append(figures)
        rate, time, cpu = (
            _said(paired_ratio(*([getattr(one, name) for one in found[key]] for key in (True, False))))
            for name in ("throughput", "p50_s", "cpu_s")
        )
        print(f"{work.name}: labels with relevance.onnx open / off, callers: {count}: {rate} images/s, {time} median "
              f"time, {cpu} CPU time", flush=True)  # fmt: skip


def cost(work: Work, url: str, rounds: int, seconds: int) -> None:
    """Prints the ratio of a single caller's median times: relevance for one class and for five, over labels."""
    found: dict[str, list[float]] = {query: [] for query in (LABELS, ONE, FIVE)}
    for _ in range(rounds):
        for query, times in found.items():
            times.append(_p50(_ask(work, url, query, 1, seconds)))
    for query in (ONE, FIVE):
        print(f"{work.name}: {query} / labels, 1 caller: {_said(paired_ratio(found[query], found[LABELS]))} median "
              "time", flush=True)  # fmt: skip


def beside(work: Work, url: str, rounds: int, seconds: int, callers: int) -> None:
    """Prints the median and the 99th percentile of labels beside callers of relevance, over those beside callers of
    labels.
    """
    p50: dict[str, list[float]] = {LABELS: [], ONE: []}
    p99: dict[str, list[float]] = {LABELS: [], ONE: []}
    with ThreadPoolExecutor(1) as aside:
        for _ in range(rounds):
            for query in (LABELS, ONE):
                others = aside.submit(_ask, work, url, query, callers, seconds)
                load = _ask(work, url, LABELS, callers, seconds)
                others.result()
                p50[query].append(_p50(load))
                assert load.p99_s is not None
                p99[query].append(load.p99_s)
    print(f"{work.name}: labels of {callers} callers, beside {callers} of relevance / beside {callers} of labels: "
          f"{_said(paired_ratio(p50[ONE], p50[LABELS]))} median time, {_said(paired_ratio(p99[ONE], p99[LABELS]))} "
          "99th percentile", flush=True)  # fmt: skip


def _ask(work: Work, url: str, query: str, callers: int, seconds: int) -> Load:
    load = closed(f"{url}/v1/classify?{query}", work.picture, work.media_type, callers, seconds)
    if load.ok < load.requests or load.errors:
        raise RuntimeError(f"{work.name}, {query}: {load.statuses}, and {load.errors} connections failed")
    return load


def _p50(load: Load) -> float:
    assert load.p50_s is not None
    return load.p50_s


def _said(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


if __name__ == "__main__":
    main()

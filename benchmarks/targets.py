"""What the engine is held to, and what a run says of it. A target that is not met stays in the page as not met."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.stats import Ratio, median_interval, paired_ratio

QUEUE_IMAGES = 256
"""The service's default bound on images, which the measured servers have."""
MEMORY_ABOVE_LIMIT = 90 * 2**20
FLAT = 0.02
"""Growth of the peak that counts as none: the allocator's own steps."""


class Target(NamedTuple):
    what: str
    bound: str
    measured: str
    met: bool


def targets(parts: Mapping[str, Any]) -> list[Target]:
    """All that the parts of a run allow to judge."""
    found = []
    for work, title, against_limit, latency, kept in (
        ("vit-ti", "ViT-Ti", 0.93, 1.3, 0.95),
        ("cct", "CCT", 0.55, 2.0, 0.75),
    ):
        if f"{work}/closed/map/16" not in parts:
            continue
        runs = parts[f"{work}/closed/map/16"]
        found.append(
            _at_least(f"{title}, 16 callers: images/s against the limit", against_limit, _ratio(runs, "ours", "limit"))
        )
        if work == "vit-ti":
            peers = [name for name in runs if name not in ("ours", "limit", "before")]
            best = max(peers, key=lambda name: statistics.median(run["throughput"] for run in runs[name]))
            found.append(
                _at_least(
                    f"{title}, 16 callers: against the best of these peers ({best})", 1.1, _ratio(runs, "ours", best)
                )
            )
        else:
            found.append(
                _at_least(f"{title}, 16 callers: against LitServe", 1.5, _ratio(runs, "ours", "litserve_batch"))
            )
        found.append(
            _at_least(
                f"{title}: labels and default map against labels only",
                0.95,
                _ratio(parts[f"{work}/map-or-labels"], "map", "labels"),
            )
        )
        alone = parts[f"{work}/closed/map/1"]
        p50 = paired_ratio([run["p50_s"] for run in alone["ours"]], [run["p50_s"] for run in alone["limit"]])
        found.append(_at_most(f"{title}, one caller: p50 against the bare loop's time for one picture", latency, p50))
        found += _overload(parts, work, title, kept)
        found += _memory(parts[f"{work}/memory"], title)
        starts = parts[f"{work}/start"]
        found.append(
            _at_most(
                f"{title}: start to ready, against the same imports and sessions bare",
                2.0,
                paired_ratio(starts["ours"], starts["bare"]),
            )
        )
    return found


def _overload(parts: Mapping[str, Any], work: str, title: str, kept: float) -> list[Target]:
    """Under twice the capacity: what is still answered, and how fast it is said what is not."""
    runs = parts[f"{work}/open/2"]["ours"]
    closed = parts.get(f"{work}/closed/map/64", parts[f"{work}/closed/map/16"])
    peak = statistics.median(run["throughput"] for run in closed["ours"])
    plan = parts[f"{work}/plan"]
    running = plan["instances"] * plan["max_batch"]
    answered = median_interval([run["throughput"] / peak for run in runs])
    accepted = median_interval([run["p99_s"] * run["throughput"] / (plan["queue_images"] + running) for run in runs])
    refusals = [run["refusal_p99_s"] / run["empty_p99_s"] for run in runs if run["refusal_p99_s"]]
    found = [
        _at_least(f"{title}, open loop at 200 %: answered images/s against the peak", kept, Ratio(*answered)),
        _at_most(f"{title}, open loop at 200 %: p99 of the accepted, of the queue's bound", 1.0, Ratio(*accepted)),
    ]
    if refusals:
        refused = Ratio(*median_interval(refusals))
        found.append(
            _at_most(f"{title}, open loop at 200 %: p99 of refusals, of an empty route meanwhile", 3.0, refused)
        )
    return found


def _memory(peaks: Mapping[str, Mapping[str, int]], title: str) -> list[Target]:
    first, last = list(peaks["ours"])
    above = peaks["ours"][last] - peaks["limit"][last]
    growth = peaks["ours"][last] / peaks["ours"][first] - 1
    return [
        Target(
            f"{title}: peak memory after {int(last):,} images, above the bare loop's", "at most 90 MiB",
            f"{above / 2**20:.0f} MiB", above <= MEMORY_ABOVE_LIMIT,
        ),
        Target(
            f"{title}: the peak's growth from image {int(first):,} to {int(last):,}", f"none (within {FLAT:.0%})",
            f"{growth:.1%}", growth <= FLAT,
        ),
    ]  # fmt: skip


def _ratio(runs: Mapping[str, Sequence[Mapping[str, float]]], ours: str, theirs: str) -> Ratio:
    return paired_ratio([run["throughput"] for run in runs[ours]], [run["throughput"] for run in runs[theirs]])


def _at_least(what: str, bound: float, ratio: Ratio) -> Target:
    return Target(what, f"at least {bound:g}", _shown(ratio), ratio.median >= bound)


def _at_most(what: str, bound: float, ratio: Ratio) -> Target:
    return Target(what, f"at most {bound:g}", _shown(ratio), ratio.median <= bound)


def _shown(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}, {ratio.coverage:.0%})"

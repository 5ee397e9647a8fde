"""What is called met is met."""

from typing import Any

import pytest

from benchmarks.targets import targets


def runs(*throughputs: float, **more: float) -> list[dict[str, float]]:
    return [{"throughput": value, "p50_s": 1 / value, **more} for value in throughputs]


def peaks(ours: int, later: int, limit: int = 100) -> dict[str, dict[str, int]]:
    """MiB after 2,000 and 10,000 images."""
    mib = 2**20
    return {"ours": {"2000": ours * mib, "10000": later * mib}, "limit": {"2000": limit * mib, "10000": limit * mib}}


def parts(work: str) -> dict[str, Any]:
    """Three rounds in which everything is just good enough."""
    entrants = {"limit": runs(100, 200, 300), "ours": runs(95, 190, 285), "fastapi_pool": runs(80, 160, 240),
                "litserve_batch": runs(50, 100, 150)}  # fmt: skip
    overload = {"p99_s": 2.0, "refusal_p99_s": 0.03, "empty_p99_s": 0.02}
    return {
        f"{work}/closed/map/1": entrants,
        f"{work}/closed/map/16": entrants,
        f"{work}/closed/map/64": {"ours": runs(100, 100, 100)},
        f"{work}/map-or-labels": {"map": runs(98, 99, 100), "labels": runs(100, 100, 100)},
        f"{work}/open/2": {"ours": runs(96, 97, 98, **overload)},
        f"{work}/plan": {"instances": 2, "max_batch": 4, "queue_images": 256},
        f"{work}/memory": peaks(150, 151),
        f"{work}/start": {"ours": [1.5, 1.6, 1.7], "bare": [1.0, 1.0, 1.0]},
    }  # fmt: skip


def judged(given: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """(measured, met) by the last words of what."""
    return {target.what.partition(": ")[2] or target.what: (target.measured, target.met) for target in targets(given)}


@pytest.mark.parametrize("work", ["vit-ti", "cct"])
def test_a_run_that_is_good_enough_meets_every_target(work: str) -> None:
    """One row for each of the table, but for the peer that it is held against."""
    found = targets(parts(work))
    assert [target.what for target in found if not target.met] == []
    assert len(found) == 10


def test_ratios_are_worked_out_round_by_round() -> None:
    """0.95 of the limit in each round; the best peer is the one with the highest median."""
    found = judged(parts("vit-ti"))
    assert found["images/s against the limit"][0].startswith("0.95 (0.95 to 0.95")
    assert found["against the best of these peers (fastapi_pool)"][0].startswith("1.19 (")
    assert judged(parts("cct"))["against LitServe"][0].startswith("1.90 (")


@pytest.mark.parametrize(
    ("part", "value", "what"),
    [
        ("vit-ti/closed/map/16", {"limit": runs(100, 200, 300), "ours": runs(92, 184, 300), "other": runs(1, 1, 1)},
         "images/s against the limit"),
        ("vit-ti/closed/map/16", {"limit": runs(1, 1, 1), "ours": runs(109, 109, 200), "other": runs(100, 100, 100)},
         "against the best of these peers (other)"),
        ("vit-ti/closed/map/1", {"limit": runs(100, 100, 100), "ours": runs(70, 76, 100)},
         "p50 against the bare loop's time for one picture"),
        ("vit-ti/map-or-labels", {"map": runs(94, 94, 94), "labels": runs(100, 100, 100)},
         "labels and default map against labels only"),
        ("vit-ti/start", {"ours": [2.1, 2.1, 2.1], "bare": [1.0, 1.0, 1.0]},
         "start to ready, against the same imports and sessions bare"),
        ("vit-ti/memory", peaks(191, 191),
         "peak memory after 10,000 images, above the bare loop's"),
        ("vit-ti/memory", peaks(150, 154),
         "the peak's growth from image 2,000 to 10,000"),
    ],
)  # fmt: skip
def test_what_is_missed_is_not_met(part: str, value: Any, what: str) -> None:
    """One figure beyond its bound makes that target, and no other, missed."""
    found = judged({**parts("vit-ti"), part: value})
    assert [name for name, (_, met) in found.items() if not met] == [what]


@pytest.mark.parametrize(
    ("run", "what"),
    [
        ({"throughput": 94, "p99_s": 2.0, "refusal_p99_s": 0.03, "empty_p99_s": 0.02},
         "answered images/s against the peak"),
        ({"throughput": 100, "p99_s": 2.7, "refusal_p99_s": 0.03, "empty_p99_s": 0.02},
         "p99 of the accepted, of the queue's bound"),
        ({"throughput": 100, "p99_s": 2.0, "refusal_p99_s": 0.07, "empty_p99_s": 0.02},
         "p99 of refusals, of an empty route meanwhile"),
    ],
)  # fmt: skip
def test_overload_is_judged_by_what_was_answered_how_late_and_how_fast_the_rest_was_told(
    run: dict[str, float], what: str
) -> None:
    """264 images at 100 a second are bounded by 2.64 s."""
    found = judged({**parts("vit-ti"), "vit-ti/open/2": {"ours": [run] * 3}})
    assert [name for name, (_, met) in found.items() if not met] == [what]

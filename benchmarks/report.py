"""docs/benchmarks.md and its plots, from the JSON of a run. Nothing in the page is typed by hand but `notes.md`.

python -m benchmarks.report [--results FILE] [--out FILE]
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS
from benchmarks.entrants import Limit
from benchmarks.run import CALLERS, SHARES
from benchmarks.stats import median_interval
from benchmarks.targets import Target, targets
from benchmarks.works import ROOT

HERE = Path(__file__).parent
TITLES = {
    "limit": Limit.title,
    **{name: contestant.title for name, contestant in CONTESTANTS.items()},
    "before": "Saccade before this engine",
}
WORKS = {
    "cct": "CCT-2/3x2, 32 x 32 PNG",
    "vit-ti": "ViT-Ti/16 at 224 pixels, 500 x 375 JPEG",
    "large": "CCT-2/3x2, 12-megapixel JPEG",
}
SHORT = {"limit": "bare loop", **{name: each.short for name, each in CONTESTANTS.items()}, "before": "Saccade before"}
STEPS = {
    "options": "options and selection",
    "decode": "decode",
    "preprocess": "preprocess",
    "run": "run (ONNX Runtime, one thread)",
    "postprocess": "postprocess",
    "encode": "encode",
}

_OPEN_TIMES = ("p50_s", "p99_s", "refusal_p99_s", "empty_p99_s")

Parts = Mapping[str, Any]


def page(parts: Parts, pictures: str) -> str:
    """The whole page; `pictures` is the folder of its plots, relative to it."""
    works = [name for name in WORKS if f"{name}/closed/map/16" in parts]
    sections = [_head(parts), _targets(targets(parts))]
    if not parts["effort"]["quick"]:  # they are about a full run
        sections.append((HERE / "notes.md").read_text(encoding="utf-8").strip())
    for work in works:
        sections += [_work(parts, work, pictures)]
    return "\n\n".join(sections) + "\n"


def _head(parts: Parts) -> str:
    machine, effort = parts["machine"], parts["effort"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    quick = "**This is a quick run: an indication, no more.** " if effort["quick"] else ""
    return f"""# Benchmarks

{quick}Measured by `make bench` (commit {machine["commit"]}); `make bench QUICK=1` gives an indication in some minutes.
Both need Linux and [wrk](https://github.com/wg/wrk) (`apt-get install wrk`). The figures are in
[benchmarks.json](benchmarks.json), and this page is made from them.

Machine: {machine["cpu"]}, {machine["cpus_usable"]} CPUs usable, {machine["memory"] / 2**30:.0f} GiB, Linux
{machine["kernel"]}, Python {machine["python"]}; {", ".join(machine["flags"])}. {packages}.

Everything runs on the same machine, the generator of the load too; entrants that are not being measured are stopped
in their tracks. {_search_of(parts)} Then they take turns, {effort["rounds"]} rounds: figures are medians over the
rounds, ratios are medians of ratios within a round, with an interval that holds the true median with the probability
beside it. The limit is a bare loop in one process without HTTP or queue: decode, preprocess, run, postprocess, encode;
for one caller, one of its threads alone. Peers use the same model file, preprocessing and answer; memory is the sum of
the peaks of an entrant's processes, so a page that they share counts in each. Machines differ; ratios travel better
than figures."""


def _search_of(parts: Parts) -> str:
    if any(found["tried"] for name, found in parts.items() if "/settings/" in name):
        return "Each entrant's settings were found by the same search: 16 callers, each value side by side."
    return "Settings were not searched: they are what a good engineer would set first."


def _targets(found: Sequence[Target]) -> str:
    lines = ["## Targets", "", "| what | target | measured (interval, its coverage) | |", "|---|---|---|---|"]
    for target in found:
        lines.append(f"| {target.what} | {target.bound} | {target.measured} | {_verdict(target.met)} |")
    return "\n".join(lines)


def _verdict(met: bool) -> str:
    return "met" if met else "**not met**"


def _work(parts: Parts, work: str, pictures: str) -> str:
    lines = [
        f"## {WORKS[work]}",
        "",
        f"![Images a second at 16 callers, and time to the answer]({pictures}/{work}.svg)",
        "",
    ]
    for callers in [callers for callers in CALLERS if f"{work}/closed/map/{callers}" in parts]:
        lines += _closed(
            f"{callers} caller{'s' * (callers > 1)}, labels and default map", parts[f"{work}/closed/map/{callers}"]
        )
    if f"{work}/closed/labels/16" in parts:
        lines += _closed("16 callers, labels only", parts[f"{work}/closed/labels/16"])
    lines += _settings(parts, work)
    if f"{work}/open/2" in parts:
        lines += _open(parts, work)
    if f"{work}/memory" in parts:
        lines += _memory(parts[f"{work}/memory"])
    lines += _steps(parts, work)
    return "\n".join(lines).rstrip()


def _closed(title: str, runs: Mapping[str, Any]) -> list[str]:
    lines = [
        f"### {title}", "",
        "| | images/s | of the limit | p50 ms | p99 ms | CPU ms an image | peak memory MiB |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, own in runs.items():
        # a peer that answers nothing within a run has 0 of the limit, which is a figure; the limit itself never has
        pairs = zip(own, runs["limit"], strict=True)
        ratio = median_interval([run["throughput"] / limit["throughput"] for run, limit in pairs])
        times = [_milliseconds(own, which) for which in ("p50_s", "p99_s")]
        cpu = statistics.median(run["cpu_s"] for run in own) * 1e3
        memory = max(run["peak_memory"] for run in own) / 2**20
        share = "1" if name == "limit" else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        failed = sum(run["failed"] for run in own)
        title = TITLES[name] + (f" ({failed} failed)" if failed else "")
        lines.append(
            f"| {title} | {_figure(statistics.median(run['throughput'] for run in own))} | {share} | "
            f"{times[0]} | {times[1]} | {_figure(cpu)} | {memory:.0f} |"
        )
    return [*lines, ""]


def _settings(parts: Parts, work: str) -> list[str]:
    lines = ["### Settings", "", "| | settings | tried by the search |", "|---|---|---|"]
    for name in ("limit", *CONTESTANTS):
        found = parts[f"{work}/settings/{name}"]
        chosen = ", ".join(f"{key} {_word(value)}" for key, value in found["settings"].items()) or "its defaults"
        lines.append(f"| {TITLES[name]} | {chosen} | {found['tried'] or ''} |")
    return [*lines, ""]


def _open(parts: Parts, work: str) -> list[str]:
    lines = [
        "### Open loop: requests arrive whether or not earlier ones are answered", "",
        "| | load | offered/s | answered/s | refused | unanswered | p50 ms | p99 ms | p99 of refusals ms | "
        "p99 of an empty route ms | generator's CPU |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for share in [share for share in SHARES if f"{work}/open/{share:g}" in parts]:
        for name, runs in parts[f"{work}/open/{share:g}"].items():
            requests = sum(run["requests"] + run["errors"] + run["dropped"] for run in runs)
            refused = sum(count for run in runs for status, count in run["statuses"].items() if status != "200")
            lost = sum(run["errors"] + run["dropped"] for run in runs)
            lines.append(
                f"| {TITLES[name]} | {share:.0%} | {_figure(_median(runs, 'offered'))} | "
                f"{_figure(_median(runs, 'throughput'))} | {refused / requests:.1%} | {lost / requests:.1%} | "
                f"{' | '.join(_milliseconds(runs, which) for which in _OPEN_TIMES)} | "
                f"{_median(runs, 'generator_cpu_share'):.0%} |"
            )
    return [*lines, ""]


def _memory(peaks: Mapping[str, Mapping[str, int]]) -> list[str]:
    counts = list(next(iter(peaks.values())))
    head = " | ".join(f"after {int(count):,}" for count in counts)
    lines = ["### Peak memory in MiB, by images answered", "", f"| | {head} |", "|---|" + "---|" * len(counts)]
    lines += [
        f"| {TITLES[name]} | " + " | ".join(f"{own[count] / 2**20:.1f}" for count in counts) + " |"
        for name, own in peaks.items()
    ]
    return [*lines, ""]


def _steps(parts: Parts, work: str) -> list[str]:
    """What an image costs in each step; the rest of its CPU time went into HTTP, threads and metrics."""
    found = parts[f"{work}/steps"]
    trees = [name for name in ("before", "after") if name in found]
    totals = {
        name: statistics.median(
            run["cpu_s"] for run in parts[f"{work}/closed/map/16"]["before" if name == "before" else "ours"]
        )
        * 1e6
        for name in trees
    }
    lines = [
        "### Where the time of an image goes, in microseconds", "",
        f"Steps alone in one thread, batches of {found['batch']}; the total is CPU time of the server under 16 callers,"
        " where two busy cores make each step slower.", "",
        "| step | " + " | ".join(trees) + " |", "|---|" + "---|" * len(trees),
    ]  # fmt: skip
    for step, title in STEPS.items():
        lines.append(f"| {title} | " + " | ".join(_figure(found[name][step]) for name in trees) + " |")
    rest = {name: totals[name] - sum(found[name].values()) for name in trees}
    lines.append(
        "| HTTP, threads, metrics, and what contention adds | "
        + " | ".join(_figure(rest[name]) for name in trees)
        + " |"
    )
    lines.append("| **all of it** | " + " | ".join(_figure(totals[name]) for name in trees) + " |")
    return [*lines, ""]


def plot(parts: Parts, work: str, path: Path) -> None:
    """Two panels: images a second at 16 callers with their range, and p99 by open-loop load."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "saccade", "svg.fonttype": "none", "font.size": 9})
    closed = parts[f"{work}/closed/map/16"]
    names = list(closed)[::-1]
    figure, axes = plt.subplots(1, 2 if f"{work}/open/2" in parts else 1, figsize=(9, 2.6), squeeze=False)
    bars = axes[0][0]
    values = [[run["throughput"] for run in closed[name]] for name in names]
    medians = [statistics.median(own) for own in values]
    spread = [
        [m - min(own) for m, own in zip(medians, values, strict=True)],
        [max(own) - m for m, own in zip(medians, values, strict=True)],
    ]
    colours = ["#c44e52" if name == "ours" else "#bbbbbb" if name == "limit" else "#4c72b0" for name in names]
    bars.barh([SHORT[name] for name in names], medians, xerr=spread, color=colours, error_kw={"lw": 0.8})
    bars.set_xlabel("images/s, 16 callers (median, range)")
    if f"{work}/open/2" in parts:
        lines = axes[0][1]
        shares = [share for share in SHARES if f"{work}/open/{share:g}" in parts]
        for name in parts[f"{work}/open/{shares[0]:g}"]:
            p99 = [_median(parts[f"{work}/open/{share:g}"][name], "p99_s") * 1e3 for share in shares]
            lines.plot([f"{share:.0%}" for share in shares], p99, marker="o", label=SHORT[name],
                       color="#c44e52" if name == "ours" else None)  # fmt: skip
        lines.set_yscale("log")
        lines.set_ylabel("p99 ms")
        lines.set_xlabel("load, of each server's own capacity")
        lines.legend(fontsize=7, frameon=False)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _median(runs: Sequence[Mapping[str, Any]], which: str) -> float:
    values = [run[which] for run in runs if run.get(which) is not None]
    return statistics.median(values) if values else float("nan")


def _milliseconds(runs: Sequence[Mapping[str, Any]], which: str) -> str:
    value = _median(runs, which) * 1e3
    return _figure(value) if value == value else ""


def _figure(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _word(value: object) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "docs/benchmarks.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks.md")
    given = parser.parse_args()
    parts = json.loads(given.results.read_text(encoding="utf-8"))
    pictures = given.out.with_suffix("")
    given.out.write_text(page(parts, pictures.name), encoding="utf-8")
    for work in WORKS:
        if f"{work}/closed/map/16" in parts:
            plot(parts, work, pictures / f"{work}.svg")
    print(given.out.read_text(encoding="utf-8").partition("## Targets")[2].partition("\n## ")[0].strip())


if __name__ == "__main__":
    main()

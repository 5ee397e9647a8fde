"""The tables of docs/explanations.md that come from `benchmarks.relevance`."""

from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]

FEW = 8
"""Operators that are named; the others are added up."""

TIMES = """*Labels alone*: milliseconds a run. *1 class* and *3 classes*: the time of labels and maps over it, in the
same round. *Each further class*: what it adds, in runs of labels alone. `relevance` and `grad_attention` are worked out
together."""
MEMORY = """Anonymous memory of a process beyond that before its sessions, in MiB, and in brackets over that with the
labels' session alone: both sessions open, and once each has run a picture, with what runs keep for the next. *If
copied*: the maps' session with ONNX Runtime's defaults, which keep copies of the weights in the layout of their
operators; and the time of a run of all maps then, over that of one as the service opens it (a picture, one thread)."""
OPERATORS = """Where the time goes, one picture, one class, one thread, in shares of a run of labels alone, by type of
operator:"""


def cost_section(results: Results) -> str:
    """All of what maps cost: time, memory, where the time goes."""
    models = results["models"]
    machine = results["machine"]
    head = (
        f"Machine: {machine['cpu']}, {machine['cpus_usable']} CPUs usable, "
        f"ONNX Runtime {machine['packages']['onnxruntime']}; medians of {results['rounds']} rounds, "
        f"each with an interval that holds the true median with probability {_coverage(models):.0%} or more."
    ).replace("%", " %")
    times = table(["model", "threads, batch", "labels alone", "maps", "1 class", "3 classes", "each further class"],
                   [row for name, one in models.items() for row in _times(name, one)])  # fmt: skip
    memory = table(
        ["model", "weights", "relevance.onnx", "labels open", "both open", "if copied", "both once run",
         "time if copied"],
        [_memory(name, one) for name, one in models.items()],
    )  # fmt: skip
    operators = "\n".join(f"- {name}: {_operators(one)}" for name, one in models.items())
    return "\n\n".join([head, times, TIMES, memory, MEMORY, OPERATORS, operators])


def _coverage(models: Results) -> float:
    found = [one["coverage"] for model in models.values() for cost in model["costs"].values()
             for one in cost["times"].values()]  # fmt: skip
    return float(min(found))


def _times(name: str, model: Results) -> list[list[str]]:
    rows = []
    for key, cost in model["costs"].items():
        threads, batch = key.split("/")
        for maps in (*model["maps"], "all"):
            one, three = (cost["times"][f"{maps}/{classes}"] for classes in (1, 3))
            rows.append([
                name, f"{threads}, {batch}", f"{cost['milliseconds']:.1f} ms", maps, interval(one), interval(three),
                interval(cost["further"][maps]),
            ])  # fmt: skip
    return rows


def _memory(name: str, model: Results) -> list[str]:
    weights, graph = model["bytes"]["weights"], model["bytes"]["graph"]
    labels, both, copied = (model["memory"][key] for key in ("labels", "both", "copied"))
    return [
        name, f"{weights / 2**20:.1f} MiB", f"{graph / 1000:.0f} kB", f"{labels['open'] / 2**20:.1f}",
        _over(both["open"], labels["open"]), _over(copied["open"], labels["open"]), _over(both["run"], labels["run"]),
        interval(model["prepacking"]),
    ]  # fmt: skip


def _over(size: int, labels: int) -> str:
    return f"{size / 2**20:.1f} ({size / labels:.2f})"


def _operators(model: Results) -> str:
    labels, maps = model["operators"]["labels"], model["operators"]["maps"]
    whole = sum(labels.values())
    added = {name: maps.get(name, 0) - labels.get(name, 0) for name in {*labels, *maps}}
    return f"labels {_shares(labels, whole)}. Maps add {_shares(added, whole)}."


def _shares(times: Mapping[str, float], whole: float) -> str:
    ordered = sorted(times.items(), key=lambda one: -abs(one[1]))
    named = [f"{name} {seconds / whole:.0%}" for name, seconds in ordered[:FEW]]
    rest = sum(seconds for _, seconds in ordered[FEW:])
    total = sum(times.values())
    return f"{total / whole:.0%}: {', '.join([*named, f'others {rest / whole:.0%}'])}".replace("%", " %")


def interval(one: Results) -> str:
    """A median, and what holds the true one."""
    return f"{one['median']:.2f} ({one['low']:.2f} to {one['high']:.2f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown has it."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])

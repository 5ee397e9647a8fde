"""docs/gpu.md of what `benchmarks.gpu` measured.

python -m benchmarks.gpu_page        # docs/gpu.json, and the words of docs/gpu.md around its tables
"""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.relevance_tables import interval, table
from benchmarks.works import ROOT

PAGE, FILE = ROOT / "docs/gpu.md", ROOT / "docs/gpu.json"
MAPS = ("relevance", "grad_attention", "legrad", "grad_cam")
Results = Mapping[str, Any]


def tables(results: Results) -> dict[str, str]:
    """By the name of the comment that stands before and behind each in the page."""
    models = {name: one for name, one in results["models"].items() if "failed" not in one}
    failed = [[name, one["failed"]] for name, one in results["models"].items() if "failed" in one]
    batches = list(next(iter(models.values()))["costs"])
    return {
        "machine": _machine(results),
        "agreement": table(
            ["model", "golden check", "logits", "attention", *MAPS],
            [[name, "passed" if not one["golden"] else "failed", *_errors(one["agreement"])]
             for name, one in models.items()] + failed,
        ),
        "costs": table(
            ["model", "batch", "labels alone", *MAPS],
            [[name, batch, f"{one['costs'][batch]['milliseconds']['median']:.2f} ms",
              *(_ratio(one["costs"][batch]["times"].get(key)) for key in MAPS)]
             for name, one in models.items() for batch in batches],
        ),
        "float16": table(
            ["model", *(f"batch {batch}" for batch in batches)],
            [[name, *(_ratio(one["over float32"][batch]) for batch in batches)]
             for name, one in models.items() if "over float32" in one],
        ),
        "options": table(
            ["model", "time, default over ours", "error of the logits, default", "ours",
             "slowest first batch, default", "ours"],
            [[name, _ratio(one["options"]["times"]), f"{one['options']['default error']:.0e}",
              f"{one['options']['ours error']:.0e}", f"{one['options']['first']['default']:.0f} ms",
              f"{one['options']['first']['ours']:.0f} ms"]
             for name, one in models.items() if "options" in one],
        ),
    }  # fmt: skip


def filled(page: str, found: Mapping[str, str]) -> str:
    """The page with each table anew. Raises ValueError where one has no place in it."""
    for name, text in found.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        if page.count(begin) != 1:
            raise ValueError(f"{PAGE.name} has {page.count(begin)} places for {name}")
        before, rest = page.split(begin)
        page = f"{before}{begin}{text}\n{end}{rest.split(end, 1)[1]}"
    return page


def _machine(results: Results) -> str:
    machine, packages = results["machine"], results["machine"]["packages"]
    name, _, driver = machine["gpu"].partition("\n")[0].rpartition(", ")
    return (
        f"{name}, driver {driver}, ONNX Runtime {packages['onnxruntime-gpu']} ({results['provider']}), Python "
        f"{machine['python']}; medians of {results['rounds']} rounds."
    )


def _errors(found: Results) -> list[str]:
    layers = [one for name, one in found.items() if name.startswith("attention_")]
    attention = {key: max(one[key] for one in layers) for key in ("worst", "median")} if layers else None
    return [
        "" if one is None else f"{one['worst']:.0e} ({one['median']:.0e})"
        for one in (found["logits"], attention, *(found.get(name) for name in MAPS))
    ]


def _ratio(one: Results | None) -> str:
    return "" if one is None else interval(one)


def main() -> None:
    results = json.loads(FILE.read_text(encoding="utf-8"))
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables(results)), encoding="utf-8")


if __name__ == "__main__":
    main()

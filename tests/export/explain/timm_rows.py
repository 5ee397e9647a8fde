"""What `saccade export` makes of timm's families, held to float64 autograd: timm's table of docs/explanations.md.

`python -m tests.export.explain.timm_rows --out docs/explanations-timm.json` measures all of them where timm can be
imported, each in a process of its own, one a core. The file is written anew after each, so what stops the run takes
nothing of what was measured.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import torch

from tests.export.explain import timm_families
from tests.export.explain.family_rows import Row, failing, measure, of_timm
from tests.export.explain.proofs import Error

ROOT = Path(__file__).parents[3]
FILE = ROOT / "docs/explanations-timm.json"
NOT_MEASURED = "not measured"
PACKAGES = ("timm", "torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "onnxruntime")


def read() -> tuple[dict[str, str], list[Row]]:
    """What was measured: with which versions, and all rows."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return found["versions"], [of_json(row) for row in found["rows"]]


def to_json(row: Row) -> dict[str, Any]:
    said = {name: error._asdict() for name, error in row.errors.items()}
    gradient = None if row.gradient is None else row.gradient._asdict()
    return {**row._asdict(), "why_not": dict(row.why_not), "gradient": gradient, "errors": said}


def of_json(said: Mapping[str, Any]) -> Row:
    gradient = None if said["gradient"] is None else Error(**said["gradient"])
    errors = {name: Error(**error) for name, error in said["errors"].items()}
    layers, maps = tuple(said["layers"]), tuple(said["maps"])
    return Row(**{**said, "layers": layers, "maps": maps, "gradient": gradient, "errors": errors})


def measure_all(names: Sequence[str], out: Path, *, jobs: int, limit: float) -> list[Row]:
    """Each family in a process of its own, `jobs` at a time, for at most `limit` seconds each."""
    rows: dict[str, Row] = {}
    with ThreadPoolExecutor(jobs) as pool:
        started = [pool.submit(_apart, name, limit) for name in names]
        for done in as_completed(started):
            row, seconds = done.result()
            rows[row.family] = row
            _write(out, [rows[name] for name in names if name in rows])
            print(f"{seconds:4.0f} s  {row.family}: {row.said or ', '.join(row.maps) or 'no map'}", flush=True)
    return [rows[name] for name in names]


def _apart(name: str, limit: float) -> tuple[Row, float]:
    begun, command = time.monotonic(), [sys.executable, "-m", __spec__.name, "--family", name]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, check=True, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=limit)
        row = of_json(json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        row = _unknown(name, f"it took more than {limit:g} seconds")
    except subprocess.CalledProcessError as error:
        row = _unknown(name, (error.stderr.strip() or str(error)).splitlines()[-1])
    return row, time.monotonic() - begun


def _unknown(name: str, reason: str) -> Row:
    return Row(name, timm_families.architecture(name), f"{NOT_MEASURED}: {reason}")


def _write(out: Path, rows: Sequence[Row]) -> None:
    versions = {"Python": python_version(), **{name: version(name) for name in PACKAGES}}
    text = json.dumps({"versions": versions, "rows": [to_json(row) for row in rows]}, indent=1)
    part = out.with_suffix(".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="measures all families and writes this file")
    what.add_argument("--family", choices=timm_families.NAMES, metavar="NAME", help="measures one and prints its row")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="families at a time (default: one a core)"
    )
    parser.add_argument("--limit", type=float, default=180, help="seconds that one may take")
    options = parser.parse_args()
    if options.family:
        torch.set_num_threads(1)
        print(json.dumps(to_json(measure(of_timm(options.family)))))
        return
    rows = measure_all(timm_families.NAMES, options.out, jobs=options.jobs, limit=options.limit)
    for broken in [one for row in rows for one in failing(row)]:
        print("beyond what is allowed:", broken)


if __name__ == "__main__":
    main()

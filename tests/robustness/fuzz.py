"""Decodes damaged files and reads damaged queries, for as long as is asked: `make fuzz MINUTES=30`.

Input N of a seed is the same everywhere with the same libraries. One that breaks a promise is written to `build/fuzz`,
and `--only N` runs it again. Not atheris: it sees Python's branches alone, and the decoders are C.
"""

import argparse
import faulthandler
import json
import os
import platform
import random
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from PIL import features

from saccade.api import ClassifyOptions
from saccade.bundle import open_bundle
from saccade.decode import decode, plain_pixels
from saccade.errors import ImageTooLarge, InvalidImage, InvalidParameter, ResponseTooLarge, SaccadeError, UnsupportedMap
from saccade.manifest import Manifest
from service.selection import select
from tests.conftest import ROOT
from tests.robustness.mutate import mutate
from tests.robustness.pictures import pictures

MAX_PIXELS = 1_000_000
MAX_BYTES = 2**16
"""Of an answer: some queries ask for more."""

LONGEST_S = 5.0
"""Of CPU time for one input; of a million pixels none needs a second."""
_HANGS_S = 120

_VALUES = {
    "model": ("cifar10-cct", "cifar10-cct@1", "x@"),
    "top_k": ("1", "5", "10", "100000", "100001", "0", "007", "1_0", " 1"),
    "min_score": ("0", "0.5", "1", "1.1", "nan", "-0.0", "1e-300", ".5"),
    "maps": ("none", "rollout", "pooling", "class", "class,rollout", "class,class", "none,class"),
    "classes": ("top1", "topk", "0", "9", "10", "cat", "cat,dog", "top1,topk", "cat, 3", "9" * 5000),
    "attention": ("none", "last", "all", "0", "1", "1,0", "0,0", "2", "999999999"),
    "heads": ("mean", "all", "0", "1,0", "7"),
    "rows": ("all", "pool", "0", "63,0", "64"),
    "windows": ("all", "0"),
    "decimals": ("0", "6", "9", "10", "6.0"),
    "timeout_ms": ("1", "3600000", "0", "9" * 30),
}
_ODD = ("", ",", "-1", "1e9", "inf", "é", "\0", "%00", "%ff", "+", "٣", "None", "[]", "{}", "top_k", "a" * 2000)


class BrokenPromise(AssertionError):
    """What an input did that none may."""


@dataclass
class Report:
    """What came of a run."""

    seed: int
    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    parameters: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, 0)
    broken: list[str] = field(default_factory=list)
    memory_mb: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        return {
            "command": " ".join(("python -m tests.robustness.fuzz", *sys.argv[1:])),
            "seed": self.seed,
            "inputs": self.inputs,
            "files": dict(self.outcomes.most_common()),
            "queries": dict(self.parameters.most_common()),
            "slowest": {"cpu_s": round(self.slowest[0], 3), "input": self.slowest[1]},
            "memory_mb": {
                "after the first 1,000": self.memory_mb[0],
                "at each quarter": [self.memory_mb[len(self.memory_mb) * part // 4 - 1] for part in range(1, 5)],
            },
            "broken": self.broken,
            "versions": {
                "python": platform.python_version(),
                "pillow": version("pillow"),
                **{name: features.version(name) for name in ("jpg", "zlib", "libtiff", "webp")},
            },
        }


def make(seed: int, number: int, whole: list[bytes]) -> tuple[bytes, str]:
    """Input `number`: a file and a query."""
    draw = random.Random(seed * 2**40 + number)
    data = mutate(draw.choice(whole), draw.choice(whole), draw)
    pairs = []
    for name in draw.choices((*_VALUES, "x"), k=draw.randrange(5)):
        values = _VALUES.get(name, _ODD) if draw.random() < 0.9 else _ODD
        pairs.append(f"{name}={draw.choice(values)}{'' if draw.random() < 0.9 else draw.choice((',', ',1', ' ', '&'))}")
    return data, "&".join(pairs)


def decodes(data: bytes) -> str:
    """What the service says of a file: a code, or `decoded`. Raises BrokenPromise."""
    try:
        picture = decode(data, (1, 2, 3), MAX_PIXELS)
    except (InvalidImage, ImageTooLarge) as refusal:
        if not 0 < len(str(refusal)) < 300 or "\n" in str(refusal):
            raise BrokenPromise(f"no sentence: {refusal}") from refusal
        return refusal.code
    pixels, plain = picture.width * picture.height, plain_pixels(data)
    if picture.mode != "RGB" or not 0 < pixels <= MAX_PIXELS:
        raise BrokenPromise(f"decoded as {picture.mode}, {picture.size}")
    if plain not in (None, pixels):
        raise BrokenPromise(f"{plain} pixels were announced, {pixels} came")
    return "decoded"


def selects(query: str, manifest: Manifest) -> str:
    """What the service says of a query: a code, or `understood`."""
    try:
        select(manifest, ClassifyOptions.from_query(parse_qsl(query, keep_blank_values=True)), MAX_BYTES)
    except (InvalidParameter, UnsupportedMap, ResponseTooLarge) as refusal:
        return refusal.code
    return "understood"


def run(seed: int, seconds: float, most: int, first: int = 0, folder: Path = ROOT / "build/fuzz") -> Report:
    """Inputs from `first` on, for so long or so many; everything that happened is in the report."""
    warnings.simplefilter("ignore")  # Pillow's; the service runs on through them
    folder.mkdir(parents=True, exist_ok=True)
    whole = [data for _, data in pictures()]
    manifests = [open_bundle(ROOT / "models" / name / "1").manifest for name in ("cifar10-cct", "cifar10-resnet-s")]
    report = Report(seed)
    end = time.monotonic() + seconds
    # for an input that never comes to an end, or ends the process
    with (folder / "current").open("wb", buffering=0) as current, (folder / "hang").open("w") as hang:
        while report.inputs < most and time.monotonic() < end:
            number = first + report.inputs
            data, query = make(seed, number, whole)
            current.seek(0)
            current.write(b"%d %d\n" % (seed, number))
            faulthandler.dump_traceback_later(_HANGS_S, exit=True, file=hang)
            began = time.process_time()
            try:
                report.outcomes[decodes(data)] += 1
                report.parameters[selects(query, manifests[number % 2])] += 1
                took = time.process_time() - began
                if took > LONGEST_S:
                    raise BrokenPromise(f"took {took:.1f} s")
                report.slowest = max(report.slowest, (took, number))
            except (Exception, SaccadeError) as error:
                path = folder / f"{seed}-{number}.bin"
                path.write_bytes(data)
                report.broken.append(f"{path}, query {query!r}: {type(error).__name__}: {error}")
            report.inputs += 1
            if report.inputs % 1000 == 0:
                report.memory_mb.append(resident_mb())
        faulthandler.cancel_dump_traceback_later()
    report.memory_mb.append(resident_mb())
    return report


def resident_mb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 10**6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--most", type=int, default=2_000_000, help="stop after so many inputs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="one input by its number")
    asked = parser.parse_args()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff tells it of each damage
    if asked.only is not None:
        report = run(asked.seed, 3600, 1, asked.only)
    else:
        report = run(asked.seed, 60 * asked.minutes, asked.most)
    print(json.dumps(report.summary(), indent=1))
    return bool(report.broken)


if __name__ == "__main__":
    sys.exit(main())

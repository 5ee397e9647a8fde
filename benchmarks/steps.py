"""What each step of one picture costs when nothing else runs, in microseconds; runs in any tree that has these steps.

    python -m benchmarks.steps --bundle F --picture P --batch N

Prints one line of JSON. What a server needs beyond their sum went into HTTP, threads and metrics.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from saccade.api import ClassifyOptions
from saccade.bundle import open_bundle
from saccade.decode import decode
from saccade.geometry import region
from saccade.preprocess import preprocess
from service import postprocess
from service.encode import to_json
from service.selection import select
from service.session import OnnxRunner, load_head

_REPEATS = 7
_LEAST_S = 0.03


def microseconds(step: Callable[[], object]) -> float:
    """Median over repeats, each long enough for the clock."""
    step()
    times = []
    for _ in range(_REPEATS):
        count, began = 0, time.perf_counter()
        while (taken := time.perf_counter() - began) < _LEAST_S:
            step()
            count += 1
        times.append(taken / count * 1e6)
    return statistics.median(times)


def steps(folder: Path, body: bytes, batch: int) -> dict[str, float]:
    bundle = open_bundle(folder)
    manifest, head = bundle.manifest, load_head(bundle)
    runner = OnnxRunner(bundle, ("CPUExecutionProvider",), 1, head=head)
    spec = manifest.preprocessing
    options = ClassifyOptions.from_query([])
    selection = select(manifest, options, 2**25)
    picture = decode(body, spec.background)
    pixels = preprocess(picture, spec)
    seen = region(picture.width, picture.height, spec)
    stacked = np.stack([pixels] * batch)
    outputs = {name: values[0] for name, values in runner.run(stacked, selection.outputs).items()}

    def answer() -> dict[str, object]:
        return postprocess.answer(manifest, head, selection, outputs, picture.size, seen)

    answered = answer()
    return {
        "options": microseconds(lambda: select(manifest, ClassifyOptions.from_query([]), 2**25)),
        "decode": microseconds(lambda: decode(body, spec.background)),
        "preprocess": microseconds(lambda: preprocess(picture, spec)),
        "run": microseconds(lambda: runner.run(np.stack([pixels] * batch), selection.outputs)) / batch,
        "postprocess": microseconds(answer),
        "encode": microseconds(lambda: to_json(answered)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=1)
    given = parser.parse_args()
    print(json.dumps(steps(given.bundle, given.picture.read_bytes(), given.batch)))


if __name__ == "__main__":
    main()

"""The stream of `saccade evaluate` against bare loops that decode and run: the same pictures, batches and threads.

    python -m benchmarks.evaluation [--rounds 9] [--pictures 4000 300] [--works records photographs]

In pairs, each first in turn. `records`: the shipped CCT on made pictures in CIFAR-10's layout. `photographs`: a
ViT-Ti/16 at 224 pixels with random weights on a made folder of JPEGs of 500 x 375. A bare loop is a thread a CPU, each
with a session of its own and its share of the batches; it shows no progress and keeps nothing but logits.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import machine
from benchmarks.stats import Ratio, paired_ratio
from benchmarks.works import CACHE, Work, works
from export.cifar10 import CIFAR10_RECORD, CIFAR10_RECORDS, CIFAR10_TEST, CIFAR10_TRAIN
from export.environment import cpus
from export.evaluation.pictures import choose_pictures
from export.evaluation.predict import batch_size, predict
from export.examples import Examples
from export.runtime import open_graph
from saccade.bundle import Bundle, open_bundle
from saccade.decode import decode
from saccade.preprocess import normalize, resize
from saccade.progress import Progress

Read = Callable[[int], NDArray[np.uint8]]
"""Number of a picture -> (height, width, 3) at the size of the net, by nothing but what that takes."""

_CLASSES = 10


def bare(bundle: Bundle, read: Read, count: int, threads: int) -> NDArray[np.float32]:
    """(count, labels): logits."""
    spec, size = bundle.manifest.preprocessing, batch_size(bundle.manifest.preprocessing)
    answers = [open_graph(bundle.graph, threads=1, only=("logits",)) for _ in range(threads)]
    logits = np.empty((count, len(bundle.manifest.labels)), np.float32)

    def loop(first: int) -> None:
        for start in range(first * size, count, threads * size):
            batch = range(start, min(start + size, count))
            pixels = np.stack([read(index) for index in batch])
            logits[batch.start : batch.stop] = answers[first](normalize(pixels, spec))["logits"]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(loop, range(threads)))
    return logits


def ours(bundle: Bundle, examples: Examples) -> NDArray[np.float32]:
    """(count, labels): logits, as `saccade evaluate` gets them."""
    answer = open_graph(bundle.graph, threads=1, only=("logits",))
    progress = Progress(io.StringIO())
    return predict(answer, examples, bundle.manifest.preprocessing, progress=progress)["logits"]


def compare(bundle: Bundle, examples: Examples, read: Read, rounds: int) -> tuple[list[float], list[float]]:
    """(ours, bare) in pictures a second, one of each a round. Both must give the same logits."""
    count = len(examples)
    loops = (lambda: ours(bundle, examples), lambda: bare(bundle, read, count, cpus()))
    speeds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        results = {}
        for which in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            results[which] = loops[which]()
            speeds[which].append(count / (time.perf_counter() - began))
        np.testing.assert_allclose(results[0], results[1], atol=1e-4)
    return speeds


def records(work: Work, folder: Path, count: int) -> tuple[Bundle, Examples, Read]:
    """Noise in CIFAR-10's layout."""
    bundle = open_bundle(work.bundle)
    made = np.random.default_rng(0).integers(0, 256, (CIFAR10_RECORDS, CIFAR10_RECORD), np.uint8)
    made[:, 0] %= _CLASSES
    for name in CIFAR10_TRAIN:
        with (folder / name).open("wb") as file:
            file.truncate(made.size)  # nobody reads these: zeros that take no room
    (folder / CIFAR10_TEST[0]).write_bytes(made.tobytes())
    examples = choose_pictures(bundle.manifest, folder, "test").examples.choose(np.arange(count))
    return bundle, examples, lambda index: made[index, 1:].reshape(3, 32, 32).transpose(1, 2, 0)


def photographs(work: Work, folder: Path, count: int) -> tuple[Bundle, Examples, Read]:
    """So many copies of one JPEG, each read from a file of its own."""
    bundle = open_bundle(work.bundle)
    spec, content = bundle.manifest.preprocessing, work.picture.read_bytes()
    for number in range(count):
        place = folder / "test" / bundle.manifest.labels[number % _CLASSES] / f"{number:06}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    examples = choose_pictures(bundle.manifest, folder, "test").examples
    files = [folder / "test" / examples.name(index) for index in range(count)]
    return bundle, examples, lambda index: resize(decode(files[index].read_bytes(), spec.background), spec)


def _said(name: str, ratio: Ratio, speeds: tuple[list[float], list[float]]) -> str:
    ours, bare = (float(np.median(values)) for values in speeds)
    said = f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f}, {ratio.pairs} pairs)"
    return f"{name}: {said} of a bare loop; medians {ours:,.0f} and {bare:,.0f} pictures/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pictures", type=int, nargs=2, default=[4000, 300], metavar=("RECORDS", "PHOTOGRAPHS"))
    parser.add_argument("--works", nargs="+", default=["records", "photographs"], choices=["records", "photographs"])
    options = parser.parse_args()
    print(machine())
    known = works(CACHE)
    for name in options.works:
        with tempfile.TemporaryDirectory(dir=CACHE) as place:
            if name == "records":
                prepared = records(known["cct"], Path(place), options.pictures[0])
            else:
                prepared = photographs(known["vit-ti"], Path(place), options.pictures[1])
            speeds = compare(*prepared, options.rounds)
        print(_said(name, paired_ratio(*speeds), speeds), flush=True)


if __name__ == "__main__":
    main()

"""What maps of the gradient cost beside labels alone: in time, in pairs, and in memory; and where the time goes.

    python -m benchmarks.relevance --out docs/explanations.json      # the tables of docs/explanations.md are made of it

The shipped CCT-2/3x2 and hybrid net, and a ViT-Ti/16 at 224 pixels with random weights, on which speed does not depend.
Labels alone are the logits of a session of model.onnx; labels and maps those of one run of relevance.onnx. Both are
opened as the service opens them.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from benchmarks.machine import machine, versions
from benchmarks.relevance_inside import memory, time_by_operator
from benchmarks.sessions import LOGITS, Feed, feed_of, maps_feed_of, open_labels, open_maps
from benchmarks.stats import median_interval, paired_ratio
from benchmarks.works import CACHE, ROOT, works
from saccade.bundle import Bundle, open_bundle

ALL = "all"
CLASSES = (1, 3)
_SAMPLE = 0.05
"""Seconds that one sample takes at least."""

Run = Callable[[], Any]


class Question(NamedTuple):
    """What is asked beside labels."""

    maps: str
    """One by its name, or ALL."""
    classes: int

    @property
    def key(self) -> str:
        return f"{self.maps}/{self.classes}"


def bundles() -> dict[str, Bundle]:
    """By the name that stands in the tables."""
    found = {
        "CCT-2/3x2": ROOT / "models/cifar10-cct/1",
        "cifar10-hybrid-s": ROOT / "models/cifar10-hybrid-s/1",
        "ViT-Ti/16": works(CACHE)["vit-ti"].bundle,
    }
    return {name: open_bundle(folder) for name, folder in found.items()}


def costs(bundle: Bundle, batch: int, threads: int, rounds: int) -> dict[str, Any]:
    """Times of each question over those of labels alone, in the same round; and what each further class adds."""
    names = _names(bundle)
    labels, maps = open_labels(bundle, threads), open_maps(bundle, threads)
    runs: dict[str, Run] = {LOGITS: run_of(labels, [LOGITS], feed_of(bundle, batch))}
    for question in (Question(what, classes) for what in (*names, ALL) for classes in CLASSES):
        asked = [LOGITS, *(names if question.maps == ALL else [question.maps])]
        runs[question.key] = run_of(maps, asked, maps_feed_of(bundle, batch, question.classes, asked))
    seconds = in_turns(runs, rounds)
    alone = seconds.pop(LOGITS)
    found: dict[str, Any] = {"milliseconds": 1000 * float(np.median(alone)), "times": {}, "further": {}}
    for key, one in seconds.items():
        found["times"][key] = paired_ratio(one, alone)._asdict()
    for what in (*names, ALL):
        one, three = (seconds[Question(what, classes).key] for classes in CLASSES)
        shares = [(more - less) / (CLASSES[1] - CLASSES[0]) / base
                  for more, less, base in zip(three, one, alone, strict=True)]  # fmt: skip
        found["further"][what] = median_interval(shares)._asdict()
    return found


def prepacking(bundle: Bundle, rounds: int) -> dict[str, Any]:
    """Time of relevance.onnx in a session with ONNX Runtime's defaults over that in one as the service opens it; one
    picture, one class, one thread, all maps.
    """
    asked = [LOGITS, *_names(bundle)]
    feed = maps_feed_of(bundle, 1, 1, asked)
    runs = {name: run_of(open_maps(bundle, 1, shared=name == "shared"), asked, feed) for name in ("shared", "default")}
    seconds = in_turns(runs, rounds)
    return paired_ratio(seconds["default"], seconds["shared"])._asdict()


def in_turns(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of one run of each, one sample a round, each round beginning with another."""
    names = list(runs)
    repeats = {}
    for name, run in runs.items():
        run()
        began = time.perf_counter()
        run()
        repeats[name] = max(1, round(_SAMPLE / (time.perf_counter() - began)))
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.perf_counter()
            for _ in range(repeats[name]):
                runs[name]()
            found[name].append((time.perf_counter() - began) / repeats[name])
    return found


def _names(bundle: Bundle) -> list[str]:
    assert bundle.manifest.maps.gradients is not None
    return list(bundle.manifest.maps.gradients.names)


def run_of(session: onnxruntime.InferenceSession, outputs: Sequence[str], feed: Feed) -> Run:
    """What one sample times."""
    return lambda: session.run(list(outputs), feed)


def measure(bundle: Bundle, batches: Sequence[int], threads: Sequence[int], rounds: int) -> dict[str, Any]:
    """All of one model, as it stands in the file."""
    return {
        "maps": _names(bundle),
        "bytes": {"weights": bundle.weights.stat().st_size, "graph": bundle.relevance.stat().st_size},
        "costs": {f"{many}/{batch}": costs(bundle, batch, many, rounds) for many in threads for batch in batches},
        "prepacking": prepacking(bundle, rounds),
        "memory": memory(bundle),
        "operators": time_by_operator(bundle, _names(bundle)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args(arguments)
    models = {}
    for name, bundle in bundles().items():
        models[name] = measure(bundle, options.batches, options.threads, options.rounds)
        print(name, json.dumps(models[name]["costs"], indent=1), flush=True)
    found = {
        "machine": {**machine(), "packages": versions(["onnxruntime", "numpy"])},
        "rounds": options.rounds,
        "models": models,
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What another execution provider answers beside the CPU's, and how fast: CUDA on a GPU, if nothing else is said.

    python -m benchmarks.gpu --out docs/gpu.json          # docs/gpu.md is made of it

The shipped models in float32, their float16 variants where they lie beside them (`saccade quantize --float16`), and a
ViT-Ti/16 with random weights. Sessions are opened as the service opens them, golden check included; answers are held
to those of the float32 bundle on the CPU, each output and each map of the gradient of every class asked.
"""

import argparse
import json
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.machine import machine, versions
from benchmarks.relevance import Run, in_turns, run_of
from benchmarks.sessions import LOGITS, feed_of, open_labels, open_maps
from benchmarks.stats import median_interval, paired_ratio
from benchmarks.works import CACHE, ROOT, works
from saccade.bundle import Bundle, open_bundle
from saccade.errors import SaccadeError
from saccade.golden import check_golden_maps
from service.placement import CPU
from service.session import (
    CLASS_INDEX,
    PROVIDER_OPTIONS,
    OnnxRunner,
    check_providers,
    load_head,
    switches_of,
)

PICTURES, CLASSES = 32, 10
"""That are held to the CPU's answers: so many made pictures, and of each so many ranks of classes."""
SIZES = tuple(range(1, 17))
"""Of batches that come for the first time, one after the other."""
Answers = Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]


def bundles(variants: Path) -> dict[str, Bundle]:
    """By the name that stands in the tables."""
    found = {
        "CCT-2/3x2": ROOT / "models/cifar10-cct/1",
        "CCT-2/3x2, float16": variants / "cifar10-cct-float16/1",
        "cifar10-hybrid-s": ROOT / "models/cifar10-hybrid-s/1",
        "cifar10-hybrid-s, float16": variants / "cifar10-hybrid-s-float16/1",
        "cifar10-resnet-s": ROOT / "models/cifar10-resnet-s/1",
        "ViT-Ti/16": works(CACHE)["vit-ti"].bundle,
        "ViT-Ti/16, float16": variants / "random-vit-ti-16-float16/1",
    }
    return {name: open_bundle(folder) for name, folder in found.items() if folder.is_dir()}


def hold_to_golden(bundle: Bundle, provider: str) -> str:
    """Empty where the service would start and explain with it, else what it says."""
    try:
        OnnxRunner(bundle, [provider], 1, head=load_head(bundle))
        maps = open_maps(bundle, 1, provider)

        def explain(pixels: Any, class_index: Any) -> dict[str, Any]:
            names = [output.name for output in maps.get_outputs()]
            feed = {"pixel_values": pixels, CLASS_INDEX: class_index, **switches_of(bundle.manifest, names)}
            return dict(zip(names, maps.run(names, feed), strict=True))

        check_golden_maps(bundle.manifest, bundle.golden, provider, explain)
    except SaccadeError as error:
        return str(error)
    return ""


def answers(bundle: Bundle, provider: str, class_index: np.ndarray[Any, np.dtype[np.int64]]) -> Answers:
    """Of relevance.onnx: everything that it gives."""
    maps = open_maps(bundle, 1, provider)
    names = [output.name for output in maps.get_outputs()]
    feed = {**feed_of(bundle, PICTURES), CLASS_INDEX: class_index, **switches_of(bundle.manifest, names)}
    return dict(zip(names, maps.run(names, feed), strict=True))


def agreement(seen: Answers, expected: Answers, maps: Sequence[str]) -> dict[str, dict[str, float]]:
    """Of each output the largest difference over the largest value, of a map of the gradient over the largest of that
    map itself: the worst, and the median of pictures and classes.
    """
    found = {}
    for name, values in expected.items():
        axes = tuple(range(2 if name in maps else 1, values.ndim))
        difference = np.abs(seen[name].astype(np.float64) - values).max(axes)
        size = np.abs(values.astype(np.float64)).max(axes)
        shares = difference / np.maximum(size if name in maps else size.max(), np.finfo(np.float32).tiny)
        found[name] = {"worst": float(shares.max()), "median": float(np.median(shares))}
    return found


def costs(bundle: Bundle, provider: str, batch: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of labels alone, and of labels with a map of one class over that, in the same round."""
    labels, maps = open_labels(bundle, 1, provider), open_maps(bundle, 1, provider)
    assert bundle.manifest.maps.gradients is not None
    names = bundle.manifest.maps.gradients.names
    plain = feed_of(bundle, batch)
    runs = {LOGITS: run_of(labels, [LOGITS], plain)}
    for name in names:
        feed = {**plain, CLASS_INDEX: np.full((batch, 1), -1), **switches_of(bundle.manifest, [name])}
        runs[name] = run_of(maps, [LOGITS, name], feed)
    seconds = in_turns(runs, rounds)
    alone = seconds[LOGITS]
    return {
        "milliseconds": median_interval([1000 * one for one in alone])._asdict(),
        "times": {name: paired_ratio(seconds[name], alone)._asdict() for name in names},
    }


def against(ours: Bundle, theirs: Bundle, provider: str, batch: int, rounds: int) -> dict[str, float]:
    """Time of labels of one over that of the other."""
    runs = {
        name: run_of(open_labels(bundle, 1, provider), [LOGITS], feed_of(bundle, batch))
        for name, bundle in (("ours", ours), ("theirs", theirs))
    }
    seconds = in_turns(runs, rounds)
    return paired_ratio(seconds["ours"], seconds["theirs"])._asdict()


def options_of(bundle: Bundle, provider: str, rounds: int) -> dict[str, Any]:
    """What the provider's options are worth: labels by default ones over ours in time, the defaults' largest difference
    from the CPU over the largest logit; and of either the slowest first run of a size of batch, in milliseconds.
    """
    feed, found, first = feed_of(bundle, 8), {}, {}
    runs: dict[str, Run] = {}
    exact = open_labels(bundle, 1).run([LOGITS], feed)[0]
    for name, options in (("ours", PROVIDER_OPTIONS.get(provider, {})), ("default", {})):
        session = onnxruntime.InferenceSession(str(bundle.graph), providers=[(provider, options)])
        session.run([LOGITS], feed_of(bundle, 32))
        first[name] = max(_first_run(session, bundle, size) for size in SIZES)
        runs[name] = run_of(session, [LOGITS], feed)
        found[f"{name} error"] = float(np.abs(session.run([LOGITS], feed)[0] - exact).max() / np.abs(exact).max())
    seconds = in_turns(runs, rounds)
    return {"times": paired_ratio(seconds["default"], seconds["ours"])._asdict(), "first": first, **found}


def _first_run(session: onnxruntime.InferenceSession, bundle: Bundle, size: int) -> float:
    feed = feed_of(bundle, size)
    began = time.perf_counter()
    session.run([LOGITS], feed)
    return 1000 * (time.perf_counter() - began)


def left_to_the_cpu(session: onnxruntime.InferenceSession) -> dict[str, int]:
    """Operators there, with how many: shapes, mostly."""
    parts = session.get_provider_graph_assignment_info()
    return dict(Counter(node.op_type for part in parts if part.ep_name == CPU for node in part.get_nodes()))


def device() -> str:
    """The GPU's name and its driver's version."""
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"


def measure(bundle: Bundle, source: Bundle, provider: str, batches: Sequence[int], rounds: int) -> dict[str, Any]:
    """All of one bundle, as it stands in the file; `source` is the float32 one, which may be the same."""
    assert source.manifest.maps.gradients is not None
    asked = np.tile(-1 - np.arange(CLASSES), (PICTURES, 1))
    expected = answers(source, CPU, asked)
    if bundle is not source:  # its own order of classes may be another where two are close
        order = np.argsort(-expected[LOGITS], 1, kind="stable")[:, :CLASSES]
        asked, expected = order, answers(source, CPU, order)
    found: dict[str, Any] = {"golden": hold_to_golden(bundle, provider)}
    labels, maps = open_labels(bundle, 1, provider), open_maps(bundle, 1, provider)
    if provider != CPU:
        found["left"] = {"model.onnx": left_to_the_cpu(labels), "relevance.onnx": left_to_the_cpu(maps)}
    found["agreement"] = agreement(answers(bundle, provider, asked), expected, source.manifest.maps.gradients.names)
    found["costs"] = {str(batch): costs(bundle, provider, batch, rounds) for batch in batches}
    if bundle is source:
        found["options"] = options_of(bundle, provider, rounds)
    else:
        found["over float32"] = {str(batch): against(bundle, source, provider, batch, rounds) for batch in batches}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    parser.add_argument("--provider", default="CUDAExecutionProvider")
    parser.add_argument("--variants", type=Path, default=ROOT / "models", help="folder with the float16 variants")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    options = parser.parse_args(arguments)
    check_providers([options.provider])
    found: dict[str, Any] = {
        "machine": {**machine(), "gpu": device(), "packages": versions(["onnxruntime-gpu", "onnxruntime", "numpy"])},
        "provider": options.provider,
        "rounds": options.rounds,
        "models": {},
    }
    known = bundles(options.variants)
    for name, bundle in known.items():
        try:
            one = measure(bundle, known[name.split(",")[0]], options.provider, options.batches, options.rounds)
        except Exception as error:  # one that fails must not take the others' figures with it
            one = {"failed": str(error)}
        found["models"][name] = one
        print(name, json.dumps(one, indent=1), flush=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

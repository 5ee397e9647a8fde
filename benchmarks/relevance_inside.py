"""What sessions of model.onnx and relevance.onnx hold in memory, and which operators their time goes to."""

import json
import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from benchmarks.sessions import Feed, feed_of, open_labels, open_maps, options_of
from saccade.bundle import RELEVANCE, Bundle

_RUNS = 30


def memory(bundle: Bundle) -> dict[str, int]:
    """Anonymous memory of a process, in bytes, above that before its sessions, each of which has run once: with that of
    labels, with that of maps as well, and with that of maps opened by ONNX Runtime's defaults.
    """
    kinds = {"labels": (False, True), "both": (True, True), "both, by default": (True, False)}
    return {name: _grown(bundle, *kind) for name, kind in kinds.items()}


def _grown(bundle: Bundle, maps: bool, shared: bool) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_growth, (bundle, maps, shared))


def _growth(bundle: Bundle, maps: bool, shared: bool) -> int:
    labels_feed, maps_feed = feed_of(bundle, 1), feed_of(bundle, 1, 1)
    before = _anonymous()
    labels = open_labels(bundle, 1)
    labels.run(["logits"], labels_feed)
    if maps:
        explaining = open_maps(bundle, 1, shared=shared)
        explaining.run(None, maps_feed)
    return _anonymous() - before


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def time_by_operator(bundle: Bundle, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Milliseconds a run, one picture and one thread: of labels alone, and of labels with the maps of one class."""
    return {
        "labels": _profiled(bundle.graph, ["logits"], feed_of(bundle, 1), {}, []),
        "maps": _profiled(bundle.folder / RELEVANCE, ["logits", *names], feed_of(bundle, 1, 1),
                          {"session.disable_prepacking": "1"}, ["ConstantFolding"]),
    }  # fmt: skip


def _profiled(
    graph: Path, outputs: list[str], feed: Feed, entries: dict[str, str], without: list[str]
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as place:
        options = options_of(1)
        for name, value in entries.items():
            options.add_session_config_entry(name, value)
        options.enable_profiling = True
        options.profile_file_prefix = f"{place}/profile"
        session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=without
        )
        for _ in range(_RUNS):
            session.run(outputs, feed)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found[event["args"]["op_name"]] += event["dur"]
    return {name: microseconds / 1000 / _RUNS for name, microseconds in found.most_common()}

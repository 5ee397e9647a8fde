"""What sessions of model.onnx and relevance.onnx hold in memory, and which operators their time goes to."""

import json
import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnxruntime

from benchmarks.sessions import LOGITS, Feed, feed_of, maps_feed_of, open_labels, open_maps
from saccade.bundle import Bundle
from service.placement import CPU
from service.relevance import SHARED, left_out
from service.session import session_options

_RUNS = 30
_NONE: Mapping[str, str] = MappingProxyType({})


def memory(bundle: Bundle) -> dict[str, dict[str, int]]:
    """Anonymous memory of a process, in bytes, above that before its sessions, once they are open and once each has
    run: with that of labels, with that of maps as well, and with that of maps opened by ONNX Runtime's defaults.
    """
    kinds = {"labels": (False, True), "both": (True, True), "copied": (True, False)}
    return {name: _grown(bundle, *kind) for name, kind in kinds.items()}


def _grown(bundle: Bundle, maps: bool, shared: bool) -> dict[str, int]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_growth, (bundle, maps, shared))


def _growth(bundle: Bundle, maps: bool, shared: bool) -> dict[str, int]:
    assert bundle.manifest.maps.gradients is not None
    labels_feed = feed_of(bundle, 1)
    maps_feed = maps_feed_of(bundle, 1, 1, bundle.manifest.maps.gradients.names)
    before = _anonymous()
    labels = open_labels(bundle, 1)
    explaining = open_maps(bundle, 1, shared=shared) if maps else None
    opened = _anonymous() - before
    labels.run([LOGITS], labels_feed)
    if explaining is not None:
        explaining.run(None, maps_feed)
    return {"open": opened, "run": _anonymous() - before}


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def time_by_operator(bundle: Bundle, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Milliseconds a run, one picture and one thread: of labels alone, and of labels with the maps of one class."""
    return {
        "labels": _profiled(bundle.graph, [LOGITS], feed_of(bundle, 1)),
        "maps": _profiled(
            bundle.relevance, [LOGITS, *names], maps_feed_of(bundle, 1, 1, names), SHARED, left_out(bundle, CPU)
        ),
    }


def _profiled(
    graph: Path, outputs: list[str], feed: Feed, entries: Mapping[str, str] = _NONE, without: Sequence[str] = ()
) -> dict[str, float]:
    options = session_options(1, False)
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as place:
        options.profile_file_prefix = f"{place}/profile"
        session = onnxruntime.InferenceSession(str(graph), options, providers=[CPU], disabled_optimizers=list(without))
        for _ in range(_RUNS):
            session.run(outputs, feed)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: Counter[str] = Counter()
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        if event["args"]["op_name"] != "If":  # its time is that of the nodes in its branch, which are here too
            found[event["args"]["op_name"]] += event["dur"]
    return {name: microseconds / 1000 / _RUNS for name, microseconds in found.most_common()}

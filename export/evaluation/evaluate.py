"""Accuracy of a bundle: every picture of a split through the one preprocessing and ONNX Runtime."""

import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np

from export.data import open_source
from export.evaluation.figures import confusion, score_quality, top_k, wilson_interval
from export.examples import load, split
from export.recipe import recipe_of
from export.runtime import open_graph
from saccade.bundle import Bundle, update_bundle
from saccade.errors import DataError
from saccade.manifest import Evaluation
from saccade.preprocess import normalize

BATCH = 64


def evaluate(bundle: Bundle, data: Path | None, split_name: Literal["test", "held-out"]) -> Bundle:
    """Reads the split once and writes top-1 accuracy with its interval onto the card. Raises DataError."""
    manifest = bundle.manifest
    recipe = recipe_of(manifest)
    source = open_source(recipe.data, data, manifest.preprocessing)
    if source.classes != manifest.labels:
        raise DataError(f"{source.name} has the classes {list(source.classes)}; {manifest.id} has other labels")
    examples = source.test() if split_name == "test" else split(source)[1]
    answer = open_graph(bundle.graph, only=("logits",))
    count, started = len(examples), time.monotonic()
    parts = []
    for done in range(0, count, BATCH):  # an image folder may be larger than memory
        pictures = load(examples.choose(np.arange(done, min(done + BATCH, count))), manifest.preprocessing)
        parts.append(answer(normalize(pictures.pixels, manifest.preprocessing))["logits"])
        seen = done + len(pictures.labels)
        rate = seen / (time.monotonic() - started)
        print(f"\r{seen}/{count} pictures  {rate:.0f} images/s  {(count - seen) / rate:.0f} s left  ", end="",
              file=sys.stderr)  # fmt: skip
    print(file=sys.stderr)
    logits, labels, classes = np.concatenate(parts), examples.labels, len(manifest.labels)
    matrix = confusion(logits.argmax(1), labels, classes)
    correct = int(matrix.trace())
    evaluation = Evaluation(
        split=f"{source.name}, {split_name}",
        pictures=count,
        correct=correct,
        top1=correct / count,
        interval95=wilson_interval(correct, count),
        top5=top_k(logits, labels, 5) if classes > 5 else None,
        per_class=tuple(zip(matrix.sum(1).tolist(), matrix.diagonal().tolist(), strict=True)),
        raw=score_quality(logits, labels, 1.0),
        served=score_quality(logits, labels, manifest.temperature),
        through="ONNX Runtime, CPUExecutionProvider",
    )
    others = tuple(figure for figure in manifest.card.evaluation if figure.split != evaluation.split)
    card = manifest.card.model_copy(update={"evaluation": (*others, evaluation)})
    return update_bundle(bundle, {"card": card.model_dump()})

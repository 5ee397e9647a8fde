"""Accuracy of a bundle: every picture of a split through the one preprocessing and ONNX Runtime."""

import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np

from export.data import open_source
from export.examples import load, split
from export.recipe import recipe_of
from export.runtime import open_graph
from saccade.bundle import Bundle, update_bundle
from saccade.errors import DataError
from saccade.manifest import Accuracy
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
    count, correct, started = len(examples), 0, time.monotonic()
    for done in range(0, count, BATCH):  # an image folder may be larger than memory
        pictures = load(examples.choose(np.arange(done, min(done + BATCH, count))), manifest.preprocessing)
        predicted = answer(normalize(pictures.pixels, manifest.preprocessing))["logits"].argmax(-1)
        correct += int((predicted == pictures.labels).sum())
        seen = done + len(predicted)
        rate = seen / (time.monotonic() - started)
        print(f"\r{seen}/{count} pictures  {rate:.0f} images/s  {(count - seen) / rate:.0f} s left  ", end="",
              file=sys.stderr)  # fmt: skip
    print(file=sys.stderr)
    accuracy = Accuracy(
        split=f"{source.name}, {split_name}",
        pictures=count,
        correct=correct,
        top1=correct / count,
        interval95=wilson_interval(correct, count),
        through="ONNX Runtime, CPUExecutionProvider",
    )
    others = tuple(figure for figure in manifest.card.accuracy if figure.split != accuracy.split)
    card = manifest.card.model_copy(update={"accuracy": (*others, accuracy)})
    return update_bundle(bundle, {"card": card.model_dump()})


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927)."""
    z = 1.959963984540054
    share = correct / count
    middle = share + z * z / (2 * count)
    spread = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return float((middle - spread) / scale), float((middle + spread) / scale)

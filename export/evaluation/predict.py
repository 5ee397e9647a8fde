"""Pictures -> what a bundle's graph says of them, with every CPU at work and a few batches in memory.

Each thread decodes a batch and runs it, on one session that all of them share: nothing is handed over, and no thread
waits for another as the threads inside of a session do at every node. Batches are the same whoever takes them, so the
result does not depend on how many threads there are.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from export.environment import cpus
from export.examples import Examples
from export.runtime import Answer
from saccade.errors import DataError
from saccade.manifest import Preprocessing
from saccade.ordered import in_order
from saccade.preprocess import normalize
from saccade.progress import Progress

BATCH = 16
"""Pictures a run, at most: more are no faster on a CPU."""
_PIXELS = 2**18
"""Of a batch, at most: each picture holds its attention too, which is computed whether asked for or not, and each CPU
has a batch in work."""

Change = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]
"""(picture at the size of the net, uint8 (H, W, 3), not to be written to; its index) -> what is run in its place."""


def batch_size(spec: Preprocessing) -> int:
    """Of pictures of this size: 16 up to 128 x 128 pixels, 5 of 224 x 224."""
    return max(1, min(BATCH, _PIXELS // (spec.height * spec.width)))


def predict(
    answer: Answer,
    examples: Examples,
    spec: Preprocessing,
    *,
    change: Change | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> dict[str, NDArray[np.float32]]:
    """(n, …) of each output that `answer` gives, in the pictures' order.

    `answer` is of `open_graph(bundle.graph, threads=1, only=("logits",))`: it is called by `threads` at a time, one a
    CPU where nothing else is said. `progress` counts the pictures. Raises DataError naming a picture that cannot be
    read, and for none at all.
    """
    count = len(examples)
    if not count:
        raise DataError("the split has no pictures")

    def run(batch: range) -> dict[str, NDArray[np.float32]]:
        pixels = np.empty((len(batch), spec.height, spec.width, 3), np.uint8)
        for place, index in enumerate(batch):
            picture = examples.pixels(index, spec)
            pixels[place] = picture if change is None else change(picture, index)
        return answer(normalize(pixels, spec))

    size = batch_size(spec)
    batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
    results: dict[str, NDArray[np.float32]] = {}
    for batch, outputs in zip(batches, in_order(batches, run, threads=threads or cpus()), strict=True):
        for name, values in outputs.items():
            whole = results.setdefault(name, np.empty((count, *values.shape[1:]), np.float32))
            whole[batch.start : batch.stop] = values
        if progress is not None:
            progress.step(0, len(batch))
    return results

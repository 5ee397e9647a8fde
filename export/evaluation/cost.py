"""What a picture costs on this machine: time through ONNX Runtime alone, every output of the graph computed."""

import math
import statistics
import time

import numpy as np
from numpy.typing import NDArray

from export.environment import cpus, processor
from export.runtime import PROVIDER, Answer, open_graph
from saccade.bundle import Bundle
from saccade.card import Cost
from saccade.golden import made_pictures
from saccade.preprocess import normalize

BATCHES = (1, 8)
ROUNDS = 5
SEED = 5
_LEAST_RUNS = 5
_LEAST_S = 0.1


def measure_cost(bundle: Bundle) -> tuple[Cost, ...]:
    """One picture and eight at a time, on one thread and on one a CPU; made pictures, for what they show costs nothing.

    Five rounds, each through all of these, and of each the least median: other work on the machine only makes it
    slower, and seldom in every round. Raises BundleError.
    """
    spec = bundle.manifest.preprocessing
    pixels = normalize(made_pictures(max(BATCHES), spec.height, spec.width, SEED), spec)
    answers = {threads: open_graph(bundle.graph, threads=threads) for threads in sorted({1, cpus()})}
    least = {(threads, batch): math.inf for threads in answers for batch in BATCHES}
    for _ in range(ROUNDS):
        for (threads, batch), before in least.items():
            least[threads, batch] = min(before, _median(answers[threads], pixels[:batch]))
    return tuple(
        Cost(
            batch=batch,
            threads=threads,
            milliseconds=round(1000 * seconds / batch, 3),
            provider=PROVIDER,
            hardware=processor(),
        )
        for (threads, batch), seconds in least.items()
    )


def _median(answer: Answer, pixels: NDArray[np.float32]) -> float:
    """Seconds a run, of at least five that last at least 0.1 s together; one before them does not count."""
    answer(pixels)
    seconds: list[float] = []
    while len(seconds) < _LEAST_RUNS or sum(seconds) < _LEAST_S:
        began = time.perf_counter()
        answer(pixels)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)

"""What a picture costs on this machine: time through ONNX Runtime alone, every output of the graph computed."""

import statistics
import time

from export.environment import cpus, processor
from export.runtime import PROVIDER, open_graph
from saccade.bundle import Bundle
from saccade.golden import made_pictures
from saccade.manifest import Cost
from saccade.preprocess import normalize

BATCHES = (1, 8)
SEED = 5
_LEAST_RUNS = 9
_LEAST_S = 0.2
_WARM = 2


def measure_cost(bundle: Bundle) -> tuple[Cost, ...]:
    """One picture and eight at a time, on one thread and on one a CPU; made pictures, for what they show costs nothing.

    Of each the median of at least nine runs that last at least 0.2 s together. Raises BundleError.
    """
    spec = bundle.manifest.preprocessing
    pixels = normalize(made_pictures(max(BATCHES), spec.height, spec.width, SEED), spec)
    found = []
    for threads in sorted({1, cpus()}):
        answer = open_graph(bundle.graph, threads=threads)
        for batch in BATCHES:
            for _ in range(_WARM):
                answer(pixels[:batch])
            seconds: list[float] = []
            while len(seconds) < _LEAST_RUNS or sum(seconds) < _LEAST_S:
                began = time.perf_counter()
                answer(pixels[:batch])
                seconds.append(time.perf_counter() - began)
            cost = Cost(
                batch=batch,
                threads=threads,
                milliseconds=round(1000 * statistics.median(seconds) / batch, 3),
                provider=PROVIDER,
                hardware=processor(),
            )
            found.append(cost)
    return tuple(found)

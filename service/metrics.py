"""Prometheus metrics with the prefix saccade_, in a collector registry of their own: nothing is global."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from saccade.api import Plan
from saccade.manifest import Manifest

if TYPE_CHECKING:
    from service.batcher import Batcher

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
STEPS = ("receive", "decode", "queue", "run", "encode")
"""Of an image. The body arriving; waiting to be decoded and for a runner; the rest as named, postprocess in encode."""
GRAPHS = ("model", "relevance")
"""That a run is one of: they take different times, and batches of the second are smaller."""


class Series:
    """One series of a histogram."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1  # a bound is the largest value that still counts there
        self.sum += value


class Histogram(Collector):
    """prometheus_client's, for one thread: without its lock and its walk over the bounds, which cost a small picture
    more than preprocessing does.
    """

    def __init__(
        self, name: str, meaning: str, labels: Sequence[str], bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._meaning, self._labels, self._bounds = name, meaning, labels, tuple(map(float, bounds))
        self._series: dict[tuple[str, ...], Series] = {}
        registry.register(self)

    def labels(self, *values: str) -> Series:
        return self._series.setdefault(values, Series(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._meaning, labels=self._labels)
        ends = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, series in list(self._series.items()):
            buckets = list(zip(ends, map(float, accumulate(series.counts)), strict=True))
            family.add_metric(values, buckets, series.sum)
        yield family


class Metrics:
    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("saccade_requests", "Requests answered", ["route", "status"], registry=registry)
        self._refusals = Counter("saccade_refusals", "Requests refused, by code", ["code"], registry=registry)
        self.images = Counter("saccade_images", "Images classified", ["model"], registry=registry)
        self.dropped = Counter(
            "saccade_dropped_images",
            "Images dropped before they cost a run: the caller left, or the deadline passed",
            ["model", "reason"],
            registry=registry,
        )
        self.hung = Counter("saccade_hung_runs", "Runs given up after run_timeout_s", ["model"], registry=registry)
        self.admitted = Gauge(
            "saccade_admitted_images", "Images accepted, not yet answered", ["model"], registry=registry
        )
        self.waiting = Gauge("saccade_queue_images", "Images here, not yet running", ["model"], registry=registry)
        self.age = Gauge(
            "saccade_queue_age_seconds", "Since the oldest image that waits to run came", ["model"], registry=registry
        )
        self.sessions = Gauge("saccade_sessions", "Sessions that work", ["model"], registry=registry)
        self.batches = Histogram("saccade_batch_images", "Images in a run", ["model", "graph"], _SIZES, registry)
        self.runs = Histogram("saccade_run_seconds", "Time of a run", ["model", "graph"], _SECONDS, registry)
        self.steps = Histogram(
            "saccade_step_seconds", "Time of an image in each step", ["model", "step"], _SECONDS, registry
        )
        self.plans = Info("saccade_model", "How a model is run", ["model"], registry=registry)
        self._children: dict[tuple[str, int], Counter] = {}
        self._codes: dict[str, Counter] = {}

    def model(self, manifest: Manifest) -> "ModelMetrics":
        return ModelMetrics(self, manifest)

    def request(self, route: str, status: int) -> None:
        child = self._children.get((route, status))
        if child is None:
            child = self._children[route, status] = self._requests.labels(route, str(status))
        child.inc()

    def refusal(self, code: str) -> None:
        child = self._codes.get(code)
        if child is None:
            child = self._codes[code] = self._refusals.labels(code)
        child.inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)


class ModelMetrics:
    """Those of one model; series are looked up once, since to find one costs more than to count."""

    def __init__(self, metrics: Metrics, manifest: Manifest) -> None:
        self._metrics = metrics
        self._model = model = manifest.id
        self._images = metrics.images.labels(model)
        self._dropped = {reason: metrics.dropped.labels(model, reason) for reason in ("left", "late")}
        self._hung = metrics.hung.labels(model)
        graphs = GRAPHS if manifest.maps.gradients else GRAPHS[:1]
        self._batches = [metrics.batches.labels(model, graph) for graph in graphs]
        self._runs = [metrics.runs.labels(model, graph) for graph in graphs]
        self._steps = [metrics.steps.labels(model, step) for step in STEPS]

    def serves(self, plan: Plan, batcher: "Batcher[Any, Any]") -> None:
        """Shows the plan, and the queue whenever somebody looks."""
        metrics, model = self._metrics, self._model
        metrics.plans.labels(model).info({name: str(value) for name, value in plan.model_dump().items()})
        metrics.admitted.labels(model).set_function(lambda: batcher.admitted)
        metrics.waiting.labels(model).set_function(lambda: batcher.waiting)
        metrics.sessions.labels(model).set_function(lambda: batcher.sessions)
        metrics.age.labels(model).set_function(lambda: batcher.age)

    def image(self, *seconds: float) -> None:
        """One image that was answered; its seconds in each of `STEPS`."""
        self._images.inc()
        for step, value in zip(self._steps, seconds, strict=True):
            step.observe(value)

    def ran(self, size: int, seconds: float, classes: int) -> None:
        graph = 1 if classes else 0
        self._batches[graph].observe(size)
        self._runs[graph].observe(seconds)

    def dropped(self, reason: Literal["left", "late"]) -> None:
        self._dropped[reason].inc()

    def hung(self) -> None:
        self._hung.inc()

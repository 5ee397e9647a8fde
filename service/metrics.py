"""Prometheus metrics with the prefix saccade_, in a collector registry of their own: nothing is global."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from saccade.api import Plan
from saccade.manifest import Manifest

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("saccade_requests", "Requests answered", ["route", "status"], registry=registry)
        self._refusals = Counter("saccade_refusals", "Requests refused, by code", ["code"], registry=registry)
        self._images = Counter("saccade_images", "Images classified", ["model"], registry=registry)
        self._dropped = Counter(
            "saccade_dropped_images", "Images dropped before they cost a run", ["model"], registry=registry
        )
        self._waiting = Gauge("saccade_queue_images", "Images accepted, not yet answered", ["model"], registry=registry)
        self._batches = Histogram(
            "saccade_batch_images", "Size of the batch in which an image ran", ["model"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=registry,
        )  # fmt: skip
        self._steps = Histogram(
            "saccade_step_seconds", "Time of an image in each step", ["model", "step"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._plans = Info("saccade_model", "How a model is run", ["model"], registry=registry)

    def add_model(self, manifest: Manifest, plan: Plan, waiting: Callable[[], int]) -> None:
        self._waiting.labels(manifest.id).set_function(waiting)
        self._plans.labels(manifest.id).info({name: str(value) for name, value in plan.model_dump().items()})

    def dropped(self, manifest: Manifest) -> Callable[[], None]:
        """What counts an image whose caller left or whose deadline passed before it ran."""
        return self._dropped.labels(manifest.id).inc

    def observe(self, manifest: Manifest, decode: float, queue: float, run: float, batch_size: int) -> None:
        """One image; times in seconds."""
        self._images.labels(manifest.id).inc()
        self._batches.labels(manifest.id).observe(batch_size)
        for step, seconds in (("decode", decode), ("queue", queue), ("run", run)):
            self._steps.labels(manifest.id, step).observe(seconds)

    def request(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def refusal(self, code: str) -> None:
        self._refusals.labels(code).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)

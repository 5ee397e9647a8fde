"""The service's pipeline without a server: one bundle, one picture, in this process."""

import asyncio
import time
from pathlib import Path

from saccade.api import Answer, ClassifyOptions
from saccade.bundle import open_bundle
from service.cgroup import memory_limit
from service.classifier import Classifier
from service.metrics import Metrics
from service.plan import find_cpus, make_plan
from service.session import check_providers
from service.settings import load_settings
from service.workers import Workers


def classify(folder: Path, picture: bytes, options: ClassifyOptions) -> Answer:
    """What the service would answer. Raises RequestError, ServiceError, BundleError, SettingsError."""

    async def receive() -> bytes:
        return picture

    settings = load_settings()
    check_providers(settings.providers)
    plan = make_plan(settings, find_cpus(), settings.providers[0], memory_limit())
    workers = Workers(plan.decode_threads)
    try:
        classifier = Classifier(open_bundle(folder), settings, plan, workers, Metrics())
        try:
            body = asyncio.run(classifier.classify(receive, options, "local", time.monotonic()))
        finally:
            classifier.close()
    finally:
        workers.close()
    return Answer.model_validate_json(body)

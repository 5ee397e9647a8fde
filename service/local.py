"""The service's pipeline without a server: one bundle, any number of pictures, in this process."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from types import TracebackType

from saccade.api import ClassifyOptions
from saccade.bundle import open_bundle
from saccade.client import Effort
from saccade.errors import InferenceFailed
from service.cgroup import memory_limit
from service.classifier import Classifier
from service.metrics import Metrics
from service.plan import find_cpus, make_plan
from service.session import check_providers
from service.settings import load_settings
from service.workers import Workers


class Local:
    """One model on an event loop of its own; for any number of threads. A context manager."""

    def __init__(self, folder: Path) -> None:
        """Raises BundleError, SettingsError."""
        settings = load_settings()
        check_providers(settings.providers)
        plan = make_plan(settings, find_cpus(), settings.providers[0], memory_limit())
        self._room = threading.BoundedSemaphore(plan.queue_images)  # there is no caller to be told to come again
        self._workers = Workers(plan.decode_threads)
        try:
            self._classifier = Classifier(open_bundle(folder), settings, plan, self._workers, Metrics())
        except BaseException:
            self._workers.close()
            raise
        self._handing = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="saccade-local", daemon=True)
        self._thread.start()

    def asking(self, options: ClassifyOptions) -> Callable[[bytes, Effort], bytes]:
        """As `Client.asking`: the bytes of a picture -> what the service would answer.

        Raises RequestError for options that are refused whatever the picture; BundleError and SettingsError, which say
        why, where relevance.onnx is needed and cannot be opened: here nobody reads a log.
        """
        self._classifier.open_for(options)

        async def classify(picture: bytes) -> bytes:
            answers: list[bytes] = []

            async def receive() -> bytes:
                return picture

            async def deliver(answer: bytes) -> None:
                answers.append(answer)

            await self._classifier.classify(receive, deliver, options, "local", time.monotonic())
            return answers[0]

        def ask(picture: bytes, _: Effort) -> bytes:
            with self._room:
                with self._handing:
                    if self._closed:
                        raise InferenceFailed("the engine has stopped")
                    answer = asyncio.run_coroutine_threadsafe(classify(picture), self._loop)
                try:
                    return answer.result()
                except CancelledError as error:
                    raise InferenceFailed("the engine has stopped") from error

        return ask

    def __enter__(self) -> "Local":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._handing:
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._let_go(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._classifier.close()
        self._workers.close()
        self._loop.close()

    async def _let_go(self) -> None:
        """Of whoever still waits for an answer."""
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

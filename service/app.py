"""The application: `create_app(settings)` builds everything, models are loaded at its start, nothing on import."""

import asyncio
import logging
import multiprocessing
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from saccade import __version__, errors
from saccade.errors import Draining, NotReady, SaccadeError, SettingsError
from service.cgroup import memory_limit
from service.edge import Edge, refuse
from service.keys import Keys
from service.memory import warning_of_requests
from service.metrics import Metrics
from service.plan import Cpus, find_cpus, make_plan
from service.registry import Registry
from service.routes import add_routes
from service.session import check_providers
from service.settings import Settings
from service.workers import Workers

log = logging.getLogger("saccade.app")


ONE_PROCESS = (
    "queue, deadlines and metrics are those of one process; for more CPUs raise SACCADE_INSTANCES or "
    "SACCADE_INTRA_OP_THREADS, for more machines start more containers"
)


_QUIET_S = 0.25
FAREWELL_S = 2.0
"""After the last answer the listener stays until nobody has asked for so long, and no longer than this: whoever asks
meanwhile hears that it drains; a connection on its way to a listener that closes is reset."""


class Service:
    """Life cycle: built, loaded (ready), draining, closed."""

    def __init__(self, settings: Settings, cpus: Cpus | None = None) -> None:
        """`cpus`: as they were before the process was kept to them. Raises SettingsError for what can be known now."""
        check_providers(settings.providers)
        self.settings = settings
        self.keys = Keys(settings)
        if settings.allow_anonymous and not settings.loopback and settings.api_keys_file is None:
            log.warning("everybody who reaches %s is served: SACCADE_ALLOW_ANONYMOUS is set", settings.host)
        self.metrics = Metrics()
        self.plan = make_plan(settings, cpus or find_cpus(), settings.providers[0], memory_limit())
        self.workers = Workers(self.plan.decode_threads)
        self.draining = False
        self.accepting = True
        self.active = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._refused = asyncio.Event()
        self._registry: Registry | None = None

    async def load(self) -> None:
        """Opens and checks all models; ready afterwards. Raises BundleError, SettingsError."""
        self._registry = await asyncio.to_thread(Registry, self.settings, self.plan, self.workers, self.metrics)
        plan, models = self.plan, len([*self._registry])
        warning = warning_of_requests(
            plan.memory_limit,
            plan.decode_threads or plan.instances * models,
            self.settings.max_pixels,
            plan.queue_images * models,
            self.settings.max_body_bytes,
        )
        if warning is not None:
            log.warning(warning)

    def ready(self) -> Registry:
        """For the readiness route. Raises NotReady, Draining."""
        if self.draining:
            raise Draining("the service is stopping")
        registry = self._loaded()
        self.alive()
        return registry

    def alive(self) -> None:
        """For the liveness route. Raises NotReady once a model's every session hangs: only a restart helps."""
        for classifier in self._registry or ():
            if classifier.batcher.broken:
                raise NotReady(f"{classifier.manifest.id} has no session left that works")

    def registry(self) -> Registry:
        """For work. Raises NotReady while models load, Draining once nothing new is taken."""
        if not self.accepting:
            self._refused.set()
            raise Draining("the service is stopping and takes no new work")
        return self._loaded()

    def _loaded(self) -> Registry:
        if self._registry is None:
            raise NotReady("models are still being loaded")
        return self._registry

    @contextmanager
    def work(self) -> Iterator[Registry]:
        """Around each accepted request, so that draining can wait for the last one."""
        registry = self.registry()
        self.active += 1
        self.idle.clear()
        try:
            yield registry
        finally:
            self.active -= 1
            if not self.active:
                self.idle.set()

    async def drain(self) -> None:
        """Readiness says 503 at once; after the grace new work is refused; returns when what was taken is finished and
        nobody asks any more.

        Or after `drain_timeout_s`: a caller with a long deadline must not keep the process alive.
        """
        self.draining = True
        log.info("draining: readiness is 503, new work is taken for %g s", self.settings.drain_grace_s)
        await asyncio.sleep(self.settings.drain_grace_s)
        self.accepting = False
        try:
            await asyncio.wait_for(self.idle.wait(), self.settings.drain_timeout_s)
        except TimeoutError:
            log.warning("%d requests are not finished after %g s", self.active, self.settings.drain_timeout_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                while True:
                    self._refused.clear()
                    await asyncio.wait_for(self._refused.wait(), _QUIET_S)

    def close(self) -> None:
        if self._registry is not None:
            self._registry.close()
        self.workers.close()


class App(FastAPI):
    """FastAPI behind a layer of ours, which stands in front of the framework's own: those cost more than it does."""

    edge: Edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.edge(scope, receive, send)

    def add_middleware(self, *_: Any, **__: Any) -> None:
        """Raises RuntimeError: it would stand behind the edge, and most requests never come that far."""
        raise RuntimeError("wrap the application instead, as in CORSMiddleware(create_app(settings))")

    def build_middleware_stack(self) -> ASGIApp:
        """Without the framework's outermost layer, which would answer errors that the edge has words for."""
        return ExceptionMiddleware(self.router, self.exception_handlers)

    async def inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What stands behind the edge."""
        await super().__call__(scope, receive, send)


def create_app(settings: Settings) -> App:
    """The service as an ASGI application. Its lifespan loads the models; without, it answers 503 not_ready."""
    return create_app_for(Service(settings))


def create_app_for(service: Service) -> App:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        alone = take_the_place_of_one_process()
        await service.load()
        try:
            yield
        finally:
            await asyncio.to_thread(service.close)
            if alone is not None:
                alone.close()

    app = App(
        title="Saccade",
        version=__version__,
        summary="Image classifiers that show where they looked",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
        },  # asked for anew at each request; ours is /metrics
    )
    app.state.service = service
    _add_error_handlers(app, service.metrics)
    add_routes(app)
    app.edge = Edge(app, app.inside, service.keys, service.metrics, lambda: service.draining)
    return app


def take_the_place_of_one_process() -> socket.socket | None:
    """Holds, under a server with worker processes, the one place for a service; None elsewhere.

    Raises SettingsError in the second worker process of the same server (Linux; gunicorn, uvicorn --workers).
    """
    if sys.platform != "linux" or not (multiprocessing.parent_process() or "gunicorn.arbiter" in sys.modules):
        return None
    place = socket.socket(socket.AF_UNIX)
    try:
        # an abstract name, which goes with its process; the namespace, since each container has its own process 1
        place.bind(f"\0saccade-worker-of-{Path('/proc/self/ns/pid').stat().st_ino}-{os.getppid()}")
    except OSError as error:
        place.close()
        raise SettingsError(f"this is a second worker process of one server: {ONE_PROCESS}") from error
    return place


def _add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    @app.exception_handler(HTTPException)
    async def framework_error(request: Request, error: HTTPException) -> Response:
        return refuse(metrics, _translate(request, error), request.state.request_id, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        message = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        return refuse(metrics, errors.InvalidParameter(message), request.state.request_id)


def _translate(request: Request, error: HTTPException) -> SaccadeError:
    """The framework's own errors in the words of ours."""
    path = request.url.path
    if error.status_code == 404:
        return errors.UnknownRoute(f"there is nothing at {path[:200]}; /docs lists what there is")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return errors.MethodNotAllowed(f"{path[:200]} takes {allowed}, not {request.method}")
    return errors.InvalidParameter(f"the request was refused: {error.detail}")

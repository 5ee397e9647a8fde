"""The process: listens, loads, owns its signals, drains. Exit code 0 after a drain, 2 where it cannot start."""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import Any, cast

import uvicorn
import uvloop

from saccade.errors import SettingsError, SetupError
from service.app import ONE_PROCESS, Service, create_app_for
from service.batcher import RUNNER
from service.logs import configure_logs
from service.plan import Cpus, find_cpus, keep_to
from service.protocol import Protocol
from service.settings import Settings, load_settings
from service.trim import find_trim, keep_large_blocks_apart

log = logging.getLogger("saccade")

LINGER_S = 5
"""After the drain nothing is being worked on: what is still open belongs to callers who do not read their answers."""


_ACCEPTS = 16
"""libuv takes one connection a listener and turn of the event loop. Under load a turn takes some ten milliseconds, and
who comes new would wait for seconds behind those who are connected; each duplicate of a socket is a listener."""

_FILES = 128
"""For all that is no connection: listeners, pictures of the API page, what the engine opens."""

_TRIM_TICKS = 100
"""Ten seconds: it takes a millisecond, or as many as there are tens of megabytes to give back."""

_GARBAGE = 10_000, 10, 10
"""A request makes some hundred objects and no cycle: Python's 700 would look every few requests."""


class _Server(uvicorn.Server):
    """uvicorn would close the listener first and die of the signal; here the service drains first and exits 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._trim = find_trim()
        self._trimmed = 0  # requests that had been answered by then

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % _TRIM_TICKS == 0 and self._trimmed != self.server_state.total_requests:
            self._trimmed = self.server_state.total_requests
            await asyncio.to_thread(self._trim)
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            try:
                cast(Protocol, connection).look(now)
            except Exception:  # one connection's defect must not end all of them
                log.exception("a connection could not be looked at")
        return await super().on_tick(counter)


def refuse_more_processes(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raises SettingsError where somebody asks for several worker processes, as uvicorn and gunicorn take them."""
    if arguments:
        raise SettingsError(
            f"`python -m service` takes no arguments, not {' '.join(arguments)!r}: its settings are environment "
            f"variables, and its process is one ({ONE_PROCESS})"
        )
    for name in ("WEB_CONCURRENCY", "UVICORN_WORKERS"):
        if environment.get(name, "1") not in ("", "1"):
            raise SettingsError(f"{name} is {environment[name]}: the service is one process, since {ONE_PROCESS}")


async def serve(settings: Settings, cpus: Cpus) -> None:
    """Listens at once (readiness says 503), loads the models, serves until a signal, drains. Raises SetupError.

    A second signal waits for nothing more.
    """
    service = Service(settings, cpus)
    listener = listen(settings)
    app = create_app_for(service)
    protocol = functools.partial(Protocol, settings, service.metrics, most_connections(settings.max_connections))
    config = uvicorn.Config(
        app,
        http=cast(Any, protocol),  # uvicorn only calls it
        lifespan="off",
        ws="none",  # an upgrade is answered as plain HTTP, in our shape
        log_config=None,
        access_log=False,
        server_header=False,
        workers=1,  # and not what WEB_CONCURRENCY says
        proxy_headers=False,  # nobody asks for the caller's address
        timeout_graceful_shutdown=LINGER_S,
    )
    server = _Server(config)
    stopping, hurrying = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stopping.is_set():
            hurrying.set()
            server.force_exit = True
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    listeners = [listener, *(listener.dup() for _ in range(_ACCEPTS - 1))]
    serving = asyncio.create_task(server.serve(sockets=listeners))
    try:
        await service.load()
        gc.freeze()  # what is there now stays: no collection needs to look at it again
        gc.set_threshold(*_GARBAGE)
        if not stopping.is_set():  # nobody has been told that it is ready
            host, port = listener.getsockname()[:2]
            log.info("ready on http://%s:%d", f"[{host}]" if ":" in host else host, port)
            await _first_of(serving, stopping.wait())
            await _first_of(service.drain(), hurrying.wait())  # a second signal does not wait for what was accepted
    finally:
        server.should_exit = True
        await serving
        await asyncio.to_thread(service.close)


def most_connections(wanted: int) -> int:
    """As many of them as there are files for; the limit on files is raised as far as the system lets the process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = min(max(soft, wanted + _FILES), hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    if files < wanted + _FILES:
        log.warning(
            "connections are limited to %d, not %d: the process may have %d files", files - _FILES, wanted, files
        )
    return max(1, min(wanted, files - _FILES))


async def _first_of(*waits: Awaitable[object]) -> None:
    """Waits for one; the others, but for the server itself, are given up."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task, wait in zip(tasks, waits, strict=True):
        if task is not wait:
            task.cancel()


def listen(settings: Settings) -> socket.socket:
    """The listening socket. Raises SettingsError where the address is taken, unknown or not allowed."""
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(f"could not listen on {settings.host}:{settings.port}: {error.strerror}") from error


def main() -> int:
    try:
        refuse_more_processes(sys.argv[1:], os.environ)
        settings = load_settings()
        configure_logs(settings.log_level)
        cpus = find_cpus()
        keep_to(cpus)
        keep_large_blocks_apart()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, cpus))
    except SetupError as error:
        print(f"saccade: {error}", file=sys.stderr)
        return 2
    if any(thread.name == RUNNER and thread.is_alive() for thread in threading.enumerate()):
        logging.shutdown()
        os._exit(0)  # a run hangs: the interpreter's end would wait for the session, and the session for its run
    return 0

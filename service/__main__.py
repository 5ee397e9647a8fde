"""`python -m service`: one process, own signals. Exit code 0 after a drain, 2 where it cannot start."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn
import uvloop

from saccade.errors import SettingsError, SetupError
from service.app import Service, create_app_for
from service.logs import configure_logs
from service.settings import Settings, load_settings

log = logging.getLogger("saccade")


class _Server(uvicorn.Server):
    """uvicorn would close the listener first and die of the signal; here the service drains first and exits 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: Settings) -> None:
    """Listens at once (readiness says 503), loads the models, serves until a signal, drains. Raises SetupError."""
    service = Service(settings)
    listener = listen(settings)
    app = create_app_for(service)
    server = _Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, server_header=False))
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stop = asyncio.create_task(stopping.wait())
    try:
        await service.load()
        host, port = listener.getsockname()[:2]
        log.info("ready on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        await asyncio.wait((serving, stop), return_when=asyncio.FIRST_COMPLETED)
        await service.drain()
    finally:
        server.should_exit = True
        stop.cancel()
        await serving
        await asyncio.to_thread(service.close)


def listen(settings: Settings) -> socket.socket:
    """The listening socket. Raises SettingsError where the address is taken, unknown or not allowed."""
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(f"could not listen on {settings.host}:{settings.port}: {error.strerror}") from error


def main() -> int:
    try:
        settings = load_settings()
        configure_logs(settings.log_level)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except SetupError as error:
        print(f"saccade: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

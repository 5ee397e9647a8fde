"""What a container's health check says, against real servers."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.health import address
from service.settings import Settings
from tests.conftest import ROOT, Server


def check(**settings: object) -> subprocess.CompletedProcess[str]:
    """`python -m service.health` in the environment of a service."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SACCADE_")}
    environment |= {f"SACCADE_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "service.health"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def port_of(server: Server) -> int:
    port = httpx.URL(server.url).port
    assert port is not None
    return port


@pytest.fixture
def unheard() -> Iterator[int]:
    """A port that is taken and on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_ready_service_is_healthy_on_the_port_that_is_set(server: Server, host: str) -> None:
    """Exit code 0 and no word, on whichever port and address the service's own settings say."""
    seen = check(host=host, port=port_of(server))
    assert (seen.returncode, seen.stdout, seen.stderr) == (0, "", "")


def test_a_service_on_every_address_of_ipv6_is_reached(small: Path) -> None:
    """SACCADE_HOST=:: is asked on the loopback of IPv6."""
    with Server(models=small, host="::", port=0, drain_grace_s=0, allow_anonymous=True) as server:
        seen = check(host="::", port=port_of(server))
        assert (seen.returncode, seen.stderr) == (0, "")
        assert server.stop() == 0


def test_a_service_that_is_not_ready_is_not_healthy_and_its_own_words_say_why(small: Path) -> None:
    """A container that drains shows so in `docker inspect`."""
    with Server(models=small, port=0, drain_grace_s=600) as server:
        server.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{server.url}/v2/health/ready").status_code == 200:
            pass
        seen = check(port=port_of(server))
        assert (seen.returncode, seen.stderr) == (1, "not ready: the service is stopping\n")
        server.process.send_signal(signal.SIGTERM)
        assert server.stop() == 0


def test_where_nothing_listens_a_sentence_says_where_it_was_asked(unheard: int) -> None:
    """Not a traceback."""
    seen = check(port=unheard)
    assert seen.returncode == 1
    assert seen.stderr.startswith(f"not ready: 127.0.0.1:{unheard} does not answer: ")
    assert len(seen.stderr.splitlines()) == 1


def test_what_listens_but_is_no_service_is_not_healthy(unheard: int) -> None:
    """Another program on the port is not taken for ours."""
    with socket.create_server(("127.0.0.1", 0)) as listener, subprocess.Popen(
        [sys.executable, "-c", "import socket, sys; s = socket.socket(fileno=0); c, _ = s.accept(); c.recv(1000); "
         "c.sendall(b'HTTP/1.1 404 No\\r\\nContent-Length: 2\\r\\n\\r\\nno')"],
        stdin=listener.fileno(),
    ):  # fmt: skip
        port = listener.getsockname()[1]
        seen = check(port=port)
    assert (seen.returncode, seen.stderr) == (1, f"not ready: 127.0.0.1:{port} answers 404\n")


@pytest.mark.parametrize("port", [0, "http"])
def test_a_port_that_nobody_can_know_is_said(port: object) -> None:
    """SACCADE_PORT=0 takes a free one: a container that wants a health check wants a port."""
    seen = check(port=port)
    assert (seen.returncode, seen.stderr) == (1, f"not ready: SACCADE_PORT is {port}, where nobody can be asked\n")


@pytest.mark.parametrize("environment", [{}, {"SACCADE_HOST": "", "SACCADE_PORT": ""}])
def test_without_settings_it_asks_where_a_service_without_settings_listens(environment: dict[str, str]) -> None:
    """The defaults are those of the service; an empty variable is an absent one."""
    default = {name: field.default for name, field in Settings.model_fields.items()}
    assert address(environment) == (default["host"], str(default["port"]))


@pytest.mark.parametrize("port", [" 9000", "9000 ", "\t9000\n"])
def test_a_port_with_space_around_it_is_read_as_the_service_reads_it(
    monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    """As a file of variables may have it: a service that serves is not said to be ill."""
    monkeypatch.setenv("SACCADE_PORT", port)
    assert address(os.environ)[1] == str(Settings().port)


def test_the_check_is_cheap() -> None:
    """It runs every few seconds beside the service, within its CPUs and memory: it loads the standard library."""
    listing = "import sys, service.health; print(*{name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", listing]
    loaded = set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())
    assert loaded & {"numpy", "pydantic", "onnxruntime", "fastapi", "httpx", "saccade"} == set()

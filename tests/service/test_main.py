"""The process: how it starts, how it ends, and what it says when it cannot start."""

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT, Server
from tests.container.callers import Callers
from tests.service.reference import PNG, encoded, picture


def wait_for(server: Server, word: str) -> str:
    """The next log line with `word`."""
    assert server.process.stderr is not None
    for line in server.process.stderr:
        if word in line:
            return line
    raise AssertionError(f"the process ended without saying {word}")


def half_sent(server: Server, query: str = "") -> tuple[socket.socket, bytes]:
    """A request that the service has taken and whose body is not all there: (connection, the rest)."""
    address = httpx.URL(server.url)
    connection = socket.create_connection((address.host, address.port or 80), timeout=30)
    head = f"POST /v1/classify{query} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(PNG)}\r\n"
    connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
    assert connection.recv(100).startswith(b"HTTP/1.1 100")  # sent when the route begins to read the body
    connection.sendall(PNG[:50])
    return connection, PNG[50:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_0_after_what_was_taken_is_finished(small: Path, number: int) -> None:
    """A rolling update loses no request."""
    server = Server(models=small, port=0, drain_grace_s=0)
    connection, rest = half_sent(server)
    server.process.send_signal(number)
    wait_for(server, "draining")
    connection.sendall(rest)
    answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"labels"' in answer
    connection.close()
    assert server.stop() == 0


def test_an_upload_that_stalls_is_ended_by_its_deadline(small: Path) -> None:
    """It is told so, and holds up neither a place nor the end of the process."""
    server = Server(models=small, port=0, drain_grace_s=0, transfer_timeout_s=0.3)
    connection, _ = half_sent(server)
    server.process.send_signal(signal.SIGTERM)
    wait_for(server, "draining")
    answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"request_timeout" in answer
    connection.close()
    assert server.stop() == 0


def test_an_upload_that_takes_longer_than_the_services_deadline_is_answered(small: Path) -> None:
    """The deadline is for what the service does: whose line is slow has the time that the settings give a body."""
    with Server(models=small, port=0, drain_grace_s=0, timeout_ms=1500) as server:
        connection, rest = half_sent(server)
        assert not select.select([connection], [], [], 1.7)[0]
        connection.sendall(rest)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        connection.close()
        assert server.stop() == 0


def test_after_the_grace_new_work_is_told_that_the_service_is_draining_while_old_work_is_finished(
    small: Path,
) -> None:
    """503 with its reason on new connections, for as long as one accepted request is unfinished; that one gets its
    answer, and the process ends with 0.
    """
    with Server(models=small, port=0, drain_grace_s=0) as server:
        connection, rest = half_sent(server)
        server.process.send_signal(signal.SIGTERM)
        wait_for(server, "draining")
        for _ in range(1000):  # the grace of no seconds is over at a turn of the loop
            response = httpx.post(f"{server.url}/v1/classify", content=PNG)
            if response.status_code == 503:
                break
        assert (response.status_code, response.json()["code"]) == (503, "draining")
        assert httpx.get(f"{server.url}/v2/health/ready").json()["code"] == "draining"
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        connection.sendall(rest)
        answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        connection.close()
        assert server.stop() == 0


def test_while_draining_no_connection_is_kept(small: Path) -> None:
    """Whoever keeps one is sent to a new one, and so to another replica, before this one ends."""
    with Server(models=small, port=0, drain_grace_s=600) as server, httpx.Client() as client:
        assert "connection" not in client.post(f"{server.url}/v1/classify", content=PNG).headers
        server.process.send_signal(signal.SIGTERM)
        wait_for(server, "draining")
        for path in ("/v2/health/live", "/v2/health/ready", "/nothing"):
            assert client.get(f"{server.url}{path}").headers["connection"] == "close"
        answered = client.post(f"{server.url}/v1/classify", content=PNG)
        assert (answered.status_code, answered.headers["connection"]) == (200, "close")
        server.process.send_signal(signal.SIGTERM)
        assert server.stop() == 0


def test_callers_who_keep_their_connections_lose_nothing_when_it_ends(small: Path) -> None:
    """Sixteen who ask on and on at a SIGTERM: each request that was sent has its answer, 503 the last of them."""
    with Server(models=small, port=0, drain_grace_s=0.2) as server:
        callers = Callers(f"{server.url}/v1/classify", PNG)
        callers.wait_for_answers(160)
        server.process.terminate()
        outcomes = callers.join()
        assert set(outcomes) <= {"200", "503", "refused"}
        assert server.stop() == 0


def test_what_waits_in_the_queue_is_finished_before_the_process_ends(small: Path) -> None:
    """Sixteen callers at a signal, most of them not yet at the engine: each is answered, none is cut off."""
    large = encoded(picture(1500, 1500), "PNG")
    with (
        Server(models=small, port=0, drain_grace_s=0, instances=1, intra_op_threads=1, max_batch=1) as server,
        ThreadPoolExecutor(16) as threads,
    ):
        asked = [threads.submit(httpx.post, f"{server.url}/v1/classify", content=large, timeout=60) for _ in range(16)]
        while not any(one.done() for one in asked):
            found = re.search(r"^saccade_queue_images{.*} (\S+)$", httpx.get(f"{server.url}/metrics").text, re.M)
            assert found
            if float(found[1]) >= 4:
                break
        assert float(found[1]) >= 4
        server.process.send_signal(signal.SIGTERM)
        statuses = [one.result().status_code for one in asked]  # no connection is cut
        assert set(statuses) <= {200, 503}
        assert statuses.count(200) >= 4
        assert server.stop() == 0


def test_while_draining_readiness_is_503_on_an_open_listener_and_work_is_taken(small: Path) -> None:
    """The balancer sees it in time, on a new connection; live stays 200."""
    server = Server(models=small, port=0, drain_grace_s=600)
    assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
    server.process.send_signal(signal.SIGTERM)
    assert "600 s" in wait_for(server, "draining")
    ready = httpx.get(f"{server.url}/v2/health/ready")
    assert (ready.status_code, ready.json()["code"]) == (503, "draining")
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
    assert httpx.post(f"{server.url}/v1/classify", content=PNG, timeout=30).status_code == 200
    server.process.kill()
    assert server.stop() == -signal.SIGKILL


def test_an_idle_connection_does_not_hold_the_process_up(small: Path) -> None:
    """A client that keeps its connection for later is no work."""
    server = Server(models=small, port=0, drain_grace_s=0)
    with httpx.Client() as client:
        assert client.get(f"{server.url}/v2/health/live").status_code == 200
        assert server.stop() == 0


def environment_with(**settings: Any) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SACCADE_")}
    return environment | {f"SACCADE_{name.upper()}": str(value) for name, value in settings.items()}


def run(*arguments: str, more: dict[str, str] | None = None, **settings: Any) -> subprocess.CompletedProcess[str]:
    environment = environment_with(**settings) | (more or {})
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_what_prevents_a_start_is_one_line_and_exit_code_2(models: Path, tmp_path: Path, taken: int) -> None:
    """Whoever starts it reads what to mend, not a traceback."""
    cases: list[tuple[dict[str, Any], str]] = [
        ({"port": "no"}, r"SACCADE_PORT: .*'no'"),
        ({"port": taken, "models": models}, rf"could not listen on 127\.0\.0\.1:{taken}: .*in use"),
        ({"port": 0, "models": tmp_path / "none"}, r"no folder of models at .*/none"),
        (
            {"port": 0, "models": models, "providers": "NoSuchProvider"},
            r".*NoSuchProvider is asked for .* CPUEx",
        ),
        ({"port": 0, "models": models, "host": "0.0.0.0"}, r"SACCADE_HOST is 0\.0\.0\.0"),
    ]
    for settings, expected in cases:
        ended = run(**settings)
        assert ended.returncode == 2, ended.stderr
        said = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
        assert len(said) == 1, ended.stderr
        assert re.match(f"saccade: {expected}", said[0])
        assert "Traceback" not in ended.stderr
        assert ended.stdout == ""


def test_log_lines_are_json(small: Path) -> None:
    """One object a line, with the plan of each model."""
    server = Server(models=small, port=0, drain_grace_s=0)
    server.process.terminate()
    assert server.process.stderr is not None
    lines = [json.loads(line) for line in server.process.stderr if line.strip()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    assert any("draining" in line["message"] for line in lines)
    server.process.stderr.close()
    assert server.process.wait() == 0


def test_a_websocket_is_answered_in_our_shape(server: Server) -> None:
    """An upgrade is no way round keys and errors."""
    upgrade = {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-version": "13",
               "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip
    response = httpx.get(f"{server.url}/nothing", headers=upgrade)
    assert response.status_code == 404
    assert response.json()["code"] == "unknown_route"


def test_a_second_signal_does_not_wait_for_what_was_accepted(small: Path) -> None:
    """Ctrl-C twice ends the process although a caller holds a request open."""
    server = Server(models=small, port=0, drain_grace_s=600)
    connection, _ = half_sent(server)
    server.process.send_signal(signal.SIGINT)
    wait_for(server, "draining")
    assert server.stop() == 0
    connection.close()


def test_a_caller_with_a_long_deadline_does_not_keep_a_draining_process_alive(small: Path) -> None:
    """After drain_timeout_s what is left is cut."""
    server = Server(models=small, port=0, drain_grace_s=0, drain_timeout_s=0.1, timeout_ms=3_600_000)
    connection, _ = half_sent(server)
    server.process.send_signal(signal.SIGTERM)
    wait_for(server, "1 requests are not finished")
    assert server.stop() == 0
    connection.close()


def test_serving_everybody_is_said_in_the_log(small: Path) -> None:
    """allow_anonymous on a public address is visible."""
    server = Server(models=small, host="0.0.0.0", port=0, drain_grace_s=0, allow_anonymous=True)
    assert "everybody who reaches 0.0.0.0 is served" in server.log
    assert server.stop() == 0


def test_the_engine_reports_to_nobody(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's telemetry, which keeps a database in the home folder until it is sent, is off."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    with Server(models=small, port=0, drain_grace_s=0) as server:
        assert httpx.post(f"{server.url}/v1/classify", content=PNG).status_code == 200
        assert server.stop() == 0
    assert list(home.rglob("*")) == []


# --- one process

ONE = "queue, deadlines and metrics are those of one process; for more CPUs raise SACCADE_INSTANCES"


@pytest.mark.parametrize(
    ("arguments", "more", "words"),
    [
        ([], {"WEB_CONCURRENCY": "2"}, "WEB_CONCURRENCY is 2"),
        ([], {"UVICORN_WORKERS": "2"}, "UVICORN_WORKERS is 2"),
        (["--workers", "2"], {}, "takes no arguments, not '--workers 2'"),
    ],
)
def test_whoever_asks_for_several_worker_processes_is_told_why_there_is_one(
    small: Path, arguments: list[str], more: dict[str, str], words: str
) -> None:
    """Each would hold a queue and metrics of its own, and together more threads than CPUs: exit code 2, in one line."""
    ended = run(*arguments, more=more, models=small, port=0)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("saccade: ")
    assert words in line
    assert ONE in line
    assert ended.stdout == ""


@pytest.mark.parametrize("count", ["1", ""])
def test_one_worker_process_may_be_asked_for(small: Path, monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    """What a platform sets for every container does no harm where it says one, or nothing."""
    for name in ("WEB_CONCURRENCY", "UVICORN_WORKERS"):
        monkeypatch.setenv(name, count)
    with Server(models=small, port=0, drain_grace_s=0) as server:
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
        assert server.stop() == 0


UVICORN = ("uvicorn", "--port", "0")
GUNICORN = ("gunicorn", "--worker-class", "uvicorn_worker.UvicornWorker", "--bind", "127.0.0.1:0")


@contextlib.contextmanager
def embedded(folder: Path, models: Path, *arguments: str) -> Iterator[Iterator[str]]:
    """The lines that a server says with a module that embeds the service; it and its workers end afterwards."""
    (folder / "embedding.py").write_text(
        "from service.app import create_app\nfrom service.settings import load_settings\n\n"
        "app = create_app(load_settings())\n"
    )
    command = [sys.executable, "-m", *arguments, "embedding:app"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment_with(models=models) | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        yield iter(process.stderr.readline, "")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stderr.read()
        process.stderr.close()
        process.wait()


@pytest.mark.parametrize("server", [UVICORN, GUNICORN], ids=["uvicorn", "gunicorn"])
def test_a_second_worker_process_of_a_server_that_embeds_the_service_refuses_to_start(
    tmp_path: Path, small: Path, server: tuple[str, ...]
) -> None:
    """With --workers 2 one serves, and the other says in its log what it is and what to do instead."""
    with embedded(tmp_path, small, *server, "--workers", "2") as lines:
        said = ""
        for line in lines:
            said += line
            if "SettingsError: this is a second worker process" in line:
                break
        assert f"SettingsError: this is a second worker process of one server: {ONE}" in said
        if server is GUNICORN:
            return  # it ends as a whole where a worker does not start
        # the first of them started, before or after
        while "Application startup complete" not in said:
            said += (line := next(lines))
            assert line


@pytest.mark.parametrize(
    "arguments",
    [UVICORN, (*UVICORN, "--workers", "1"), (*UVICORN, "--reload"), (*GUNICORN, "--workers", "1")],
    ids=["uvicorn", "uvicorn-1", "uvicorn-reload", "gunicorn-1"],
)
def test_one_process_of_a_server_that_embeds_the_service_serves(
    tmp_path: Path, small: Path, arguments: tuple[str, ...]
) -> None:
    """Embedding is as good as `python -m service`, as long as it is one."""
    with embedded(tmp_path, small, *arguments) as lines:
        said, url, complete = "", None, False
        while not (url and complete):
            said += (line := next(lines))
            assert line
            complete = complete or "Application startup complete" in line
            url = (re.findall(r"(?:running on|Listening at:) (http://[0-9.:]+)", line) or [url])[0]
        assert httpx.get(f"{url}/v2/health/ready", timeout=60).status_code == 200
        assert httpx.post(f"{url}/v1/classify", content=PNG, timeout=60).status_code == 200


def test_two_servers_side_by_side_are_two_services(tmp_path: Path, small: Path) -> None:
    """Only workers of one server share a place: another container, or another port, is its own."""
    with (
        Server(models=small, port=0, drain_grace_s=0) as first,
        Server(models=small, port=0, drain_grace_s=0) as second,
    ):
        for server in (first, second):
            assert httpx.post(f"{server.url}/v1/classify", content=PNG).status_code == 200
            assert server.stop() == 0

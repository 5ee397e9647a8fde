"""A server as processes: started on a free port, ready, stopped in its tracks while others are measured, ended."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

HOST = "127.0.0.1"

_START_S = 120.0
_STOP_S = 10.0
_SETTLE_S = 0.05


class Running:
    """A server that answers; it leads a session of its own, so that all its processes can be found."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process = process
        self.pid = process.pid
        self.url = f"http://{HOST}:{port}"
        self.log = log

    def pause(self) -> None:
        """Stops all its processes where they are; what is not measured costs nothing."""
        # The first process before its children: a question that it has asked must find their answer when it goes on,
        # or a supervisor takes them for dead.
        os.kill(self.pid, signal.SIGSTOP)
        time.sleep(_SETTLE_S)
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        for member in _members(self.pid) - {self.pid}:
            _signal(member, signal.SIGCONT)
        time.sleep(_SETTLE_S)
        _signal(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Asks, then kills what is left of the group."""
        if self._process.poll() is None:
            self.resume()
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S)
        while left := _members(self.pid):
            for member in left:
                _signal(member, signal.SIGKILL)
            self._process.poll()  # takes the first one's exit code, without which it stays as a zombie
            time.sleep(0.01)
        self._process.wait()


def launch(
    command: list[str], environment: dict[str, str], folder: Path, *, port: int, ready: str, announced: int, log: Path
) -> Running:
    """Starts it and waits until its path `ready` says 200 and `announced` processes have said so in its log.

    Raises RuntimeError with the end of the log where it ends or takes longer than two minutes.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    running = Running(process, port, log)
    try:
        while not (_answers(port, ready) and _announced(log) >= announced):
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended with {process.returncode}: {_tail(log)}")
            if time.monotonic() - began > _START_S:
                raise RuntimeError(f"{command} is not ready after {_START_S:g} s: {_tail(log)}")
            time.sleep(0.02)
    except BaseException:
        running.stop()
        raise
    return running


def free_port() -> int:
    """Free now; nothing holds it until the server listens on it."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        return int(taken.getsockname()[1])


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _announced(log: Path) -> int:
    return log.read_bytes().count(b'{"ready": ')


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def _members(group: int) -> set[int]:
    """The processes of a group that still run."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member_of = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it has ended
        if int(member_of) == group and state != "Z":
            found.add(int(stat.parent.name))
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)

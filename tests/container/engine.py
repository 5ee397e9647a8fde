"""Docker's own command line, used as whoever runs the image uses it."""

import itertools
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")

_numbers = itertools.count(1)


class Failed(Exception):
    """What was promised does not hold; the message says what was seen."""


def docker(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What `docker …` prints. Raises Failed with what it says where it fails."""
    ran = subprocess.run(
        ["docker", *arguments], cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if ran.returncode:
        raise Failed(f"docker {' '.join(arguments)}: {(ran.stderr or ran.stdout).strip()[-2000:]}")
    return ran.stdout


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def until(what: str, holds: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for it; Docker tells of no change in a way that all its versions share. Raises Failed."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise Failed(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)


def answers(url: str) -> bool:
    """Whether the service there is ready."""
    try:
        return httpx.get(f"{url}/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False


class Container:
    """One of an image of ours, started with `docker run`, on a port of its own; removed at the end."""

    def __init__(self, image: str, network: str, options: Sequence[str] = HARDENED, **settings: object) -> None:
        """`settings`: those of the service, without their prefix."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.name = f"saccade-check-{os.getpid()}-{next(_numbers)}"
        variables = {"allow_anonymous": True, "port": self.port, **settings}
        given = [f"--env=SACCADE_{name.upper()}={value}" for name, value in variables.items() if value is not None]
        reached = ["--network=host"] if network == "host" else [f"--publish=127.0.0.1:{self.port}:{self.port}"]
        try:
            docker("run", "--detach", f"--name={self.name}", *reached, *options, *given, image)
        except Failed:
            docker("rm", "--force", self.name)  # Docker keeps what it made and could not start
            raise

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *_: object) -> None:
        docker("rm", "--force", self.name)

    def is_decided(self) -> bool:
        """Whether it is ready or has ended."""
        return answers(self.url) or self._ended()

    def wait_until_ready(self) -> "Container":
        until(f"{self.name} is ready", self.is_decided)
        if self._ended():
            raise Failed(f"the container ended: {self.log()}")
        return self

    def wait_until_ended(self) -> dict[str, Any]:
        """Its state, once it is not running and will not be started again."""
        until(f"{self.name} has ended", self._ended)
        return self.inspect()["State"]  # type: ignore[no-any-return]

    def own_url(self) -> str:
        """Where it listens itself: a published port is Docker's, which takes connections that it cannot hand on."""
        address = self.inspect()["NetworkSettings"]["Networks"].get("bridge", {}).get("IPAddress") or "127.0.0.1"
        return f"http://{address}:{self.port}"

    def inspect(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(docker("inspect", self.name))[0]
        return found

    def log(self) -> str:
        ran = subprocess.run(["docker", "logs", self.name], capture_output=True, text=True, check=True)
        return ran.stdout + ran.stderr

    def python(self, code: str) -> str:
        """What Python code prints inside."""
        return docker("exec", self.name, "python", "-c", code)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        docker("stop", "-t", "60", self.name)
        code: int = self.inspect()["State"]["ExitCode"]
        return code

    def _ended(self) -> bool:
        return bool(self.inspect()["State"]["Status"] in ("exited", "dead"))

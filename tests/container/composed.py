"""What the compose file makes of the image, unmodified; but for the network, where the engine has no bridge."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.container.callers import dearest
from tests.container.engine import ROOT, docker, free_port
from tests.container.running import PHOTOGRAPH

_FILES = {"bridge": ["docker-compose.yml"], "host": ["docker-compose.yml", "tests/container/compose.host.yml"]}


def compose(network: str, *arguments: str, port: int = 8000, cpus: int = 1) -> str:
    files = [f"--file={ROOT / name}" for name in _FILES[network]]
    # a project of its own, so that one that runs is left alone
    project = ("--project-name=saccade-check", f"--project-directory={ROOT}", *files, "--profile=cpu")
    return docker("compose", *project, *arguments, environment={"PORT": str(port), "CPUS": str(cpus)})


def goes_up_and_down(network: str) -> str:
    """`docker compose up` brings a healthy service up that answers, hardened and limited; `down` leaves nothing."""
    port = free_port()
    try:
        compose(network, "up", "--detach", "--wait", "--no-build", port=port)
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/classify", content=PHOTOGRAPH)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"]["name"] == "cifar10-hybrid-s"
        found: dict[str, Any] = json.loads(docker("inspect", compose(network, "ps", "--quiet").strip()))[0]
        _check(found)
        log = compose(network, "logs", "--no-log-prefix")
        assert "everybody who reaches" in log or network == "host", log
    finally:
        compose(network, "down", "--volumes")
    left = docker("ps", "--all", "--quiet", "--filter=label=com.docker.compose.project=saccade-check")
    assert not left, left
    return f"healthy, {found['HostConfig']['Memory'] >> 20} MiB, restart {found['HostConfig']['RestartPolicy']['Name']}"


def _check(found: dict[str, Any]) -> None:
    host = found["HostConfig"]
    assert host["ReadonlyRootfs"], host
    assert host["CapDrop"] == ["ALL"], host["CapDrop"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"], host["SecurityOpt"]
    assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (10**9, 3 * 2**30, 200), host
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 5}, host["RestartPolicy"]
    assert found["Config"]["User"] == "10001:10001", found["Config"]["User"]
    (models,) = [mount for mount in found["Mounts"] if mount["Destination"] == "/models"]
    assert not models["RW"], models


def knows_every_profile(network: str) -> str:
    """Each profile is one service of that name; the gpu's asks the engine for a GPU."""
    services: dict[str, Any] = {}
    for profile in ("cpu", "gpu"):
        services |= json.loads(compose(network, f"--profile={profile}", "config", "--format=json"))["services"]
    assert set(services) == {"cpu", "gpu"}, services
    (device,) = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"], device
    return "cpu, gpu"


def holds_within_its_limit(network: str) -> str:
    """Within the limits of the compose file the dearest pictures, and the largest bodies, are answered at once."""
    port, cpus = free_port(), min(2, os.cpu_count() or 1)
    variables = json.loads(compose(network, "config", "--format=json"))["services"]["cpu"]["environment"]
    largest = dearest(int(variables["SACCADE_MAX_PIXELS"]), int(variables["SACCADE_MAX_BODY_BYTES"]))
    try:
        compose(network, "up", "--detach", "--wait", "--no-build", port=port, cpus=cpus)
        for body, count in zip(largest, (2, 16), strict=True):
            with ThreadPoolExecutor(count) as callers:
                url = f"http://127.0.0.1:{port}/v1/classify"
                asked = [callers.submit(httpx.post, url, content=body, timeout=60) for _ in range(count)]
            seen = [answer.result().status_code for answer in asked]
            assert seen == [200] * count, seen
        found = json.loads(docker("inspect", compose(network, "ps", "--quiet").strip()))[0]
        assert (found["RestartCount"], found["State"]["OOMKilled"]) == (0, False), found["State"]
    finally:
        compose(network, "down", "--volumes")
    return f"{len(largest[0])} bytes twice, {len(largest[1]) / 1e6:.1f} MB 16 times, on {cpus} CPUs"


STEPS = (knows_every_profile, goes_up_and_down, holds_within_its_limit)

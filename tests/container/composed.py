"""What the compose file makes of the image, unmodified; but for the network, where the engine has no bridge."""

import json
from typing import Any

import httpx

from tests.container.engine import ROOT, docker, free_port
from tests.container.running import PHOTOGRAPH

_FILES = {"bridge": ["docker-compose.yml"], "host": ["docker-compose.yml", "tests/container/compose.host.yml"]}


def compose(network: str, *arguments: str, port: int = 8000) -> str:
    files = [f"--file={ROOT / name}" for name in _FILES[network]]
    # a project of its own, so that one that runs is left alone
    project = ("--project-name=saccade-check", f"--project-directory={ROOT}", *files, "--profile=cpu")
    return docker("compose", *project, *arguments, environment={"PORT": str(port), "CPUS": "1"})


def goes_up_and_down(network: str) -> str:
    """`docker compose up` brings a healthy service up that answers, hardened and limited; `down` leaves nothing."""
    port = free_port()
    try:
        compose(network, "up", "--detach", "--wait", "--no-build", port=port)
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/classify", content=PHOTOGRAPH)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"]["name"] == "cifar10-cct"
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
    assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (10**9, 2**30, 200), host
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


STEPS = (knows_every_profile, goes_up_and_down)

"""What a container of the image does."""

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.container.callers import Callers
from tests.container.engine import HARDENED, ROOT, Container, docker, until
from tests.container.image import CPU
from tests.container.outside import outside

PHOTOGRAPH = (ROOT / "examples/chelsea.jpg").read_bytes()

_QUERIES = (
    "maps=class,rollout,pooling&classes=topk&top_k=10&attention=all&heads=all&decimals=9",
    "maps=none&top_k=10&decimals=9",
    "attention=last&rows=pool&decimals=9",
)
_ROUNDS = 3

_PRIVILEGES = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
def refused(act):
    try:
        act()
    except OSError as error:
        return error.strerror
    return ""
folders = "", "/app", "/models", "/tmp", "/opt/saccade"
acts = {
    "write": [lambda folder=folder: open(folder + "/made", "w") for folder in folders],
    "become root": [lambda: os.setuid(0)],
    "give a file away": [lambda: os.chown("/app", 0, 0)],
    "leave the root": [lambda: os.chroot("/app")],
}
wanted = "Uid", "Gid", "CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs"
refusals = {name: [refused(act) for act in several] for name, several in acts.items()}
print(json.dumps([{name: status[name].split()[0] for name in wanted}, refusals]))
"""


def is_healthy(network: str) -> str:
    """Hardened, it becomes healthy on the port that it was told; with nothing there, its check says so and fails."""
    with Container(CPU, network) as container:
        until("healthy", lambda: container.inspect()["State"]["Health"]["Status"] == "healthy")
        other = docker("exec", "--env=SACCADE_PORT=9", container.name, "sh", "-c", "python -m service.health 2>&1 || :")
        assert other.startswith("not ready: 127.0.0.1:9 does not answer"), other
    return f"healthy on {container.port}"


def has_no_privileges(network: str) -> str:
    """It is user 10001 with no capabilities and no new privileges, on a root that nobody can write to."""
    with Container(CPU, network) as container:
        container.wait_until_ready()
        status, refusals = json.loads(container.python(_PRIVILEGES))
        assert container.inspect()["Config"]["User"] == "10001:10001"
    assert (status.pop("Uid"), status.pop("Gid"), status.pop("NoNewPrivs")) == ("10001", "10001", "1")
    assert all(int(mask, 16) == 0 for mask in status.values()), status
    assert all(all(seen) for seen in refusals.values()), refusals
    assert set(refusals["write"]) == {"Read-only file system"}, refusals
    return f"uid 10001, {status['CapEff']}; to write: {refusals['write'][0]}"


def answers_as_outside(network: str) -> str:
    """A prediction inside equals the one outside to the last decimal: labels, maps, attention of all heads."""
    plan: dict[str, Any] = {"instances": 1, "intra_op_threads": 1, "default_model": "cifar10-cct"}
    with Container(CPU, network, **plan) as container, outside(port=0, models="models", **plan) as url:
        container.wait_until_ready()
        numbers = 0
        for query in _QUERIES:
            inside, there = (_answer(at, query) for at in (container.url, url))
            assert inside == there, query
            numbers += json.dumps(inside).count(",")
    return f"{len(_QUERIES)} answers, {numbers} values"


def takes_large_uploads(network: str) -> str:
    """A multipart upload of some megabytes needs no file: there is nowhere to write one."""
    noise = np.random.default_rng(1).integers(0, 256, (1200, 1200, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    with Container(CPU, network) as container:
        container.wait_until_ready()
        response = httpx.post(f"{container.url}/v1/classify", files={"image": ("noise.png", file.getvalue())})
        assert response.status_code == 200, response.text
    return f"{len(file.getvalue()) / 1e6:.1f} MB"


def wants_keys_or_consent(network: str) -> str:
    """Without keys or consent it does not start; with a file of keys it serves who has one."""
    with Container(CPU, network, allow_anonymous=None) as container:
        assert container.wait_until_ended()["ExitCode"] == 2
        said = container.log().splitlines()[-1]
        assert said.startswith("saccade: SACCADE_HOST is 0.0.0.0, which others can reach"), said
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder, "keys.txt")
        keys.write_text("a-key-of-the-check\n")
        keys.chmod(0o644)
        Path(folder).chmod(0o755)
        mounted = (*HARDENED, f"--volume={keys}:/run/secrets/keys:ro")
        with Container(CPU, network, mounted, allow_anonymous=None, api_keys_file="/run/secrets/keys") as container:
            container.wait_until_ready()
            url = f"{container.url}/v1/models"
            statuses = [
                httpx.get(url, headers=given).status_code for given in ({}, {"X-API-Key": "a-key-of-the-check"})
            ]
            assert statuses == [401, 200], statuses
    return "exit 2; 401 and 200"


def serves_models_of_others(network: str) -> str:
    """A folder of models mounted over its own is served, without a word about a default."""
    mounted = (*HARDENED, f"--volume={ROOT / 'models/cifar10-resnet20'}:/models/cifar10-resnet20:ro", "--tmpfs=/models")
    with Container(CPU, network, mounted) as container:
        container.wait_until_ready()
        answer = httpx.post(f"{container.url}/v1/classify", content=PHOTOGRAPH).json()
    assert answer["model"]["name"] == "cifar10-resnet20", answer
    return "cifar10-resnet20"


def plans_for_its_quota(network: str) -> str:
    """A quota of one CPU gives the plan for one CPU, and the plan shows the memory limit."""
    with Container(CPU, network, (*HARDENED, "--cpus=1", "--memory=512m")) as container:
        container.wait_until_ready()
        plan = httpx.get(f"{container.url}/v1/models/cifar10-cct").json()["plan"]
    seen = {name: plan[name] for name in ("cpus", "cpu_quota", "instances", "intra_op_threads", "memory_limit")}
    assert list(seen.values()) == [1, 1.0, 1, 1, 512 * 2**20], seen
    return f"1 of {plan['cpu_affinity']} CPUs"


def says_that_memory_is_too_little(network: str) -> str:
    """A memory limit too small for the process is said, with exit code 2; restarts end, and nothing was killed."""
    starved = (*HARDENED, "--memory=32m", "--restart=on-failure:2")
    with Container(CPU, network, starved) as container:
        until("2 restarts", lambda: container.inspect()["RestartCount"] == 2)
        state = container.wait_until_ended()
        said = container.log().splitlines()
    assert (state["ExitCode"], state["OOMKilled"]) == (2, False), state
    assert len(said) == 3, said
    assert set(said) == {said[0]}, said
    assert said[0].startswith("saccade: the memory limit is 32 MiB, and the service takes"), said
    return said[0].removeprefix("saccade: ")


def says_that_memory_is_too_little_for_models(network: str) -> str:
    """A memory limit too small for the models' sessions is said, with exit code 2, and nothing was killed."""
    with Container(CPU, network, (*HARDENED, "--memory=128m"), instances=64) as container:
        state = container.wait_until_ended()
        said = container.log().splitlines()[-1]
    assert (state["ExitCode"], state["OOMKilled"]) == (2, False), state
    assert said.startswith("saccade: the memory limit is 128 MiB, and with cifar10-cct@1 the service takes"), said
    return said.removeprefix("saccade: ")


def is_said_or_served_at_every_limit(network: str) -> str:
    """From 16 to 96 MiB, each limit is either said to be too small or enough to answer with; the kernel never kills."""
    said, served = [], []
    for limit in range(16, 97, 8):
        with Container(CPU, network, (*HARDENED, f"--memory={limit}m")) as container:
            until(f"ready or not at {limit} MiB", container.is_decided)
            state = container.inspect()["State"]
            assert not state["OOMKilled"], f"killed at {limit} MiB: {container.log()[-500:]}"
            if state["Running"]:
                assert httpx.post(f"{container.url}/v1/classify", content=PHOTOGRAPH).status_code == 200
                served.append(limit)
            else:
                assert state["ExitCode"] == 2, state
                said.append(limit)
    assert max(said) < min(served), (said, served)
    return f"said up to {max(said)} MiB, served from {min(served)} MiB"


def loses_nothing_when_it_is_stopped(network: str) -> str:
    """SIGTERM under load of 16 callers loses no request that was sent, and the exit code is 0; three times."""
    seen = []
    for _ in range(_ROUNDS):
        with Container(CPU, network) as container:
            container.wait_until_ready()
            callers = Callers(f"{container.url}/v1/classify?maps=class", PHOTOGRAPH)
            callers.wait_for_answers(300)
            code = container.stop()
            outcomes = callers.join()
        assert code == 0, code
        assert set(outcomes) <= {"200", "503", "refused"}, outcomes
        seen.append(
            f"{outcomes['200']} answered, {outcomes['503']} told to go elsewhere, {outcomes['refused']} refused"
        )
    return "; ".join(seen)


def _answer(url: str, query: str) -> dict[str, Any]:
    response = httpx.post(f"{url}/v1/classify?{query}", content=PHOTOGRAPH)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return {name: value for name, value in answer.items() if name not in ("request_id", "timing")}


STEPS = (
    is_healthy,
    has_no_privileges,
    answers_as_outside,
    takes_large_uploads,
    wants_keys_or_consent,
    serves_models_of_others,
    plans_for_its_quota,
    says_that_memory_is_too_little,
    says_that_memory_is_too_little_for_models,
    is_said_or_served_at_every_limit,
    loses_nothing_when_it_is_stopped,
)

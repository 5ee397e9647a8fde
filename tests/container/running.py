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
    "maps=class,rollout&classes=topk&top_k=10&attention=all&heads=all&decimals=9",
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
    plan: dict[str, Any] = {"instances": 1, "intra_op_threads": 1, "default_model": "cifar10-hybrid-s"}
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
    mounted = (*HARDENED, f"--volume={ROOT / 'models/cifar10-resnet-s'}:/models/cifar10-resnet-s:ro", "--tmpfs=/models")
    with Container(CPU, network, mounted) as container:
        container.wait_until_ready()
        answer = httpx.post(f"{container.url}/v1/classify", content=PHOTOGRAPH).json()
    assert answer["model"]["name"] == "cifar10-resnet-s", answer
    return "cifar10-resnet-s"


def loses_nothing_when_it_is_stopped(network: str) -> str:
    """SIGTERM under load of 16 callers loses no request that was sent, and the exit code is 0; three times."""
    seen = []
    for _ in range(_ROUNDS):
        with Container(CPU, network) as container:
            container.wait_until_ready()
            callers = Callers(f"{container.own_url()}/v1/classify?maps=class", PHOTOGRAPH)
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
    loses_nothing_when_it_is_stopped,
)

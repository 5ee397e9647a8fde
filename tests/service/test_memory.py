"""A limit of memory that is too small: said in a sentence, in real cgroups, before the kernel kills."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from safetensors import numpy as safetensors

from saccade.bundle import find_bundles, open_bundle, update_bundle
from service.memory import _IMPORTS, refusal_to_start
from tests.conftest import ROOT, Server
from tests.container.callers import dearest
from tests.service.cgroups import enter, real_cgroup, tree, v2
from tests.service.reference import PNG, copy_bundle
from tests.service.test_main import environment_with

MIB = 2**20


@pytest.fixture
def limited(request: pytest.FixtureRequest) -> Iterator[str]:
    """A statement that puts a process under the limit of so many MiB (the parameter), all in all."""
    limit = str(request.param * MIB)
    with real_cgroup("memory", {1: {"memory.limit_in_bytes": limit}, 2: {"memory.max": limit}}) as made:
        yield enter(made)


def ended(limited: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    code = f"import os, sys; {limited}; os.execv(sys.executable, [sys.executable, '-m', 'service'])"
    command = [sys.executable, "-c", code]
    environment = environment_with(port=0, **settings)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def sentence(seen: subprocess.CompletedProcess[str]) -> str:
    """The one line that says why it did not start; what went before is the log."""
    assert seen.returncode == 2, seen.stderr  # -9 is the kernel's
    (line,) = [line for line in seen.stderr.splitlines() if line.startswith("saccade: ")]
    return line


@pytest.mark.parametrize("limited", [16, 48], indirect=True)
def test_a_limit_too_small_to_import_anything_is_said(limited: str, small: Path) -> None:
    """Exit code 2 and a sentence with the limit and the need, where the imports alone would be killed."""
    found = re.search(
        r"the memory limit is (16|48) MiB, and the service takes (\d+) MiB", sentence(ended(limited, models=small))
    )
    assert found
    assert int(found[2]) > int(found[1])


IMPORTED = """
import service.process
from service.memory import own_memory
print(own_memory())
"""


def test_what_imports_are_said_to_take_is_what_they_take() -> None:
    """To 4 MiB, by which versions of Python and of the packages may differ."""
    command = [sys.executable, "-c", IMPORTED]
    ran = subprocess.run(command, cwd=ROOT, env=environment_with(), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert abs(int(ran.stdout) - _IMPORTS) < 4 * MIB


def test_the_docs_say_what_the_sentence_says(tmp_path: Path) -> None:
    """How much it takes before its models."""
    said = refusal_to_start(tree(tmp_path, "0::/\n", v2(), {"sys/fs/cgroup/memory.max": f"{32 * MIB}\n"}))
    assert said is not None
    assert said in (ROOT / "docs/container.md").read_text(encoding="utf-8")
    needed = said.split(" takes ")[1].split(" before")[0]
    assert f"for the {needed} that it takes without a model" in (ROOT / "docs/settings.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("limited", [96], indirect=True)
def test_a_limit_too_small_for_a_models_weights_is_said_before_they_are_read(
    limited: str, models: Path, tmp_path: Path
) -> None:
    """The sentence names the model, the limit and what it would take."""
    bundle = copy_bundle(models, "tiny-resnet", tmp_path)
    weights = safetensors.load(bundle.weights.read_bytes())
    padded = safetensors.save({**weights, "more": np.zeros(120 * MIB, np.uint8)})
    update_bundle(bundle, {}, {"weights.safetensors": padded})
    said = sentence(ended(limited, models=tmp_path, instances=1))
    assert "the memory limit is 96 MiB, and with tiny-resnet@1 the service takes" in said
    assert "for each of 1 session: raise the limit" in said


@pytest.mark.parametrize("limited", [112], indirect=True)
def test_a_limit_too_small_for_more_sessions_is_said_once_one_shows_what_it_takes(limited: str, small: Path) -> None:
    """Weights are not all of a session; the sentence says what to lower."""
    said = sentence(ended(limited, models=small, instances=64))
    assert "the memory limit is 112 MiB, and with tiny-resnet@1 the service takes" in said
    assert "for each of 63 sessions: raise the limit, or set SACCADE_INSTANCES lower" in said


@pytest.mark.parametrize("limited", [160], indirect=True)
def test_a_limit_that_is_enough_is_shown_in_the_plan(limited: str, small: Path) -> None:
    """Whoever asks why it takes no more can read it."""
    code = f"import os, sys; {limited}; os.execv(sys.executable, [sys.executable, '-m', 'service'])"
    with Server(code, models=small, port=0, drain_grace_s=0) as server:
        assert httpx.get(f"{server.url}/v1/models/tiny-resnet").json()["plan"]["memory_limit"] == 160 * MIB
        assert httpx.post(f"{server.url}/v1/classify", content=PNG).status_code == 200
        assert server.stop() == 0


@pytest.mark.parametrize("limited", [160], indirect=True)
@pytest.mark.parametrize(("largest", "pictures", "bodies"), [({}, 763, 6400), ({"max_pixels": 500_000}, 8, 6400),
                         ({"max_pixels": 500_000, "max_body_bytes": 2**20, "queue_images": 16}, 0, 0)])  # fmt: skip
def test_a_limit_that_requests_could_pass_is_said_once(
    limited: str, small: Path, largest: dict[str, int], pictures: int, bodies: int
) -> None:
    """One warning with the limit, what it is made of, and what to lower; none where all fits."""
    code = f"import os, sys; {limited}; os.execv(sys.executable, [sys.executable, '-m', 'service'])"
    with Server(code, models=small, port=0, drain_grace_s=0, instances=1, decode_threads=0, **largest) as server:
        lines = [json.loads(line) for line in server.log.splitlines()]
        said = [line["message"] for line in lines if "requests that the settings allow" in line["message"]]
        assert len(said) == bool(bodies)
        for sentence in said:
            assert sentence.startswith("the memory limit is 160 MiB, ")
            assert f"{pictures} MiB for the largest picture in each of 1 threads" in sentence
            assert f"{bodies} MiB for 256 of the largest bodies" in sentence
            for name in ("MAX_PIXELS", "MAX_BODY_BYTES", "QUEUE_IMAGES"):
                assert f"SACCADE_{name}" in sentence
        assert server.stop() == 0


@pytest.mark.parametrize("limited", [3072], indirect=True)
def test_what_the_compose_file_sets_holds_within_the_limit_that_it_sets(limited: str) -> None:
    """The dearest pictures in each thread that decodes, and the largest bodies, a queue full of them: all answered."""
    variables = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["x-service"]["environment"]
    names = ("MAX_PIXELS", "MAX_BODY_BYTES", "QUEUE_IMAGES")
    values = {name.lower(): variables[f"SACCADE_{name}"] for name in names}
    code = f"import os, sys; {limited}; os.execv(sys.executable, [sys.executable, '-m', 'service'])"
    with Server(
        code, default_model="cifar10-hybrid-s", instances=2, decode_threads=0, port=0, drain_grace_s=0, **values
    ) as it:
        assert "requests that the settings allow" not in it.log
        largest = dearest(values["max_pixels"], values["max_body_bytes"])
        for body, count in zip(largest, (2, values["queue_images"]), strict=True):
            urls = [
                f"{it.url}/v1/classify?model={folder.parent.name}" for folder in find_bundles(ROOT / "models")
            ] * count
            with ThreadPoolExecutor(len(urls)) as callers:
                asked = [callers.submit(httpx.post, url, content=body, timeout=60) for url in urls]
            assert {answer.result().status_code for answer in asked} == {200}
        assert it.stop() == 0


IN_MEMORY = """
import sys
from pathlib import Path
from saccade.bundle import open_bundle
from service.memory import own_memory
from service.plan import Cpus, make_plan
from service.relevance import Relevance
from service.placement import CPU
from service.session import OnnxRunner, load_head
from service.settings import Settings
bundle = open_bundle(Path(sys.argv[1]))
plan, head = make_plan(Settings(), Cpus(1, 1.0), CPU), load_head(bundle)
runner = OnnxRunner(bundle, (CPU,), 1, head=head)
before = own_memory()
relevance = Relevance(bundle, bundle.manifest.maps.gradients, (CPU,), plan, head)
relevance.open()
print(own_memory() - before)
"""


def test_relevance_has_no_weights_of_its_own_in_memory() -> None:
    """Of a net of convolutions too, whose sessions make weights of their own: all that it takes, its first run
    included, is less than the weights.
    """
    folder = ROOT / "models/cifar10-hybrid-s/1"
    command = [sys.executable, "-c", IN_MEMORY, str(folder)]
    ran = subprocess.run(command, cwd=ROOT, env=environment_with(), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < open_bundle(folder).weights.stat().st_size


def test_without_a_limit_nothing_is_refused(tmp_path: Path) -> None:
    """A machine of its own, and a limit that is large enough."""
    for content in ("max\n", f"{2**30}\n"):
        assert refusal_to_start(tree(tmp_path, "0::/\n", v2(), {"sys/fs/cgroup/memory.max": content})) is None

"""A limit of memory that is too small: said in a sentence, in real cgroups, before the kernel kills."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors import numpy as safetensors

from saccade.bundle import update_bundle
from service.memory import refusal_to_start
from tests.conftest import ROOT, Server
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


@pytest.mark.parametrize("limited", [96], indirect=True)
def test_a_limit_too_small_for_more_sessions_is_said_once_one_shows_what_it_takes(limited: str, small: Path) -> None:
    """Weights are not all of a session; the sentence says what to lower."""
    said = sentence(ended(limited, models=small, instances=64))
    assert "the memory limit is 96 MiB, and with tiny-resnet@1 the service takes" in said
    assert "for each of 63 sessions: raise the limit, or set SACCADE_INSTANCES lower" in said


@pytest.mark.parametrize("limited", [160], indirect=True)
def test_a_limit_that_is_enough_is_shown_in_the_plan(limited: str, small: Path) -> None:
    """Whoever asks why it takes no more can read it."""
    code = f"import os, sys; {limited}; os.execv(sys.executable, [sys.executable, '-m', 'service'])"
    with Server(code, models=small, port=0, drain_grace_s=0) as server:
        assert httpx.get(f"{server.url}/v1/models/tiny-resnet").json()["plan"]["memory_limit"] == 160 * MIB
        assert httpx.post(f"{server.url}/v1/classify", content=PNG).status_code == 200
        assert server.stop() == 0


def test_without_a_limit_nothing_is_refused(tmp_path: Path) -> None:
    """A machine of its own, and a limit that is large enough."""
    for content in ("max\n", f"{2**30}\n"):
        assert refusal_to_start(tree(tmp_path, "0::/\n", v2(), {"sys/fs/cgroup/memory.max": content})) is None

"""Shared ground: small bundles made by the real exporter from a real training run, and the service on them.

The runs use scikit-learn's digits, so nothing is downloaded. Tests that want CIFAR-10 read its folder from
SACCADE_CIFAR10 and say so when it is not set.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from export.data import open_source
from export.publish import publish
from export.recipe import Recipe, load_recipe
from export.train import train
from saccade.bundle import Bundle, open_bundle
from service.app import create_app
from service.settings import Settings
from tests.once import shared

ROOT = Path(__file__).parent.parent

NETS: dict[str, dict[str, Any]] = {
    "tiny-cct": {"kind": "cct", "layers": 2, "heads": 2, "width": 32, "mlp_ratio": 1.0, "kernel": 3,
                 "convolutions": 1, "tokenizer_width": 32},
    "tiny-vit": {"kind": "vit", "patch": 4, "layers": 3, "heads": 2, "width": 32, "mlp_ratio": 2.0},
    "tiny-vit-mean": {"kind": "vit", "patch": 8, "layers": 2, "heads": 4, "width": 32, "pooling": "mean",
                      "registers": 3},
    "tiny-hybrid": {"kind": "hybrid", "stem": "small", "block": "basic", "blocks": [1, 1, 1], "width": 8,
                    "heads": [2, 4], "attention_width": 16, "attention_expansion": 2},
    "tiny-resnet": {"kind": "resnet", "depth": 8},
    "tiny-convmixer": {"kind": "convmixer", "width": 16, "layers": 2, "kernel": 3, "patch": 4},
}  # fmt: skip
SIZES = {"tiny-vit": (16, 24), "tiny-hybrid": (24, 16)}
"""Height and width, where they are not 16 x 16: some are not square, so that no code may take a square root."""
CLASS_MAP_ONLY = ("tiny-hybrid", "tiny-resnet", "tiny-convmixer")
"""No rollout: they have no attention layers, or layers of different grids."""


def tiny_recipe(name: str, **training: Any) -> Recipe:
    """The recipe of one of `NETS` on the digits."""
    base = load_recipe("digits-cct").model_dump()
    height, width = SIZES.get(name, (16, 16))
    default = ["class"] if name in CLASS_MAP_ONLY else ["rollout"]
    return Recipe.model_validate(
        {
            **base,
            "default_maps": default,
            "net": NETS[name],
            "preprocessing": {**base["preprocessing"], "height": height, "width": width},
            "training": {**base["training"], "epochs": 1, "warmup_epochs": 0.1, **training},
        }
    )


def run_recipe(recipe: Recipe, folder: Path, **arguments: Any) -> Path:
    """Trains on the digits; the run folder."""
    train(recipe, open_source(recipe.data, None, recipe.preprocessing), folder, **arguments)
    return folder


@pytest.fixture(scope="session")
def runs(_one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of one epoch of each of `NETS`."""

    def make(folder: Path, name: str) -> None:
        run_recipe(tiny_recipe(name), folder / name)

    folder = shared(tmp_path_factory, "runs", [*NETS], make)
    return {name: folder / name for name in NETS}


@pytest.fixture(scope="session")
def models(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with version 1 of each of `NETS`. Only to be read; copy it to change something."""

    def make(folder: Path, name: str) -> None:
        publish(runs[name], folder, name)

    return shared(tmp_path_factory, "models", [*NETS], make)


@pytest.fixture
def small(models: Path, tmp_path: Path) -> Path:
    """A models folder with one model alone: a process starts quickly on it."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "tiny-resnet").symlink_to(models / "tiny-resnet")
    return folder


@pytest.fixture(scope="session", params=NETS)
def bundle(request: pytest.FixtureRequest, models: Path) -> Bundle:
    """Each of the bundles in turn."""
    return open_bundle(models / request.param / "1")


@pytest.fixture
def serve(models: Path) -> Iterator[Callable[..., TestClient]]:
    """A function: settings -> a client of the service, in this process, models loaded."""
    clients: list[TestClient] = []

    def start(**settings: Any) -> TestClient:
        values = {"models": models, "default_model": "tiny-cct", **settings}
        client = TestClient(create_app(Settings(**values)), raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="session")
def service(models: Path) -> Iterator[TestClient]:
    """The service with its defaults and all of `NETS`, the default model being tiny-cct."""
    with TestClient(create_app(Settings(models=models, default_model="tiny-cct")), raise_server_exceptions=False) as it:
        yield it


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """What a shell starts with `&` ignores SIGINT, and so do its children: a test that presses Ctrl-C would hang."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """These nets are too small to share: on a busy machine threads that wait for each other take 40 times as long."""
    torch.set_num_threads(1)


class Server:
    """`python -m service` as a process of its own, on a free port of the loopback; or what `code` makes of it."""

    def __init__(self, code: str | None = None, /, **settings: Any) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SACCADE_")}
        environment |= {f"SACCADE_{name.upper()}": str(value) for name, value in settings.items()}
        self.process = subprocess.Popen(
            [sys.executable, *(["-m", "service"] if code is None else ["-c", code])],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.log = ""
        self.url = self._wait_for_ready()

    def _wait_for_ready(self) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            found = re.search(r"ready on (http://\S+)", json.loads(line)["message"]) if line.startswith("{") else None
            if found:
                return found[1]
        self.process.stderr.close()
        raise RuntimeError(f"the service ended with {self.process.wait()}: {self.log}")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        """A test that failed leaves no process behind."""
        if self.process.returncode is None:
            self.process.kill()
            self.stop()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        assert self.process.stderr is not None
        self.process.stderr.read()
        self.process.stderr.close()
        return self.process.wait()


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[Server]:
    """A real server with all of `NETS`."""
    it = Server(models=models, default_model="tiny-cct", port=0, drain_grace_s=0)
    yield it
    it.stop()


@pytest.fixture(scope="session")
def shipped() -> Iterator[Server]:
    """A real server on the models in the repository, started as `make serve` starts it."""
    dry_run = subprocess.run(["make", "--dry-run", "serve"], cwd=ROOT, check=True, capture_output=True, text=True)
    variables = dict(re.findall(r'SACCADE_([A-Z_]+)="([^"]*)"', dry_run.stdout))
    settings = {name.lower(): value for name, value in variables.items()} | {"port": 0, "drain_grace_s": 0}
    it = Server(**settings)
    yield it
    it.stop()

"""The OpenAPI says what the service does: whatever a generator makes of it is answered as it is documented."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Server

EXAMPLES = 25
KEY = '[auth.openapi.bearer]\nbearer = "open-sesame"\n'


@pytest.fixture(scope="module")
def guarded(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server that asks for a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("open-sesame\n")
    it = Server(models=models, default_model="tiny-cct", port=0, drain_grace_s=0, api_keys_file=keys)
    yield it
    it.stop()


def schemathesis(url: str, folder: Path, configuration: str = "") -> str:
    """All checks, in all phases, with bad and good data; the same each time."""
    path = folder / "schemathesis.toml"
    path.write_text((ROOT / "tests/robustness/schemathesis.toml").read_text(encoding="utf-8") + configuration)
    command = [
        *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
        *("--config-file", str(path), "run", f"{url}/openapi.json"),
        *("--checks", "all", "--max-examples", str(EXAMPLES), "--generation-deterministic", "--no-shrink"),
        *("--no-color", "--continue-on-failure"),
    ]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = run.stdout[run.stdout.find("= FAILURES") :][-20_000:]
    assert run.returncode == 0, f"{found}\n{run.stderr[-2000:]}"
    return run.stdout


def test_every_answer_is_as_the_document_says(server: Server, tmp_path: Path) -> None:
    """Schemathesis, with every check that it has, finds nothing: not on good data, and not on bad."""
    assert "6 selected / 6 total" in schemathesis(server.url, tmp_path)


def test_where_keys_are_set_nothing_is_answered_without(guarded: Server, tmp_path: Path) -> None:
    """The document says which routes want a key, and those do: with none, and with a wrong one, the answer is 401."""
    stdout = schemathesis(guarded.url, tmp_path, KEY)
    assert "6 selected / 6 total" in stdout

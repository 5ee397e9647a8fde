"""The shape of the project: who may import whom, checked by what is really loaded."""

import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.utils import canonicalize_name

from tests.conftest import ROOT

FOREIGN = ("torch", "onnx", "onnxscript", "onnx_ir")


def loaded_after(code: str) -> set[str]:
    listing = "import sys; print('\\n'.join(sys.modules))"
    command = [sys.executable, "-c", f"{code}\n{listing}"]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def test_the_service_loads_no_torch() -> None:
    """The image of the service has none, so not even an indirect import may want it."""
    assert not loaded_after("import service.process, service.local") & {*FOREIGN, "export"}


def test_the_words_load_neither_a_server_nor_an_engine() -> None:
    """A script that only asks a service installs four packages."""
    loaded = loaded_after("import saccade.cli, saccade.client, saccade.overlay")
    assert not loaded & {*FOREIGN, "fastapi", "onnxruntime", "orjson", "safetensors", "service", "export"}


def test_constraints_name_every_package_that_is_installed() -> None:
    """An install is the same tomorrow: nothing comes in a version that nobody chose."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constrained = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}
    installed = {canonicalize_name(found.metadata["Name"]) for found in distributions()}
    by_hand = {"saccade", "pip", "setuptools"}  # ourselves; what a new environment brings
    platform = {"nvidia", "cuda", "triton"}  # what other builds of torch bring, each bound to it exactly
    assert {name for name in installed - constrained - by_hand if name.split("-")[0] not in platform} == set()


def test_only_the_words_are_published() -> None:
    """`service` and `export` are too common as names for a wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["saccade"]
    assert (ROOT / "saccade/py.typed").is_file()


def test_make_never_empties_a_folder_that_is_no_virtual_environment(tmp_path: Path) -> None:
    """A slip in VENV costs nobody a file."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)  # a pip that works, in a folder that is something else
    made = subprocess.run(
        ["make", f"VENV={tmp_path}", f"{tmp_path}/installed-cpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode != 0
    assert "is no virtual environment" in made.stdout
    assert (tmp_path / "notes.txt").read_text() == "mine"

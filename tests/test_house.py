"""The shape of the project: who may import whom, checked by what is really loaded."""

import subprocess
import sys

from tests.conftest import ROOT

FOREIGN = ("torch", "onnx", "onnxscript", "onnx_ir")


def loaded_after(code: str) -> set[str]:
    listing = "import sys; print('\\n'.join(sys.modules))"
    command = [sys.executable, "-c", f"{code}\n{listing}"]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def test_the_service_loads_no_torch() -> None:
    """The image of the service has none, so not even an indirect import may want it."""
    assert not loaded_after("import service.__main__, service.local") & {*FOREIGN, "export"}


def test_the_words_load_neither_a_server_nor_an_engine() -> None:
    """A script that only asks a service installs four packages."""
    loaded = loaded_after("import saccade.cli, saccade.client, saccade.overlay")
    assert not loaded & {*FOREIGN, "fastapi", "onnxruntime", "orjson", "safetensors", "service", "export"}

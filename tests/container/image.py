"""What is in the image."""

import json
import re
import subprocess

from tests.container.engine import ROOT, Failed, docker

CPU, GPU = "saccade:cpu", "saccade:gpu"

_TOLERANCE = 0.03
"""Of the size that the README states."""

_CONTENTS = """
import importlib.metadata, json, shutil
from pathlib import Path
packages = sorted(found.metadata["Name"].lower() for found in importlib.metadata.distributions())
tools = [name for name in ("cc", "gcc", "g++", "c++", "clang", "ld", "make", "as") if shutil.which(name)]
caches = [str(path) for path in (Path("/root/.cache"), Path.home() / ".cache", Path("/tmp/pip")) if path.exists()]
ours = sorted(path.name for path in Path("/app").iterdir())
print(json.dumps([packages, tools, caches, ours]))
"""


def build(network: str, target: str) -> None:
    arguments = f"BUILD_ARGS=--network={network}" if network == "host" else "BUILD_ARGS="
    made = subprocess.run(
        ["make", "image", f"TARGET={target}", arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise Failed(f"make image: {made.stderr.strip()[-2000:]}")


def is_built(network: str) -> str:
    """`make image` builds the image of the service for CPU."""
    build(network, "cpu")
    return docker("image", "inspect", "--format", "{{.Id}}", CPU).strip()[:19]


def holds_what_it_serves_with(network: str) -> str:
    """It has no torch, no compiler, no package manager of its own, no cache, and of our code what it serves with."""
    reached = ["--network=host"] if network == "host" else []
    printed = docker("run", "--rm", "--user=0", *reached, "--entrypoint=python", CPU, "-c", _CONTENTS)
    packages, tools, caches, ours = json.loads(printed)
    assert "onnxruntime" in packages
    unwanted = {"torch", "onnx", "pip", "setuptools", "wheel", "pytest", "saccade"} & set(packages)
    assert not unwanted, f"it has {unwanted}"
    assert not tools, f"it has {tools}"
    assert not caches, f"it has {caches}"
    assert ours == ["LICENSE", "saccade", "service"], ours
    return f"{len(packages)} packages"


def is_as_large_as_the_readme_says(_: str) -> str:
    """Our layers add to the base what the README says, within 3 %."""
    base = _default("PYTHON_IMAGE")
    if not docker("image", "ls", "--quiet", base).strip():  # BuildKit keeps what it pulls to itself
        docker("pull", base)
    added = (_size(CPU) - _size(base)) / 1e6
    found = re.search(r"add (\d+) MB to", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert found, "the README does not say"
    assert abs(added / int(found[1]) - 1) <= _TOLERANCE, f"{added:.0f} MB; the README says {found[1]}"
    return f"{added:.0f} MB"


def gpu_is_built(network: str) -> str:
    """`make image TARGET=gpu` builds the image for GPU."""
    build(network, "gpu")
    return f"{_size(GPU) / 1e9:.1f} GB with its base"


_LIBRARIES = """
import json, subprocess, onnxruntime
onnxruntime.preload_dlls()
from pathlib import Path
mapped = {line.split()[-1].rsplit("/")[-1] for line in open("/proc/self/maps") if "/nvidia/" in line}
provider = Path(onnxruntime.__file__).parent / "capi/libonnxruntime_providers_cuda.so"
listed = subprocess.run(["ldd", provider], capture_output=True, text=True, check=True).stdout
missing = {line.split()[0] for line in listed.splitlines() if "not found" in line}
print(json.dumps(sorted(missing - mapped)))
"""


def gpu_has_its_libraries(network: str) -> str:
    """Whatever ONNX Runtime's CUDA provider links to is in the image, but for the driver's own library."""
    reached = ["--network=host"] if network == "host" else []
    missing = json.loads(docker("run", "--rm", *reached, "--entrypoint=python", GPU, "-c", _LIBRARIES).splitlines()[-1])
    assert set(missing) <= {"libcuda.so.1"}, missing
    return f"left to the driver: {', '.join(missing) or 'nothing'}"


def gpu_refuses_without_one(network: str) -> str:
    """Without a GPU it does not start, and says what it asked for and what it would get."""
    reached = ["--network=host"] if network == "host" else []
    ran = subprocess.run(
        ["docker", "run", "--rm", *reached, "--env=SACCADE_ALLOW_ANONYMOUS=true", GPU],
        capture_output=True,
        text=True,
        check=False,
    )
    said = ran.stderr.splitlines()[-1]
    assert ran.returncode == 2, f"{ran.returncode}: {said}"
    assert "asked for CUDAExecutionProvider and would get CPUExecutionProvider" in said, said
    return said


def _default(argument: str) -> str:
    found = re.search(rf"^ARG {argument}=(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    assert found, argument
    return found[1]


def _size(image: str) -> int:
    """Bytes of all layers, unpacked."""
    lines = docker("history", "--human=false", "--format", "{{.Size}}", image).split()
    return sum(int(line) for line in lines)


STEPS = (is_built, holds_what_it_serves_with, is_as_large_as_the_readme_says)
GPU_STEPS = (gpu_is_built, gpu_has_its_libraries, gpu_refuses_without_one)

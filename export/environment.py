"""Where and how something was made: commit, versions, hardware, and the command that would make it again."""

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from saccade import __version__

PACKAGES = ("torch", "numpy", "pillow", "safetensors")
"""What weights depend on: net, arithmetic, resampling, decoding."""


def commit() -> str | None:
    """Of this source, with "-dirty" where it was changed since; None outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--match=", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - fixed
    except (OSError, subprocess.CalledProcessError):
        return None


def training_versions() -> dict[str, str]:
    return {
        "saccade": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def cpus() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, threads: {torch.get_num_threads()}"


def processor() -> str:
    """The CPU by its maker's name for it, where Linux knows one; else its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip() not in ("", "unknown"):
                return " ".join(value.split())
    return f"{platform.machine()} CPU"


def command(processes: int) -> str:
    """A command line that starts this process, and those beside it, once more. Its paths are relative to where it ran.

    Where this was started as a module (python -m, and so under torchrun), the first argument is the module's file.
    """
    main = getattr(sys.modules["__main__"], "__spec__", None)
    program = [sys.argv[0]] if main is None else ["-m", main.name.removesuffix(".__main__")]
    if processes > 1:
        return shlex.join(["torchrun", "--nproc-per-node", str(processes), *program, *sys.argv[1:]])
    return shlex.join([*([] if main is None else ["python"]), *program, *sys.argv[1:]])

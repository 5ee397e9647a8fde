"""What a figure was measured on: the machine and the versions, without the names of hosts or folders."""

import math
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from service.plan import find_cpus

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16")


def machine() -> dict[str, Any]:
    """Processor, the part of it that this process may use, memory in bytes, kernel, Python."""
    processor = _fields(Path("/proc/cpuinfo"))
    cpus = find_cpus()
    flags = processor.get("flags", "").split()
    return {
        "cpu": processor.get("model name", platform.machine()),
        "cpus_usable": cpus.usable,
        "cpu_quota": None if math.isinf(cpus.quota) else cpus.quota,
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory": int(_fields(Path("/proc/meminfo"))["MemTotal"].split()[0]) * 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The installed version of each; "absent" where there is none."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _fields(file: Path) -> dict[str, str]:
    """The first value of each `name: value`."""
    fields: dict[str, str] = {}
    for line in file.read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields

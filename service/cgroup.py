"""What the cgroups of this process grant: its own and each above it, versions 1 and 2.

The standard library alone: the limit of memory is looked at before anything large is imported.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

NO_LIMIT = math.inf

_Read = Callable[[Path], float]

_UNLIMITED_V1 = 2**62
"""memory.limit_in_bytes has the largest whole pages of a signed 64-bit number where there is no limit."""


def cpu_quota(root: Path = Path("/")) -> float:
    """CPUs' worth of time, the smallest CFS quota; inf without. `root` is where /proc and its mounts are looked up."""
    return _smallest(root, "cpu", _quota_v1, _quota_v2)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes, the smallest limit; None without. What may be swapped out beside is not counted."""
    limit = _smallest(root, "memory", _memory_v1, _memory_v2)
    return None if limit == NO_LIMIT else int(limit)


def _smallest(root: Path, controller: str, read_v1: _Read, read_v2: _Read) -> float:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return NO_LIMIT
    # cgroups(7): "hierarchy:controllers:path"; version 2 has hierarchy 0 and names no controllers
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    limit = NO_LIMIT
    for mount in mounts:
        # proc_pid_mountinfo(5): id parent major:minor root mountpoint options [tags] - type source superoptions
        before, _, after = mount.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            path, read = paths.get(""), read_v2
        elif kind == "cgroup" and controller in options.split(","):
            path, read = next((path for names, path in paths.items() if controller in names.split(",")), None), read_v1
        else:
            continue
        if path is not None:
            shown, mountpoint = before.split(" ")[3:5]
            limit = min([limit, *map(read, _own_and_above(root / mountpoint.lstrip("/"), shown, path))])
    return limit


def _own_and_above(top: Path, shown: str, path: str) -> Iterator[Path]:
    """The folders of a cgroup and of those above it, up to the mount, whose root is the cgroup `shown`."""
    # in a container without a cgroup namespace the mount shows a subtree whose root is the container's own cgroup
    own = top / PurePosixPath(path).relative_to(shown) if PurePosixPath(path).is_relative_to(shown) else top
    for folder in (own, *own.parents):
        yield folder
        if folder == top:
            return


def _quota_v2(folder: Path) -> float:
    """cpu.max: "quota period" or "max period", in microseconds."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return NO_LIMIT if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return NO_LIMIT


def _quota_v1(folder: Path) -> float:
    """cpu.cfs_quota_us over cpu.cfs_period_us; -1 is no limit."""
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else NO_LIMIT
    except (OSError, ValueError, ZeroDivisionError):
        return NO_LIMIT


def _memory_v2(folder: Path) -> float:
    """memory.max: bytes or "max"."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        return NO_LIMIT if limit == "max" else int(limit)
    except (OSError, ValueError):
        return NO_LIMIT


def _memory_v1(folder: Path) -> float:
    """memory.limit_in_bytes."""
    try:
        limit = int((folder / "memory.limit_in_bytes").read_text())
        return limit if limit < _UNLIMITED_V1 else NO_LIMIT
    except (OSError, ValueError):
        return NO_LIMIT

"""Cgroups for tests: made trees of /proc and /sys as a process sees them, and real ones where the machine allows it."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

INF = float("inf")
PERIOD = 100_000  # microseconds, the kernel's default
OTHER_MOUNT = "24 29 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw\n"


def tree(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """A file system as a process sees it: /proc/self/cgroup, /proc/self/mountinfo, and files of cgroups."""
    for name, content in {"proc/self/cgroup": cgroup, "proc/self/mountinfo": OTHER_MOUNT + mounts, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def v2(shown: str = "/") -> str:
    """The mount of version 2, which shows the hierarchy from `shown` on."""
    return (
        f"35 24 0:30 {shown} /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
    )


def v1(controllers: str = "cpu,cpuacct", shown: str = "/") -> str:
    """The mount of one hierarchy of version 1."""
    return f"36 24 0:31 {shown} /sys/fs/cgroup/{controllers} rw,relatime - cgroup cgroup rw,{controllers}\n"


def limit_v1(folder: str, quota: int, period: int = PERIOD) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


def own_cgroups(controller: str) -> Iterator[tuple[Path, int]]:
    """Folders of the cgroups of this process that `controller` may limit, and their versions."""
    paths = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        shown, mountpoint = before.split(" ")[3:5]
        names = "" if kind == "cgroup2" else next((name for name in paths if controller in name.split(",")), None)
        if kind not in ("cgroup", "cgroup2") or names not in paths:
            continue
        if kind == "cgroup" and controller not in options.split(","):
            continue
        yield Path(mountpoint, os.path.relpath(paths[names], shown)), 2 if kind == "cgroup2" else 1


@contextlib.contextmanager
def real_cgroup(controller: str, limits: Mapping[int, Mapping[str, str]]) -> Iterator[Path]:
    """A real cgroup below the one of this process, removed afterwards. `limits`: version -> contents of its files.

    Skips the test where the machine lets nobody make one.
    """
    reasons = []
    with contextlib.ExitStack() as afterwards:
        for folder, version in own_cgroups(controller):
            made = folder / f"saccade-test-{os.getpid()}"
            try:
                made.mkdir()
                afterwards.callback(made.rmdir)
                for name, content in limits[version].items():
                    (made / name).write_text(content)
            except OSError as error:
                reasons.append(str(error))
                continue
            yield made
            return
    pytest.skip(
        f"this machine lets nobody here make a cgroup that limits {controller}: "
        f"{'; '.join(reasons) or 'none is mounted'}"
    )


def enter(cgroup: Path) -> str:
    """A statement with which a Python process enters it."""
    return f"open({str(cgroup / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"

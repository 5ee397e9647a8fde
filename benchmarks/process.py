"""What a process and everything it started cost, from Linux's /proc: a server is its workers too.

A process that ends meanwhile counts as far as it was read; the first one must be there. One that left the tree (its
parent ended before it) is not seen.
"""

import os
from collections import defaultdict
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, nearest first. Raises ProcessLookupError where there is no `pid`."""
    _stat(pid)
    children = defaultdict(list)
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            try:
                children[int(_stat(int(entry.name))[1])].append(int(entry.name))
            except ProcessLookupError:
                continue
    found = [pid]
    for parent in found:  # grows while it is walked
        found += children[parent]
    return found[1:]


def cpu_seconds(pid: int) -> float:
    """User and system time of the tree since it began, with the children that were waited for."""
    ticks = 0
    for member in (
        pid,
        *descendants(pid),
    ):  # parents first: a child that ends in between is missed, never counted twice
        try:
            ticks += sum(map(int, _stat(member)[11:15]))
        except ProcessLookupError:
            if member == pid:
                raise
    return ticks / TICKS


def peak_memory(pid: int) -> int:
    """The members' highest resident sizes, added up, in bytes.

    An upper bound: pages that members share count once for each, and the peaks need not have been at one moment.
    """
    return _total(pid, "status", "VmHWM")


def _stat(pid: int) -> list[str]:
    """The fields of proc(5)'s stat from `state` on: the name before them may hold anything, brackets too."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None


def _total(pid: int, file: str, field: str) -> int:
    total = 0
    for member in (pid, *descendants(pid)):
        try:
            lines = (PROC / str(member) / file).read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            if member == pid:
                raise
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
    return total

"""Whether the service fits the memory that its cgroup grants: beyond it the kernel kills the process without a word.

The standard library alone: looked at before anything large is imported, and again before each session is opened.
"""

import re
from pathlib import Path

from service.cgroup import memory_limit

_IMPORTS = 57 * 2**20
"""Memory of the process's own after every import, before a session; measured."""
_BESIDE = 20 * 2**20
"""Beside process and models: code that cannot leave memory while it runs, small pictures and answers of some callers,
and a container's health check. Measured on the shipped model and sixteen callers: killed at 80 MiB, not at 84."""
_RELEVANCE = 6 * 2**20
"""A session of relevance.onnx with its golden run, without weights and attention; of the shipped models it is nearly
all: measured, 3 to 8 MiB, and 11 of the int8 one."""
_A_PIXEL = 16
"""Bytes at most, of a picture while it is decoded: a WebP's; docs/robustness.md has the other formats."""
_GROWTH = 1.25
"""A body takes a quarter more while it grows."""


def refusal_to_start(root: Path = Path("/")) -> str | None:
    """Why this process could not even import what it needs, as a sentence; None where it can."""
    limit = memory_limit(root)
    needed = _IMPORTS + _BESIDE
    if limit is None or limit >= needed:
        return None
    return f"the memory limit is {in_mib(limit)}, and the service takes {in_mib(needed)} before its models: raise it"


def refusal_of_sessions(limit: int | None, model: str, sessions: int, each: int) -> str | None:
    """Why `sessions` more of `model`, of at least `each` bytes, do not fit, as a sentence; None where they do."""
    if limit is None or not sessions:
        return None
    used = own_memory()
    needed = used + _BESIDE + sessions * each
    if needed <= limit:
        return None
    count, fewer = ("1 session", "") if sessions == 1 else (f"{sessions} sessions", ", or set SACCADE_INSTANCES lower")
    return (
        f"the memory limit is {in_mib(limit)}, and with {model} the service takes {in_mib(needed)} at least: "
        f"{in_mib(used + _BESIDE)} so far and {in_mib(each)} for each of {count}: raise the limit{fewer}"
    )


def refusal_of_relevance(limit: int | None, model: str, attention: int) -> str | None:
    """Why relevance.onnx of `model`, which shares the weights, does not fit, as a sentence; None where it does. So many
    bytes of `attention` and its gradients are in memory during a run.
    """
    needed = own_memory() + _BESIDE + _RELEVANCE + attention
    if limit is None or needed <= limit:
        return None
    return (
        f"the memory limit is {in_mib(limit)}, and with relevance.onnx of {model} the service takes "
        f"{in_mib(needed)} at least: raise the limit, or set SACCADE_RELEVANCE=off"
    )


def warning_of_requests(
    limit: int | None, decoders: int, max_pixels: int, bodies: int, max_body_bytes: int
) -> str | None:
    """Why `decoders` threads with pictures of `max_pixels`, and so many `bodies` that wait, may not fit, as a sentence;
    None where they do. No refusal: most callers send small pictures.
    """
    pictures, waiting = decoders * _A_PIXEL * max_pixels, int(bodies * max_body_bytes * _GROWTH)
    used = own_memory()
    if limit is None or used + pictures + waiting <= limit:
        return None
    return (
        f"the memory limit is {in_mib(limit)}, and requests that the settings allow can take "
        f"{in_mib(used + pictures + waiting)}: {in_mib(used)} so far, {in_mib(pictures)} for the largest picture in "
        f"each of {decoders} threads that decode, {in_mib(waiting)} for {bodies} of the largest bodies; past the limit "
        "the kernel kills: raise it, or lower SACCADE_MAX_PIXELS, SACCADE_MAX_BODY_BYTES and SACCADE_QUEUE_IMAGES"
    )


def own_memory() -> int:
    """Bytes that are in no file and cannot leave memory: RssAnon of proc_pid_status(5); 0 where there is no /proc."""
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.M)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def in_mib(size: int) -> str:
    """Rounded up."""
    return f"{-(-size // 2**20)} MiB"

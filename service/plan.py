"""How many CPUs this process really has, and how they are shared out: the thread plan of a model.

A CPU is what may run all the time: the affinity mask (which sees a cpuset) bounded by the CFS quota of the process's
cgroup and of every cgroup above it, v1 and v2. Threads beyond that are throttled together, the event loop among them.
"""

import contextlib
import math
import os
import random
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from saccade.api import Plan
from service.cgroup import NO_LIMIT, cpu_quota
from service.settings import Settings

_MOST_SESSIONS = 4
"""By default: each has weights of its own in memory."""
_BEHIND = 5
"""Niceness of the threads of sessions above that of the others: a third of their weight."""


class Cpus(NamedTuple):
    """What this process may use."""

    affinity: int
    quota: float
    """CPUs' worth of time that the cgroup grants; inf without a limit."""

    @property
    def usable(self) -> int:
        """Whole CPUs, at least 1. A fraction over is left to the event loop: a thread for it would be throttled."""
        return max(1, min(self.affinity, math.floor(min(self.quota, self.affinity))))


def find_cpus(root: Path = Path("/")) -> Cpus:
    """The CPUs of this process. `root` is where /proc and the mounts it names are looked up."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return Cpus(len(os.sched_getaffinity(0)), cpu_quota(root))
    return Cpus(os.cpu_count() or 1, NO_LIMIT)


def make_plan(settings: Settings, cpus: Cpus, provider: str, memory_limit: int | None = None) -> Plan:
    """Settings, with what they leave open worked out from the CPUs; `memory_limit` in bytes, to be shown and kept.

    On CPU the sessions share all of them, one thread each as far as memory allows: threads of one session wait for each
    other at every node, and whoever is off its CPU just then makes the others wait. Where each CPU, but for one at
    most, has a session of its own, that session's thread decodes too: another thread could do so only in its place.
    Elsewhere threads of their own decode ahead. They and the event loop have no CPU to themselves: they need a fraction
    of one, sessions do not spin, and their threads stand back. A GPU does the sessions' arithmetic, so one session and
    one thread are enough there.
    """
    on_cpu = provider == "CPUExecutionProvider"
    share = max(1, cpus.usable // max(1, settings.intra_op_threads))  # sessions that find room
    instances = settings.instances or (_sessions(share) if on_cpu else 1)
    threads = settings.intra_op_threads or (max(1, cpus.usable // instances) if on_cpu else 1)
    decode_threads = settings.decode_threads
    if decode_threads is None:
        decode_threads = 0 if on_cpu and threads == 1 and instances >= cpus.usable - 1 else cpus.usable
    return Plan(
        provider=provider,
        cpus=cpus.usable,
        cpu_affinity=cpus.affinity,
        cpu_quota=None if cpus.quota == NO_LIMIT else round(cpus.quota, 3),
        memory_limit=memory_limit,
        instances=instances,
        intra_op_threads=threads,
        spinning=settings.spinning,
        decode_threads=decode_threads,
        max_batch=settings.max_batch or (4 if on_cpu else 16),
        max_wait_ms=settings.max_wait_ms,
        queue_images=settings.queue_images,
        run_timeout_s=settings.run_timeout_s,
    )


def _sessions(cpus: int) -> int:
    """As many as may be, up to four, such that at most one CPU is left over when they share them."""
    return max(count for count in range(1, min(cpus, _MOST_SESSIONS) + 1) if cpus % count <= 1)


def stand_back() -> None:
    """Lets the event loop and the threads that decode go before this thread, and before those that it starts.

    They need a CPU for microseconds and hold the GIL meanwhile, for which everybody waits; a run takes milliseconds.
    """
    if sys.platform == "linux":  # where each thread has a niceness of its own
        with contextlib.suppress(OSError):  # forbidden, as by a seccomp profile: a matter of speed alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _BEHIND)


def keep_to(cpus: Cpus) -> None:
    """Where a quota grants fewer CPUs than there are, keeps this process to as many, chosen at random.

    Spread over more, the threads would use the quota up side by side and then stand still together for the rest of
    each period, the event loop among them. Threads to come are kept with the one that starts them.
    """
    if cpus.usable < cpus.affinity and sys.platform == "linux":
        chosen = random.sample(sorted(os.sched_getaffinity(0)), cpus.usable)
        for thread in Path("/proc/self/task").iterdir():  # libraries have started some already
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(thread.name), chosen)

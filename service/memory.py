"""Whether the service fits the memory that its cgroup grants: beyond it the kernel kills the process without a word.

The standard library alone: looked at before anything large is imported, and again before each session is opened.
"""

import re
from pathlib import Path

from service.cgroup import memory_limit

_START = 64 * 2**20
"""What the process takes before its models: 52 MiB of its own (measured: every import, no session), and code in use."""
_CODE = 8 * 2**20
"""Pages of code that cannot leave memory while they run."""


def refusal_to_start(root: Path = Path("/")) -> str | None:
    """Why this process could not even import what it needs, as a sentence; None where it can."""
    limit = memory_limit(root)
    if limit is None or limit >= _START:
        return None
    return f"the memory limit is {in_mib(limit)}, and the service takes {in_mib(_START)} before its models: raise it"


def refusal_of_sessions(limit: int | None, model: str, sessions: int, each: int) -> str | None:
    """Why `sessions` more of `model`, of at least `each` bytes, do not fit, as a sentence; None where they do."""
    if limit is None or not sessions:
        return None
    used = own_memory()
    needed = used + _CODE + sessions * each
    if needed <= limit:
        return None
    count, fewer = ("1 session", "") if sessions == 1 else (f"{sessions} sessions", ", or set SACCADE_INSTANCES lower")
    return (
        f"the memory limit is {in_mib(limit)}, and with {model} the service takes {in_mib(needed)} at least: "
        f"{in_mib(used + _CODE)} so far and {in_mib(each)} for each of {count}: raise the limit{fewer}"
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

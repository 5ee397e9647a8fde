"""What is dear is made once in a run of tests, also where several processes (pytest-xdist) share its files."""

import fcntl
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


def shared(factory: pytest.TempPathFactory, name: str, parts: Sequence[str], make: Callable[[Path, str], None]) -> Path:
    """A folder of the whole run, in which `make(folder, part)` makes each part. Only to be read.

    Each part is made by whichever process comes to it first; who finds all begun waits for what is not done.
    """
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, marks = base / name, base / f"{name}-made"
    folder.mkdir(exist_ok=True)
    marks.mkdir(exist_ok=True)
    for waits in (fcntl.LOCK_NB, 0):
        for part in parts:
            with open(marks / f"{part}.lock", "w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | waits)
                except BlockingIOError:
                    continue
                if not (marks / part).exists():
                    shutil.rmtree(folder / part, ignore_errors=True)  # of one that failed in another process
                    make(folder, part)
                    (marks / part).touch()
    return folder

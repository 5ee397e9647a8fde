"""The limit of memory, as a process finds it in made trees of /proc and /sys. That of CPUs is in test_plan.py."""

from pathlib import Path

import pytest

from service.cgroup import memory_limit
from tests.service.cgroups import tree, v1, v2

UNLIMITED_V1 = "9223372036854771712\n"


@pytest.mark.parametrize(("content", "limit"), [("max\n", None), ("268435456\n", 2**28), ("0\n", 0)])
def test_the_limit_of_cgroup_v2_is_memory_max(tmp_path: Path, content: str, limit: int | None) -> None:
    """cgroup-v2.rst: bytes, or "max" without a limit."""
    assert memory_limit(tree(tmp_path, "0::/\n", v2(), {"sys/fs/cgroup/memory.max": content})) == limit


@pytest.mark.parametrize(
    ("content", "limit"),
    [
        (UNLIMITED_V1, None),
        ("9223372036854710272\n", None),  # in pages of 64 KiB
        ("268435456\n", 2**28),
        (f"{2**40}\n", 2**40),
    ],
)
def test_the_limit_of_cgroup_v1_is_limit_in_bytes(tmp_path: Path, content: str, limit: int | None) -> None:
    """memory.rst: bytes; without a limit the largest number of whole pages."""
    files = {"sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": content}
    cgroup = "5:cpu:/other\n4:memory:/docker/abc\n0::/\n"
    assert memory_limit(tree(tmp_path, cgroup, v1("cpu") + v1("memory"), files)) == limit


@pytest.mark.parametrize(("parent", "own", "limit"), [(100, 300, 100), ("max", 300, 300), (300, "max", 300)])
def test_the_smallest_limit_of_memory_of_those_above_holds(
    tmp_path: Path, parent: object, own: object, limit: int
) -> None:
    """A pod's limit binds its containers, whatever theirs is."""
    files = {"sys/fs/cgroup/pod/memory.max": str(parent), "sys/fs/cgroup/pod/box/memory.max": str(own)}
    assert memory_limit(tree(tmp_path, "0::/pod/box\n", v2(), files)) == limit


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_without_a_cgroup_namespace_finds_its_own_limit_of_memory(tmp_path: Path, version: int) -> None:
    """Its path is the host's, and its mount shows the container's cgroup as the top."""
    path = "/docker/abc"
    if version == 1:
        files = {"sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n"}
        root = tree(tmp_path, f"1:memory:{path}\n", v1("memory", path), files)
    else:
        root = tree(tmp_path, f"0::{path}\n", v2(path), {"sys/fs/cgroup/memory.max": "1000\n"})
    assert memory_limit(root) == 1000


@pytest.mark.parametrize("content", ["", "nonsense", "1 2"])
def test_a_limit_of_memory_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    """The service starts all the same."""
    root = tree(tmp_path, "0::/\n1:memory:/\n", v2() + v1("memory"), {"sys/fs/cgroup/memory.max": content})
    (root / "sys/fs/cgroup/memory").mkdir()
    (root / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text(content)
    assert memory_limit(root) is None
    assert memory_limit(tmp_path / "nothing") is None

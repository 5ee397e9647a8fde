"""How many CPUs a process really has, and what it starts on them: made trees of /proc and /sys, and the real ones."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.plan import Cpus, find_cpus, make_plan
from service.settings import Settings
from tests.conftest import Server
from tests.service.cgroups import INF, PERIOD, enter, limit_v1, real_cgroup, tree, v1, v2
from tests.service.reference import PNG

# --- version 2


@pytest.mark.parametrize(
    ("limit", "quota"),
    [
        ("max 100000\n", INF),
        ("150000 100000\n", 1.5),
        ("50000 100000\n", 0.5),
        ("100000 100000\n", 1.0),
        ("400000 100000\n", 4.0),
        ("25000 50000\n", 0.5),
    ],
)
def test_the_quota_of_cgroup_v2_is_cpu_max(tmp_path: Path, limit: str, quota: float) -> None:
    """cgroup-v2.rst: "$MAX $PERIOD" microseconds, or "max" without a limit; here in a container's own namespace."""
    root = tree(tmp_path, "0::/\n", v2(), {"sys/fs/cgroup/cpu.max": limit})
    assert find_cpus(root) == Cpus(len(os.sched_getaffinity(0)), quota)


@pytest.mark.parametrize(
    ("parent", "own", "quota"),
    [
        ("100000 100000", "300000 100000", 1.0),
        ("100000 100000", "max 100000", 1.0),
        ("300000 100000", "100000 100000", 1.0),
        ("max 100000", "max 100000", INF),
    ],
)
def test_the_smallest_limit_of_a_cgroup_and_those_above_it_holds(
    tmp_path: Path, parent: str, own: str, quota: float
) -> None:
    """A pod's limit binds its containers; the root of the hierarchy has no cpu.max at all."""
    files = {"sys/fs/cgroup/pod/cpu.max": parent, "sys/fs/cgroup/pod/box/cpu.max": own}
    assert find_cpus(tree(tmp_path, "0::/pod/box\n", v2(), files)).quota == quota


def test_the_limit_of_a_neighbour_or_a_child_is_not_ours(tmp_path: Path) -> None:
    """Only our own line up to the root counts."""
    files = {
        "sys/fs/cgroup/pod/cpu.max": "max 100000",
        "sys/fs/cgroup/other/cpu.max": "100000 100000",
        "sys/fs/cgroup/pod/child/cpu.max": "100000 100000",
    }
    assert find_cpus(tree(tmp_path, "0::/pod\n", v2(), files)).quota == INF


# --- version 1


@pytest.mark.parametrize(("limit", "quota"), [(-1, INF), (100_000, 1.0), (150_000, 1.5), (50_000, 0.5)])
@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_the_quota_of_cgroup_v1_is_cfs_quota_over_cfs_period(
    tmp_path: Path, controllers: str, limit: int, quota: float
) -> None:
    """sched-bwc.rst: -1 is no limit; the controller may be mounted alone or with its account."""
    files = limit_v1(f"sys/fs/cgroup/{controllers}/docker/abc", limit)
    cgroup = f"5:cpuset:/other\n3:{controllers}:/docker/abc\n1:name=systemd:/\n"
    assert find_cpus(tree(tmp_path, cgroup, v1("cpuset") + v1(controllers), files)).quota == quota


def test_a_limit_above_holds_in_version_1_too(tmp_path: Path) -> None:
    """Each cgroup up to the root of the mount is asked."""
    files = limit_v1("sys/fs/cgroup/cpu/pod", 100_000) | limit_v1("sys/fs/cgroup/cpu/pod/box", 300_000)
    assert find_cpus(tree(tmp_path, "1:cpu:/pod/box\n", v1("cpu"), files)).quota == 1.0


def test_the_account_and_the_set_of_cpus_are_no_quota(tmp_path: Path) -> None:
    """cpuacct and cpuset begin with the same letters and are other controllers."""
    files = limit_v1("sys/fs/cgroup/cpuacct", 100_000) | limit_v1("sys/fs/cgroup/cpuset", 100_000)
    root = tree(tmp_path, "2:cpuacct:/\n3:cpuset:/\n", v1("cpuacct") + v1("cpuset"), files)
    assert find_cpus(root).quota == INF


def test_on_a_hybrid_machine_the_limit_of_either_version_holds(tmp_path: Path) -> None:
    """v1 has the controller and v2 is mounted beside it, without; systemd's hybrid mode."""
    cgroup = "9:name=systemd:/\n4:memory:/agent\n3:cpuset:/\n2:cpuacct:/\n1:cpu:/box\n0::/\n"
    unified = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
    mounts = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n" + v1("cpu") + v1("cpuset") + unified
    files = limit_v1("sys/fs/cgroup/cpu", -1) | limit_v1("sys/fs/cgroup/cpu/box", 200_000)
    root = tree(tmp_path, cgroup, mounts, files | {"sys/fs/cgroup/unified/cgroup.procs": ""})
    assert find_cpus(root).quota == 2.0
    (root / "sys/fs/cgroup/unified/cpu.max").write_text("150000 100000\n")
    assert find_cpus(root).quota == 1.5


# --- containers


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_without_a_cgroup_namespace_finds_its_own_limit(tmp_path: Path, version: int) -> None:
    """Its path is the host's, and its mount shows the container's cgroup as the top: the limit lies right there."""
    path = "/kubepods/burstable/pod1/abc"
    if version == 1:
        files = limit_v1("sys/fs/cgroup/cpu", 200_000)
        root = tree(tmp_path, f"1:cpu:{path}\n", v1("cpu", path), files)
    else:
        root = tree(tmp_path, f"0::{path}\n", v2(path), {"sys/fs/cgroup/cpu.max": "200000 100000"})
    assert find_cpus(root).quota == 2.0


def test_a_cgroup_below_the_containers_is_found_under_the_mount(tmp_path: Path) -> None:
    """A supervisor in the container made a cgroup of its own; the limits of both hold."""
    files = {"sys/fs/cgroup/cpu.max": "300000 100000", "sys/fs/cgroup/jobs/cpu.max": "200000 100000"}
    assert find_cpus(tree(tmp_path, "0::/docker/abc/jobs\n", v2("/docker/abc"), files)).quota == 2.0


def test_paths_that_only_look_alike_are_not_taken_apart(tmp_path: Path) -> None:
    """/docker/abcd is not `d` in /docker/abc."""
    files = {"sys/fs/cgroup/cpu.max": "max 100000", "sys/fs/cgroup/d/cpu.max": "100000 100000"}
    assert find_cpus(tree(tmp_path, "0::/docker/abcd\n", v2("/docker/abc"), files)).quota == INF


# --- what is missing or broken


@pytest.mark.parametrize("gone", ["proc/self/cgroup", "proc/self/mountinfo", "sys/fs/cgroup/cpu.max"])
def test_without_a_file_there_is_no_limit(tmp_path: Path, gone: str) -> None:
    """An old kernel, or a /proc that is hidden: the affinity alone counts."""
    root = tree(tmp_path, "0::/\n", v2(), {"sys/fs/cgroup/cpu.max": "100000 100000"})
    assert find_cpus(root).quota == 1.0
    (root / gone).unlink()
    assert find_cpus(root) == Cpus(len(os.sched_getaffinity(0)), INF)


@pytest.mark.parametrize("content", ["", "nonsense", "1 2 3", "100000 0", "max"])
def test_a_limit_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    """The service starts all the same."""
    root = tree(tmp_path, "0::/\n1:cpu:/\n", v2() + v1("cpu"), {"sys/fs/cgroup/cpu.max": content})
    for name in ("quota", "period"):
        (root / "sys/fs/cgroup/cpu").mkdir(exist_ok=True)
        (root / f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us").write_text(content)
    assert find_cpus(root).quota == INF


def test_a_process_in_no_cgroup_of_cpus_has_no_limit(tmp_path: Path) -> None:
    """The controller is mounted and the process is not in it, and the other way round."""
    files = limit_v1("sys/fs/cgroup/cpu", 100_000)
    assert find_cpus(tree(tmp_path / "a", "3:cpuset:/\n", v1("cpu") + v2(), files)).quota == INF
    assert find_cpus(tree(tmp_path / "b", "1:cpu:/\n0::/\n", v1("cpuset"), files)).quota == INF


def test_affinity_is_what_the_process_may_run_on() -> None:
    """sched_setaffinity is what taskset and a cpuset come down to."""
    before = os.sched_getaffinity(0)
    try:
        for kept in (before, {min(before)}):
            os.sched_setaffinity(0, kept)
            assert find_cpus().affinity == len(kept)
    finally:
        os.sched_setaffinity(0, before)


# --- the plan


@pytest.mark.parametrize(
    ("affinity", "quota", "usable"),
    [(8, INF, 8), (8, 1.5, 1), (8, 0.5, 1), (8, 0.001, 1), (8, 2.0, 2), (8, 2.999, 2), (2, 6.0, 2), (1, INF, 1)],
)
def test_usable_are_whole_cpus_and_at_least_one(affinity: int, quota: float, usable: int) -> None:
    """A thread for half a CPU would stop all the others when the quota is used up."""
    assert Cpus(affinity, quota).usable == usable


def plan(cpus: Cpus, provider: str = "CPUExecutionProvider", **settings: Any) -> dict[str, Any]:
    return make_plan(Settings(**settings), cpus, provider).model_dump()


@pytest.mark.parametrize(
    ("cpus", "settings", "instances", "threads", "decoding"),
    [
        (1, {}, 1, 1, 0),
        (2, {}, 2, 1, 0),
        (3, {}, 3, 1, 0),
        (4, {}, 4, 1, 0),
        (5, {}, 4, 1, 0),
        (6, {}, 3, 2, 6),
        (7, {}, 3, 2, 7),
        (8, {}, 4, 2, 8),
        (9, {}, 4, 2, 9),
        (11, {}, 2, 5, 11),
        (64, {}, 4, 16, 64),
        (8, {"instances": 1}, 1, 8, 8),
        (8, {"instances": 2}, 2, 4, 8),
        (8, {"instances": 3}, 3, 2, 8),
        (8, {"instances": 64}, 64, 1, 0),
        (8, {"instances": 4, "intra_op_threads": 1}, 4, 1, 8),
        (2, {"decode_threads": 0, "instances": 1}, 1, 2, 0),
        (8, {"intra_op_threads": 3}, 2, 3, 8),
        (8, {"intra_op_threads": 8}, 1, 8, 8),
        (8, {"intra_op_threads": 30}, 1, 30, 8),
        (8, {"intra_op_threads": 30, "instances": 2}, 2, 30, 8),
        (8, {"decode_threads": 5}, 4, 2, 5),
        (8, {"decode_threads": 50, "intra_op_threads": 1}, 4, 1, 50),
    ],
)
def test_threads_are_planned_from_the_cpus_unless_a_setting_says_how_many(
    cpus: int, settings: dict[str, int], instances: int, threads: int, decoding: int
) -> None:
    """Explicit counts hold, wise or not; of what is left open, sessions of one thread come first, up to four.

    At most one CPU is left over. Threads that decode come only where more are without a session of their own.
    """
    seen = plan(Cpus(cpus, INF), **settings)
    assert (seen["instances"], seen["intra_op_threads"], seen["decode_threads"]) == (instances, threads, decoding)


def test_a_gpu_leaves_one_thread_to_a_session() -> None:
    """It does the arithmetic itself; the CPUs are there to decode."""
    seen = plan(Cpus(8, INF), "CUDAExecutionProvider")
    assert (seen["instances"], seen["intra_op_threads"], seen["decode_threads"], seen["max_batch"]) == (1, 1, 8, 16)
    assert seen["provider"] == "CUDAExecutionProvider"
    assert plan(Cpus(8, INF), "CUDAExecutionProvider", intra_op_threads=4)["intra_op_threads"] == 4


def test_a_plan_says_what_it_was_made_of_and_what_the_settings_said() -> None:
    """Whoever reads it can work it out again."""
    settings = {"max_batch": 5, "max_wait_ms": 2.5, "queue_images": 7, "run_timeout_s": 9.0, "spinning": True}
    seen = make_plan(Settings(**settings), Cpus(6, 2.25), "CPUExecutionProvider", 2**30).model_dump()
    assert seen == {
        "provider": "CPUExecutionProvider", "cpus": 2, "cpu_affinity": 6, "cpu_quota": 2.25,
        "memory_limit": 2**30, "instances": 2, "intra_op_threads": 1, "decode_threads": 0, **settings,
    }  # fmt: skip
    assert plan(Cpus(6, INF))["cpu_quota"] is None
    assert plan(Cpus(6, INF))["memory_limit"] is None
    assert plan(Cpus(6, INF))["max_batch"] == 4


# --- real processes


@pytest.fixture
def one_cpu_cgroup() -> Iterator[Path]:
    """A real cgroup with the quota of one CPU."""
    v1_files = {"cpu.cfs_period_us": str(PERIOD), "cpu.cfs_quota_us": str(PERIOD)}
    with real_cgroup("cpu", {1: v1_files, 2: {"cpu.max": f"{PERIOD} {PERIOD}"}}) as made:
        yield made


@contextlib.contextmanager
def started(before: str, **settings: Any) -> Iterator[Server]:
    """`python -m service` after the statement `before`, which runs in the same process."""
    code = f"import os, sys; {before}; os.execv(sys.executable, [sys.executable, '-m', 'service'])"
    with Server(code, port=0, drain_grace_s=0, **settings) as server:
        yield server
        assert server.stop() == 0


def shown(server: Server) -> dict[str, Any]:
    plan: dict[str, Any] = httpx.get(f"{server.url}/v1/models/tiny-resnet").json()["plan"]
    return plan


def threads_of(server: Server) -> int:
    """Without those that opened the sessions: they may take some requests' time to be gone."""
    tasks = Path(f"/proc/{server.process.pid}/task")
    live = f"{server.url}/v2/health/live"
    return min(len(list(tasks.iterdir())) for _ in range(20) if httpx.get(live).status_code == 200)


def test_in_a_real_cgroup_of_one_cpu_the_service_starts_threads_for_one(one_cpu_cgroup: Path, small: Path) -> None:
    """docker run --cpus 1 on a large machine: threads for the CPUs granted, and API, log and metrics say so."""
    with started(enter(one_cpu_cgroup), models=small) as server:
        assert str(server.process.pid) in (one_cpu_cgroup / "cgroup.procs").read_text().split()
        seen = shown(server)
        for name in ("cpus", "intra_op_threads", "instances"):
            assert seen[name] == 1, name
        assert seen["decode_threads"] == 0  # the session's own thread decodes
        assert seen["cpu_quota"] == 1.0
        assert seen["cpu_affinity"] == len(os.sched_getaffinity(0))
        # and all of them on one CPU: spread over more they would use the quota up side by side and stand still together
        for thread in Path(f"/proc/{server.process.pid}/task").iterdir():
            assert len(os.sched_getaffinity(int(thread.name))) == 1
        (line,) = [line for line in server.log.splitlines() if "tiny-resnet@1 is ready" in line]
        for words in ("'cpus': 1", "'cpu_quota': 1.0", "'intra_op_threads': 1", "'decode_threads': 0"):
            assert words in line
        assert re.search(
            r'^saccade_model_info\{.*cpu_quota="1\.0",cpus="1",.*\} 1\.0$',
            httpx.get(f"{server.url}/metrics").text,
            flags=re.M,
        )
        assert httpx.post(f"{server.url}/v1/classify", content=PNG).status_code == 200
        with started(f"os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})", models=small) as other:
            assert threads_of(server) == threads_of(other)  # as many as on a machine that has one, libraries' included


def test_on_one_cpu_of_several_the_service_starts_threads_for_one(small: Path) -> None:
    """taskset -c 0, or docker run --cpuset-cpus 0."""
    keep = f"os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})"
    with started(keep, models=small) as server:
        seen = shown(server)
        for name in ("cpus", "cpu_affinity", "intra_op_threads"):
            assert seen[name] == 1, name
        assert seen["decode_threads"] == 0


def test_a_plan_is_what_is_really_started(small: Path) -> None:
    """The process has as many threads more as the plan has, of each kind; a session's caller is one of its threads."""
    keep = f"os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})"
    with started(keep, models=small) as server:
        one_each = threads_of(server)
    with started(keep, models=small, intra_op_threads=3, decode_threads=4, instances=2) as server:
        runners, engines, decoders, finisher = 2, 2 * (3 - 1), 4, 1
        assert threads_of(server) - one_each == (runners - 1) + engines + decoders + finisher

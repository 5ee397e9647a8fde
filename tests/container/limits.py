"""What a container does within limits of CPUs and memory."""

import httpx

from tests.container.callers import Callers
from tests.container.engine import HARDENED, Container, until
from tests.container.image import CPU
from tests.container.running import PHOTOGRAPH


def plans_for_its_quota(network: str) -> str:
    """A quota of one CPU gives the plan for one CPU, and the plan shows the memory limit."""
    with Container(CPU, network, (*HARDENED, "--cpus=1", "--memory=512m")) as container:
        container.wait_until_ready()
        plan = httpx.get(f"{container.url}/v1/models/cifar10-hybrid-s").json()["plan"]
    seen = {name: plan[name] for name in ("cpus", "cpu_quota", "instances", "intra_op_threads", "memory_limit")}
    assert list(seen.values()) == [1, 1.0, 1, 1, 512 * 2**20], seen
    return f"1 of {plan['cpu_affinity']} CPUs"


def says_that_memory_is_too_little(network: str) -> str:
    """A memory limit too small for the process is said, with exit code 2; restarts end, and nothing was killed."""
    starved = (*HARDENED, "--memory=32m", "--restart=on-failure:2")
    with Container(CPU, network, starved) as container:
        until("2 restarts", lambda: container.inspect()["RestartCount"] == 2)
        state = container.wait_until_ended()
        said = container.log().splitlines()
    assert (state["ExitCode"], state["OOMKilled"]) == (2, False), state
    assert len(said) == 3, said
    assert set(said) == {said[0]}, said
    assert said[0].startswith("saccade: the memory limit is 32 MiB, and the service takes"), said
    return said[0].removeprefix("saccade: ")


def says_that_memory_is_too_little_for_models(network: str) -> str:
    """A memory limit too small for the models' sessions is said, with exit code 2, and nothing was killed."""
    with Container(CPU, network, (*HARDENED, "--memory=128m"), instances=64) as container:
        state = container.wait_until_ended()
        said = container.log().splitlines()[-1]
    assert (state["ExitCode"], state["OOMKilled"]) == (2, False), state
    assert said.startswith("saccade: the memory limit is 128 MiB, and with cifar10-hybrid-s@1 the service takes"), said
    return said.removeprefix("saccade: ")


def is_said_or_served_at_every_limit(network: str) -> str:
    """From 16 to 160 MiB, each limit is said to be too small or is enough for 16 callers; the kernel never kills."""
    said, served = [], []
    for limit in range(16, 161, 8):
        with Container(CPU, network, (*HARDENED, f"--memory={limit}m", "--health-interval=1s")) as container:
            until(f"ready or not at {limit} MiB", container.is_decided)
            if container.inspect()["State"]["Running"]:
                callers = Callers(f"{container.own_url()}/v1/classify?maps=class", PHOTOGRAPH)
                callers.wait_for_answers(300)
                container.stop()
                outcomes = callers.join()
                assert set(outcomes) <= {"200", "503", "refused"}, outcomes
                served.append(limit)
            else:
                said.append(limit)
            state = container.inspect()["State"]
        assert not state["OOMKilled"], f"killed at {limit} MiB"
        assert state["ExitCode"] == (2 if limit in said else 0), state
    assert max(said) < min(served), (said, served)
    return f"said up to {max(said)} MiB, served from {min(served)} MiB"


STEPS = (
    plans_for_its_quota,
    says_that_memory_is_too_little,
    says_that_memory_is_too_little_for_models,
    is_said_or_served_at_every_limit,
)

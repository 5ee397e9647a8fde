"""The image and the compose file, for real: built, run and stopped by a Docker engine, one promise after another.

    python -m tests.container.check [--network host] [--gpu]

Wants `docker` with compose, and an engine that it reaches. `--network host` is for an engine without a bridge.
Exit code 0 if every promise holds, 1 if one does not, 2 where there is no engine.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence

from tests.container import composed, image, limits, running
from tests.container.engine import Failed, docker

Step = Callable[[str], str]
"""Takes the network, gives what was seen; its docstring is the promise."""

STEPS: tuple[Step, ...] = (*image.STEPS, *running.STEPS, *limits.STEPS, *composed.STEPS)
GPU_STEPS: tuple[Step, ...] = image.GPU_STEPS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("bridge", "host"), default="bridge", help="how containers are reached")
    parser.add_argument("--gpu", action="store_true", help="the gpu target too, which downloads 2 GB")
    given = parser.parse_args(arguments)
    refusal = refusal_to_begin()
    if refusal is not None:
        print(f"container: {refusal}", file=sys.stderr)
        return 2
    steps = (*STEPS, *GPU_STEPS) if given.gpu else STEPS
    held = sum([holds(step, given.network) for step in steps])
    print(f"container: {held} of {len(steps)} passed")
    return 0 if held == len(steps) else 1


def refusal_to_begin() -> str | None:
    if shutil.which("docker") is None:
        return "there is no docker on the PATH: install Docker with its compose plugin"
    try:
        version = docker("version", "--format", "{{.Server.Version}}").strip()
        print(f"engine {version}, compose {docker('compose', 'version', '--short').strip()}")
    except Failed as error:
        return f"no Docker engine with compose answers; start one, or set DOCKER_HOST ({error})"
    return None


def holds(step: Step, network: str) -> bool:
    began = time.monotonic()
    try:
        word, seen = "ok  ", step(network)
    except Exception as error:  # one that fails, however, costs no other its turn
        word, seen = "FAIL", str(error) or repr(error)
    print(f"{word} {promise(step)} [{seen}; {time.monotonic() - began:.0f} s]", flush=True)
    return word == "ok  "


def promise(step: Step) -> str:
    return " ".join((step.__doc__ or "").split())


if __name__ == "__main__":
    sys.exit(main())

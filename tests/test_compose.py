"""What the compose file and the Dockerfile say, without an engine; tests/container runs them."""

import re

import pytest
import yaml

from service.app import FAREWELL_S
from service.process import LINGER_S
from service.settings import Settings
from tests.conftest import ROOT

SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]


@pytest.mark.parametrize("file", ["Dockerfile", "docker-compose.yml"])
def test_every_variable_of_ours_is_a_setting(file: str) -> None:
    """A name that nobody reads would promise something."""
    names = set(re.findall(r"SACCADE_([A-Z_]+)[=:]", (ROOT / file).read_text(encoding="utf-8")))
    assert names
    assert {name.lower() for name in names} <= set(Settings.model_fields)


@pytest.mark.parametrize("service", SERVICES)
def test_docker_waits_for_a_drain_to_end(service: str) -> None:
    """What was accepted is answered before anybody kills."""
    default = {name: field.default for name, field in Settings.model_fields.items()}
    waits = int(SERVICES[service]["stop_grace_period"].removesuffix("s"))
    assert waits > default["drain_grace_s"] + default["drain_timeout_s"] + FAREWELL_S + LINGER_S


def test_what_callers_can_make_it_take_fits_the_limit() -> None:
    """Whoever takes the file as it is is not killed by some tiny files: by the sum of docs/container.md."""
    one = SERVICES["cpu"]
    models, set_to, limits = (
        len([*(ROOT / "models").iterdir()]),
        one["environment"],
        one["deploy"]["resources"]["limits"],
    )
    assert (limits["cpus"], limits["memory"]) == ("${CPUS:-2}", "${MEMORY:-3g}")
    pictures = models * 2 * 16 * set_to["SACCADE_MAX_PIXELS"]
    bodies = models * set_to["SACCADE_QUEUE_IMAGES"] * set_to["SACCADE_MAX_BODY_BYTES"] * 5 // 4
    assert 130 * 2**20 + pictures + bodies < 3 * 2**30
    assert set_to["SACCADE_MAX_PIXELS"] >= 4032 * 3024  # what a telephone calls 12 megapixels


@pytest.mark.parametrize("service", SERVICES)
def test_each_profile_is_hardened_limited_and_open_to_this_machine_alone(service: str) -> None:
    """Whoever takes the file as it is takes nothing on that they have not read."""
    one = SERVICES[service]
    assert one["profiles"] == [service]
    assert one["read_only"] is True
    assert one["cap_drop"] == ["ALL"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", one["user"])
    assert set(one["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert all(port.startswith("127.0.0.1:") for port in one["ports"])
    assert all(volume.endswith(":ro") for volume in one["volumes"])
    assert re.fullmatch(r"on-failure:\d+", one["restart"])

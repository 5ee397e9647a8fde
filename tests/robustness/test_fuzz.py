"""Damage that gets past the first check: a picture or a refusal comes out, soon, and nothing else."""

import json
from pathlib import Path

import pytest

from tests.robustness import fuzz
from tests.robustness.test_corpus import report

GROWTH_MB = 100


@pytest.mark.filterwarnings("ignore")  # Pillow's; the service runs on through them
def test_a_few_thousand_damaged_files_and_queries_keep_the_promise(tmp_path: Path) -> None:
    """The same ones each time, so that this test fails for everybody or for nobody."""
    found = fuzz.run(seed=1, seconds=60, most=3000, folder=tmp_path)
    assert found.broken == []
    assert min(found.outcomes[what] for what in ("decoded", "invalid_image", "image_too_large")) > 10
    assert min(found.parameters[what] for what in ("understood", "invalid_parameter", "unsupported_map")) > 10


def test_an_input_is_known_by_its_seed_and_number() -> None:
    """What failed once is found again by `--seed` and `--only`."""
    whole = [b"\x89PNG\r\n\x1a\n" + bytes(90), b"GIF89a" + bytes(90)]
    made = [fuzz.make(5, number, whole) for number in range(50)]
    assert made == [fuzz.make(5, number, whole) for number in range(50)]
    assert len({data for data, _ in made}) > 25


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_minute_of_damage_keeps_the_promise(tmp_path: Path) -> None:
    """Other inputs than above; and memory does not grow with them."""
    found = fuzz.run(seed=2, seconds=60, most=10**9, folder=tmp_path)
    report("fuzz", json.loads(json.dumps(found.summary())))
    assert found.broken == []
    assert found.memory_mb[-1] - found.memory_mb[0] <= GROWTH_MB

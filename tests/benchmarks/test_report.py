"""The page of the benchmarks says what was measured, and no more."""

import json
import re
from typing import Any

import numpy as np
import pytest

from benchmarks.report import page
from benchmarks.targets import targets
from tests.conftest import ROOT

PAGE, RESULTS = ROOT / "docs/benchmarks.md", ROOT / "docs/benchmarks.json"


@pytest.fixture
def parts() -> dict[str, Any]:
    parts: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return parts


def test_the_page_is_made_from_its_figures(parts: dict[str, Any]) -> None:
    """Nobody has touched it up by hand: the JSON beside it gives the same page, to the letter."""
    assert PAGE.read_text(encoding="utf-8") == page(parts, "benchmarks")


def test_every_target_is_in_the_page_met_or_not(parts: dict[str, Any]) -> None:
    """What was missed stays in the table, and says so."""
    text = PAGE.read_text(encoding="utf-8")
    for target in targets(parts):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {target.what} |")]
        assert row.endswith("| met |" if target.met else "| **not met** |")


def test_a_ratio_is_the_median_of_the_ratios_within_the_rounds(parts: dict[str, Any]) -> None:
    """Not the ratio of two medians, which a drifting machine would bend."""
    for work, name in (("cct", "CCT"), ("vit-ti", "ViT-Ti")):
        runs = parts[f"{work}/closed/map/16"]
        ratios = [a["throughput"] / b["throughput"] for a, b in zip(runs["ours"], runs["limit"], strict=True)]
        (found,) = [one for one in targets(parts) if one.what == f"{name}, 16 callers: images/s against the limit"]
        assert found.measured.startswith(f"{np.median(ratios):.2f} (")
        assert found.met == (np.median(ratios) >= float(found.bound.removeprefix("at least ")))


def test_no_run_was_left_out(parts: dict[str, Any]) -> None:
    """Every entrant has as many runs as there were rounds, in every part."""
    rounds = parts["effort"]["rounds"]
    for name, runs in parts.items():
        if "/closed/" in name or "/open/" in name or name.endswith("/start"):
            assert {len(own) for own in runs.values()} == {rounds}, name


def test_the_results_name_no_folder_of_a_machine(parts: dict[str, Any]) -> None:
    """Machine and versions, but nobody's paths or host names."""
    assert not re.search(r"/(home|root|tmp|work|usr)/", json.dumps(parts))

"""docs/model-robustness.md is true: its constants are those of the code, its command runs and writes what it says."""

import re
import shlex
from pathlib import Path

from export.evaluation.robustness.corruptions import CORRUPTIONS
from saccade.cli import main
from tests.conftest import ROOT
from tests.test_docs import commands, rows

PAGE = ROOT / "docs/model-robustness.md"


def shown(constant: float | bool) -> str:
    return {True: "mud", False: "water"}[constant] if isinstance(constant, bool) else f"{constant:g}"


def test_the_constants_are_those_of_the_code() -> None:
    """Each corruption with its five severities, in order."""
    documented = {row[0].strip("`"): row[2:] for row in rows(PAGE) if row[0].strip("`") in CORRUPTIONS}
    expected = {
        name: [", ".join(map(shown, severity)) for severity in corruption.constants]
        for name, corruption in CORRUPTIONS.items()
    }
    assert documented == expected
    assert list(documented) == list(CORRUPTIONS)


def test_the_command_runs_and_writes_the_files(models: Path, tmp_path: Path) -> None:
    """On digits in place of CIFAR-10, and few of them."""
    (line,) = [line for line in commands(PAGE.read_text()) if "saccade robustness" in line]
    words = shlex.split(line)[1:]
    assert words[1:] == ["cifar10-hybrid-s", "cifar10-resnet-s", "--data", "data"]
    out = tmp_path / "out"
    few = ["--pictures", "3", "--models", str(models), "--out", str(out)]
    assert main([words[0], "tiny-cct", "tiny-resnet", *few]) == 0
    (files,) = [row for row in rows(PAGE) if "rotation.png" in row[0]]
    named = {"robustness.json", "robustness.md", *re.findall(r"\w+\.png", files[0])}
    assert {path.name for path in out.iterdir()} == named

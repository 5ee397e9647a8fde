"""docs/evaluation.md: its example runs as it stands, and it names every file and field that there is."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from export.evaluation.findings import Findings
from saccade.cli import main
from tests.conftest import ROOT
from tests.test_docs import blocks, commands, rows

PAGE = ROOT / "docs/evaluation.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_example_prints_what_stands_there(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Line by line but for the figures, of a model of another name; and the files are those of the table."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models / "tiny-cct", tmp_path / "models" / "tiny-cct")
    for line in commands(TEXT)[:2]:
        assert main(["tiny-cct" if word == "digits" else word for word in shlex.split(line)[1:]]) == 0
    (shown,) = blocks(TEXT, "text")
    printed = capsys.readouterr().out.replace("tiny-cct", "digits")
    assert _words(shown) == _words(printed)
    out = tmp_path / "evaluations/tiny-cct@1/scikit-learn-digits-test"
    written = {path.name for path in out.iterdir()}
    assert written == {name for row in rows(PAGE) for name in re.findall(r"`([\w-]+\.(?:json|md|png))`", row[0])}
    fields = {name for row in rows(PAGE) for name in re.findall(r"`(\w+)`", row[0])}
    assert set(Findings.model_fields) <= fields
    found = json.loads((out / "evaluation.json").read_text())
    nested = {*found["evaluation"], *found["mistakes"][0], *found["reliability_raw"][0]}
    assert nested <= set(re.findall(r"`(\w+)`", TEXT))


def _words(text: str) -> list[str]:
    """Lines without their figures."""
    return [" ".join(re.sub(r"\d+\.\d+%?", "#", line).split()) for line in text.strip().splitlines()]

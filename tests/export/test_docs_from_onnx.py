"""docs/from-onnx.md: its example runs as it stands and says what stands there."""

import re
import shlex
import warnings
from pathlib import Path

import pytest

from saccade.cli import main
from tests.conftest import ROOT
from tests.test_docs import blocks, commands

PAGE = (ROOT / "docs/from-onnx.md").read_text(encoding="utf-8")


def test_the_example_gives_the_table_that_stands_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model is made, exported and adopted by the page's own words; names of nodes are the exporter's."""
    monkeypatch.chdir(tmp_path)
    (python,) = blocks(PAGE, "python")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch's exporter says of itself
        exec(python, {})  # of our own document
    (line,) = commands(PAGE)
    capsys.readouterr()
    assert main(shlex.split(line)[1:]) == 0
    printed = capsys.readouterr().out
    (shown,) = blocks(PAGE, "text")
    table = re.search(r"^attention +heads .*", printed, flags=re.M | re.S)
    assert table is not None, printed
    assert _plain(shown) == _plain(table[0])


def _plain(text: str) -> list[list[str]]:
    """Words of each line; the numbers in the exporter's names left out."""
    return [re.sub(r"Softmax_\d+", "Softmax", line).split() for line in text.strip().splitlines()]

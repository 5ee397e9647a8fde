"""docs/from-onnx.md and what docs/explanations.md does with its file: they run as they stand and say what is there."""

import re
import shlex
import warnings
from pathlib import Path

import pytest

from saccade.cli import main
from tests.conftest import ROOT
from tests.test_docs import blocks, commands

WHY = (ROOT / "docs/explanations.md").read_text(encoding="utf-8")
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

    (line,) = [line for line in commands(WHY) if line.startswith("saccade relevance vit.onnx")]
    assert main(shlex.split(line)[1:]) == 0
    printed = capsys.readouterr().out
    (shown,) = blocks(WHY, "text")
    assert _plain(shown) == _plain(printed)
    (python,) = blocks(WHY, "python")
    exec(python, {})  # of our own document
    assert re.match(r"for its top class .* at row \d, column \d+ of 8 x 12\n", capsys.readouterr().out)


def _plain(text: str) -> list[list[str]]:
    """Words of each line; the numbers in the exporter's names left out, and what was measured."""
    return [re.sub(r"Softmax_\d+|within [-+.e\d]+", "", line).split() for line in text.strip().splitlines()]

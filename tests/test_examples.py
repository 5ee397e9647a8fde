"""The examples run as they stand, against a real service on the shipped models."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from PIL import Image

from saccade import Client
from tests.conftest import ROOT, Server

EXAMPLES = ROOT / "examples"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl, which is not installed here")
def test_every_curl_line_gets_an_answer(shipped: Server) -> None:
    """Health, models, raw, form, base64, maps, weights; the refusal at the end is one that explains itself."""
    environment = {**os.environ, "URL": shipped.url}
    ran = subprocess.run(["sh", EXAMPLES / "curl.sh"], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    *good, refusal = answers
    assert len(good) == 9
    assert [one["labels"][0]["label"] for one in good if "labels" in one] == ["cat"] * 6
    assert refusal["code"] == "invalid_parameter"


def test_the_batch_script_scores_a_folder(shipped: Server, tmp_path: Path) -> None:
    """A line a picture, its error where there is one, and overlays of the unsure ones alone, each its own."""
    folder, table, unsure = tmp_path / "pictures", tmp_path / "labels.csv", tmp_path / "unsure"
    folder.mkdir()
    shutil.copy(EXAMPLES / "chelsea.jpg", folder)
    (folder / "broken.png").write_bytes(b"no picture")
    for name in ("left", "right"):
        (folder / name).mkdir()
        with Image.open(EXAMPLES / "chelsea.jpg") as cat:
            cat.rotate(225).save(folder / name / "turned.png")
    command = [sys.executable, EXAMPLES / "batch.py", folder, "--out", table, "--unsure", unsure, "--url", shipped.url]
    ran = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (1, "1 failed\n")
    broken, chelsea, *turned = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    assert "not a picture" in broken["error"]
    with Client(shipped.url) as client:
        best = client.classify(folder / "chelsea.jpg").labels[0]
    assert (chelsea["label"], float(chelsea["score"])) == (best.label, pytest.approx(best.score, abs=1e-3))
    assert all(float(one["score"]) < 0.6 for one in turned)
    assert {path.name for path in unsure.iterdir()} == {"left-turned.png.jpg", "right-turned.png.jpg"}


def test_the_notebook_shows_what_it_showed(shipped: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run from top to bottom in a kernel of its own, it prints the labels and figures that stand in it."""
    monkeypatch.setenv("SACCADE_URL", shipped.url)
    kept = nbformat.read(EXAMPLES / "labels-and-maps.ipynb", as_version=4)
    run = nbclient.NotebookClient(
        nbformat.from_dict(kept), timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}
    ).execute()
    for before, after in zip(kept.cells, run.cells, strict=True):
        assert printed(before) == printed(after), before.source
    assert sum("image/jpeg" in output.get("data", {}) for cell in run.cells for output in cell.get("outputs", [])) == 2


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.get("outputs", []) if output.output_type == "stream")

"""Accuracy on the card: counted right, with its interval, one figure a split."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import binomtest

from export.data import Digits
from export.evaluation.evaluate import evaluate
from export.evaluation.figures import wilson_interval
from export.examples import held_out
from export.nets import build
from saccade.bundle import Bundle, open_bundle
from saccade.cli import main
from saccade.errors import DataError
from tests.conftest import tiny_recipe


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Bundle:
    shutil.copytree(models / "tiny-cct" / "1", tmp_path / "tiny-cct" / "1")
    return open_bundle(tmp_path / "tiny-cct" / "1")


def counted_in_torch(bundle: Bundle, split: str) -> tuple[int, int]:
    """(right, all): the rebuilt net in eager PyTorch, picture by picture from scikit-learn's data."""
    examples = list(Digits().test() if split == "test" else Digits().training())
    labels = np.array([example.label for example in examples])
    pixels = np.stack([np.asarray(example.picture.resize((16, 16), 2)) for example in examples])  # 2: bilinear
    if split == "held-out":
        mask = held_out(labels, Digits.classes)
        labels, pixels = labels[mask], pixels[mask]
    net = build(tiny_recipe("tiny-cct").net, (16, 16), 10)
    net.load_state_dict(load_file(bundle.weights))
    with torch.inference_mode():
        inputs = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        predicted = net.eval()(inputs).argmax(-1).numpy()
    return int((predicted == labels).sum()), len(labels)


@pytest.mark.parametrize(("split", "pictures"), [("test", 360), ("held-out", None)])
def test_accuracy_is_what_the_net_gets_right(copy: Bundle, split: str, pictures: int | None) -> None:
    """Through ONNX Runtime and the one preprocessing it is the same count as in PyTorch, and says its split."""
    right, count = counted_in_torch(copy, split)
    assert pictures in (None, count)
    (figure,) = evaluate(copy, None, "test" if split == "test" else "held-out").manifest.card.evaluation
    assert (figure.correct, figure.pictures) == (right, count)
    assert figure.top1 == right / count
    assert figure.split == f"scikit-learn digits, {split}"
    reference = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert figure.interval95 == pytest.approx((reference.low, reference.high))


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (1, 10), (10, 10), (8_912, 10_000), (1, 1), (499, 500)])
def test_the_interval_is_wilsons(correct: int, count: int) -> None:
    """As scipy has it, at the edges too."""
    reference = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(correct, count)
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_the_card_keeps_one_figure_a_split(copy: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """A second reading of a split replaces the first; the other split's stays; the bundle stays whole."""
    for split in ("test", "held-out", "test"):
        assert main(["evaluate", str(copy.folder), "--split", split]) == 0
    splits = [figure.split for figure in open_bundle(copy.folder).manifest.card.evaluation]
    assert sorted(splits) == ["scikit-learn digits, held-out", "scikit-learn digits, test"]
    assert "scikit-learn digits, test: " in capsys.readouterr().out


def test_a_model_with_other_labels_is_refused(copy: Bundle) -> None:
    """A figure for the wrong data set never reaches a card."""
    path = copy.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["labels"] = list("abcdefghij")
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"digits has the class 0, which is none of the 10 labels of tiny-cct@1: a, b"):
        evaluate(open_bundle(copy.folder), None, "test")
    assert json.loads(path.read_text()) == manifest

"""Run folders: one run each, and what they say of it is true."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.data import Digits
from export.examples import load, split
from export.nets import build
from export.run import read_run
from export.train import train
from saccade.errors import DataError
from tests.conftest import tiny_recipe
from tests.export.conftest import FewDigits


class Letters(FewDigits):
    classes = tuple("abcdefghij")


@pytest.mark.parametrize(
    "change", [{"seed": 9}, {"training": {"learning_rate": 1e-5}}, {"training": {"epochs": 4}}], ids=str
)
def test_a_run_of_another_recipe_is_refused(runs: dict[str, Path], change: dict[str, Any]) -> None:
    """A resumed run is one recipe from end to end."""
    recipe = tiny_recipe("tiny-cct")
    training = recipe.training.model_copy(update=change.get("training", {}))
    other = recipe.model_copy(update={**change, "training": training})
    before = (runs["tiny-cct"] / "checkpoint.safetensors").read_bytes()
    with pytest.raises(DataError, match="tiny-cct holds a run of another recipe: give another folder"):
        train(other, FewDigits(), runs["tiny-cct"])
    assert (runs["tiny-cct"] / "checkpoint.safetensors").read_bytes() == before


def test_the_words_of_the_card_may_change_while_the_weights_stay(runs: dict[str, Path], tmp_path: Path) -> None:
    """No weight depends on them: a finished run takes new ones, and is exported with them."""
    folder = tmp_path / "tiny-cct"
    shutil.copytree(runs["tiny-cct"], folder)
    recipe = tiny_recipe("tiny-cct")
    card = recipe.card.model_copy(update={"summary": "said otherwise"})
    train(recipe.model_copy(update={"card": card, "default_maps": ("class",)}), Digits(), folder)
    seen, weights, _, _ = read_run(folder)
    assert (seen.card.summary, seen.default_maps) == ("said otherwise", ("class",))
    before = read_run(runs["tiny-cct"])[1]
    assert all(torch.equal(weights[name], before[name]) for name in before)


def test_a_run_on_other_classes_is_refused(runs: dict[str, Path]) -> None:
    """The same recipe on another folder of pictures is another run."""
    with pytest.raises(DataError, match=r"holds a run with the classes \['0', '1'"):
        train(tiny_recipe("tiny-cct"), Letters(), runs["tiny-cct"])


@pytest.mark.parametrize("content", [None, "{}", "not JSON"])
def test_a_folder_that_holds_no_run_is_named(tmp_path: Path, content: str | None) -> None:
    """Exporting the wrong folder is one sentence."""
    if content is not None:
        (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(DataError, match=f"{tmp_path} is not a run folder"):
        read_run(tmp_path)


def test_a_run_without_a_finished_epoch_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    """There is nothing to export yet, and the message says which file is not there."""
    for name in ("recipe.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((runs["tiny-cct"] / name).read_bytes())
    with pytest.raises(DataError, match=r"best\.safetensors is not a checkpoint"):
        read_run(tmp_path)


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """Where a file stands in the way, no stack trace does."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"could not write to .*file/run"):
        train(tiny_recipe("tiny-cct"), FewDigits(), tmp_path / "file" / "run")


@pytest.mark.parametrize("name", ["tiny-cct", "tiny-resnet"])
def test_the_best_weights_have_the_accuracy_that_the_metrics_say(runs: dict[str, Path], name: str) -> None:
    """Counted anew on the held-out pictures, with a net built from the file."""
    recipe, weights, state, metrics = read_run(runs[name])
    net = build(recipe.net, recipe.size, 10)
    net.load_state_dict(weights)
    held_out = load(split(Digits())[1], recipe.preprocessing)
    inputs = (torch.from_numpy(held_out.pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        predicted = net.eval()(inputs).argmax(-1).numpy()
    assert np.mean(predicted == held_out.labels) == pytest.approx(metrics[0]["held_out_accuracy"])
    assert state["epoch"] == 1
    assert state["best"] == metrics[0]["held_out_accuracy"]


def test_the_best_epoch_is_kept_when_later_ones_are_worse(tmp_path: Path) -> None:
    """The file holds the epoch with the highest held-out accuracy, the first of equals."""
    recipe = tiny_recipe("tiny-cct", epochs=4, optimizer="sgd", learning_rate=3.0, ema=0.0, clip=100.0)
    train(recipe, FewDigits(), tmp_path)
    _, _, state, metrics = read_run(tmp_path)
    accuracies = [line["held_out_accuracy"] for line in metrics]
    assert state["epoch"] == 1 + int(np.argmax(accuracies))

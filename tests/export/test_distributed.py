"""Training together: two processes that torchrun starts do what one would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from export.distributed import World
from export.run import read_run
from saccade.errors import RecipeError
from tests.conftest import ROOT
from tests.export import together
from tests.export.conftest import same_tensors


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes over gloo left."""
    folder = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "tests.export.together", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves that trains with the same whole batches."""
    folder = tmp_path_factory.mktemp("alone")
    together.without_augmentation(folder)
    return folder


def test_two_halves_of_a_batch_give_the_gradient_of_the_whole(two: Path, alone: Path) -> None:
    """In float32, no batch norm, no augmentation: within 1e-6 of its norm; and both processes have the same one."""
    whole = load_file(alone / "gradient-0.safetensors")
    halves = [load_file(two / f"gradient-{rank}.safetensors") for rank in range(2)]
    assert all(torch.equal(halves[0][name], halves[1][name]) for name in whole)
    differences = torch.cat([(halves[0][name] - tensor).double().flatten() for name, tensor in whole.items()])
    assert differences.norm() <= 1e-6 * torch.cat([tensor.double().flatten() for tensor in whole.values()]).norm()
    for name, tensor in whole.items():  # and no parameter's hides behind the others'
        torch.testing.assert_close(halves[0][name], tensor, rtol=0, atol=1e-5 * float(tensor.abs().max()) + 1e-8)


def test_an_epoch_together_gives_the_weights_of_an_epoch_alone(two: Path, alone: Path) -> None:
    """To 1e-6 after plain SGD: weights, averages, momentum; and the same loss and accuracy."""
    left, right = (load_file(folder / "plain" / "checkpoint.safetensors") for folder in (two, alone))
    assert left.keys() == right.keys()
    assert max(float((left[name] - right[name]).abs().max()) for name in left) <= 1e-6
    (left_line,), (right_line,) = read_run(two / "plain")[3], read_run(alone / "plain")[3]
    assert left_line["loss"] == pytest.approx(right_line["loss"], rel=1e-6)
    assert left_line["held_out_accuracy"] == right_line["held_out_accuracy"]


def test_a_run_of_two_that_was_stopped_goes_on_to_the_same_weights(two: Path) -> None:
    """Bit for bit, with everything random switched on, also when the pictures are streamed after the stop."""
    for name in ("checkpoint.safetensors", "best.safetensors"):
        assert same_tensors(two / "whole" / name, two / "stopped" / name)


def test_a_loss_that_is_not_finite_in_one_process_stops_all_of_them(two: Path) -> None:
    """With the same words, and the checkpoint before it is kept; so does a batch that cannot be shared evenly."""
    said = [(two / f"said-{rank}").read_text().splitlines() for rank in range(2)]
    assert said[0] == said[1]
    assert said[0][0].startswith("the loss is nan at epoch 1, step 2, rate ")
    assert said[0][1] == "training.batch is 63; 2 processes cannot share 63 evenly"
    assert all(tensor.isfinite().all() for tensor in load_file(two / "nan" / "checkpoint.safetensors").values())


def test_the_command_trains_together_and_one_process_writes_and_talks(two: Path) -> None:
    """`torchrun ... -m saccade.cli train`: one line of metrics an epoch, one progress, the number of processes kept."""
    first, second = ((two / f"command-{rank}").read_text() for rank in range(2))
    assert "held-out accuracy" in first
    assert second == "0\n"
    assert len((two / "command" / "metrics.jsonl").read_text().splitlines()) == 1
    made = json.loads((two / "command" / "run.json").read_text())
    assert made["processes"] == 2
    assert made["command"] == f"torchrun --nproc-per-node 2 -m tests.export.together {two}"


def test_few_pictures_are_named_where_they_make_the_batch() -> None:
    """The recipe's number alone would not explain what cannot be shared."""
    message = "training.batch is 64, but there are 33 pictures to train on; 2 processes cannot share 33 evenly"
    with pytest.raises(RecipeError, match=message):
        World(torch.device("cpu"), 0, 2).part(33, 64)

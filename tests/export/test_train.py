"""Training: repeatable, interruptible, and loud when it fails."""

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from export.checkpoint import read, write
from export.data import Digits
from export.distributed import World
from export.examples import Examples
from export.losses import Losses
from export.recipe import RECIPES, Recipe
from export.run import read_run
from export.train import train
from saccade.cli import main
from saccade.errors import DataError, RecipeError, SetupError
from tests.conftest import ROOT, run_recipe, tiny_recipe
from tests.export.conftest import FewDigits, after_each_step, float64, same_tensors

FILES = ("checkpoint.safetensors", "best.safetensors")
STEPS = 5  # 200 digits less the tenth held out, in batches of 32


LIVELY = {"mixup": 0.8, "cutmix": 1.0, "randaugment": 2, "erase": 0.25, "label_smoothing": 0.1}


def recipe_of(net: str, **training: Any) -> Recipe:
    """Three epochs with everything random that a recipe can switch on."""
    recipe = tiny_recipe(net, **{"epochs": 3, "shift": 1, "flip": True, "ema": 0.9, **training})
    if net != "tiny-resnet":
        recipe = recipe.model_copy(update={"net": recipe.net.model_copy(update={"drop_path": 0.2})})
    return recipe


def run(recipe: Recipe, folder: Path, **arguments: Any) -> Path:
    train(recipe, FewDigits(), folder, **arguments)
    return folder


def assert_same(left: Path, right: Path) -> None:
    for name in FILES:
        assert same_tensors(left / name, right / name), name
    losses = [
        [(line["epoch"], line["loss"], line["held_out_accuracy"]) for line in read_run(folder)[3]]
        for folder in (left, right)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("net", "training"),
    [
        ("tiny-cct", {"optimizer": "adamw"}),
        ("tiny-cct", {"optimizer": "sgd"}),
        ("tiny-cct", {"optimizer": "adamw", "precision": "bfloat16"}),
        ("tiny-vit", {"optimizer": "adamw"}),
        ("tiny-cct", {"optimizer": "adamw", **LIVELY, "schedule": "one_cycle"}),
        ("tiny-vit", {"optimizer": "sgd", **LIVELY, "mix_epochs": 2, "final_rate": 1e-4}),
        ("tiny-resnet", {"optimizer": "sgd"}),
        ("tiny-resnet", {"optimizer": "adamw"}),
    ],
)
def test_resuming_gives_the_same_weights_as_not_stopping(net: str, training: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit: weights, averages, the optimizer's state, the best epoch and the metrics."""
    recipe = recipe_of(net, **training)
    run(recipe, tmp_path / "whole")
    for stop_after in (1, 2, None):
        run(recipe, tmp_path / "stopped", stop_after=stop_after)
    assert_same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_a_compiled_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """`compile = true` is still exact after a stop, and learns what the uncompiled net does."""
    recipe = recipe_of("tiny-resnet", epochs=2, precision="float32", compile=True)
    run(recipe, tmp_path / "whole")
    for stop_after in (1, None):
        run(recipe, tmp_path / "stopped", stop_after=stop_after)
    assert_same(tmp_path / "whole", tmp_path / "stopped")
    run(recipe_of("tiny-resnet", epochs=2, precision="float32"), tmp_path / "eager")
    losses = [[line["loss"] for line in read_run(tmp_path / name)[3]] for name in ("whole", "eager")]
    np.testing.assert_allclose(*losses, rtol=2e-3)


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    """The same seed gives the same run; another seed gives another."""
    recipe = recipe_of("tiny-cct", epochs=1, **LIVELY)
    for name in ("one", "again"):
        run(recipe, tmp_path / name)
    run(recipe.model_copy(update={"seed": 2}), tmp_path / "other")
    assert_same(tmp_path / "one", tmp_path / "again")
    assert not same_tensors(tmp_path / "one" / FILES[0], tmp_path / "other" / FILES[0])


@pytest.mark.parametrize("at", [2, STEPS + 3], ids=["in the first epoch", "in the second epoch"])
def test_an_interrupted_run_goes_on_where_it_stood(tmp_path: Path, at: int) -> None:
    """Ctrl-C in the middle of an epoch costs that epoch and nothing else."""
    recipe = recipe_of("tiny-cct", epochs=2)
    steps = count(1)

    def interrupt(_: torch.optim.Optimizer) -> None:
        if next(steps) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), after_each_step(interrupt):
        run(recipe, tmp_path / "stopped")
    assert (tmp_path / "stopped" / FILES[0]).is_file()
    run(recipe, tmp_path / "stopped")
    run(recipe, tmp_path / "whole")
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_ctrl_c_on_the_command_line_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    """SIGINT: one line that says how to go on, exit code 130, and the same command ends with the same weights."""
    text = (RECIPES / "digits-cct.toml").read_text().replace("epochs = 12", "epochs = 2")
    (tmp_path / "mine.toml").write_text(text)
    arguments = ["train", str(tmp_path / "mine.toml"), "--out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "saccade.cli", *arguments, str(tmp_path / "stopped")],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 2/2  step"):
            break
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 130
    assert "Traceback" not in said
    assert f"the same command resumes from the last epoch in {tmp_path / 'stopped'}" in said
    assert len((tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()) == 1
    command = json.loads((tmp_path / "stopped" / "run.json").read_text())["command"]
    assert command == shlex.join(["python", "-m", "saccade.cli", *arguments, str(tmp_path / "stopped")])
    assert main([*arguments, str(tmp_path / "stopped")]) == 0
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """Epoch, step and rate are named; the epoch before is there to look at or go on from."""
    recipe = recipe_of("tiny-cct", epochs=2, warmup_epochs=0)
    run(recipe, tmp_path, stop_after=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    steps = count(1)

    def blow_up(optimizer: torch.optim.Optimizer) -> None:
        if next(steps) == 2:
            optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))

    rate = recipe.training.learning_rate * 0.5 * (1 + np.cos(np.pi * (STEPS + 2) / (2 * STEPS)))
    with pytest.raises(DataError, match=f"the loss is nan at epoch 2, step 3, rate {rate:g}"), after_each_step(blow_up):
        run(recipe, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_weights_that_the_last_step_of_an_epoch_spoilt_are_not_kept(tmp_path: Path) -> None:
    """No loss has seen them: with one step an epoch, checkpoint and best are still those of the epoch before."""
    recipe = recipe_of("tiny-cct", epochs=2, batch=180)
    run(recipe, tmp_path, stop_after=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def blow_up(optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["params"][0].data[0] = float("inf")

    with (
        pytest.raises(DataError, match="weights are not finite after epoch 2, step 1, rate "),
        after_each_step(blow_up),
    ):
        run(recipe, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_rate_that_overflows_in_the_first_step_leaves_no_best_weights(tmp_path: Path) -> None:
    """What could be exported would be no model."""
    with pytest.raises(DataError, match=r"weights are not finite after epoch 1, step 1, rate 1e\+38"):
        run(recipe_of("tiny-cct", epochs=1, batch=180, learning_rate=1e38, warmup_epochs=0), tmp_path)
    assert not (tmp_path / FILES[1]).exists()
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / FILES[0]).values())


def test_a_gradient_that_is_not_finite_is_named() -> None:
    """The loss before it may still be a number; epoch, step and rate are said."""
    losses = Losses(World(torch.device("cpu")), 2)
    losses.add(torch.tensor(1.0), torch.tensor(3.0), 0.5)
    losses.add(torch.tensor(1.0), torch.tensor(float("inf")), 0.25)
    with pytest.raises(DataError, match=r"the norm of the gradient is inf at epoch 3, step 2, rate 0\.25"):
        losses.mean()


def snapshots(recipe: Recipe, folder: Path) -> list[dict[str, Tensor]]:
    """The net's parameters by name after each step."""
    seen: list[list[Tensor]] = []

    def keep(optimizer: torch.optim.Optimizer) -> None:
        seen.append([tensor.detach().clone() for group in optimizer.param_groups for tensor in group["params"]])

    with after_each_step(keep):
        run(recipe, folder)
    return [dict(zip(names_in_order(seen[-1], folder), tensors, strict=True)) for tensors in seen]


def names_in_order(tensors: list[Tensor], folder: Path) -> list[str]:
    """Of the last values of an optimizer's parameters, their names in the checkpoint."""
    saved = {name[4:]: tensor for name, tensor in load_file(folder / FILES[0]).items() if name.startswith("net.")}
    names = [[name for name, tensor in saved.items() if torch.equal(tensor, last)] for last in tensors]
    assert all(len(found) == 1 for found in names)
    return [found[0] for found in names]


@pytest.mark.parametrize("ema", [0.0, 0.3, 0.999])
def test_what_is_kept_is_the_moving_average_of_the_weights(tmp_path: Path, ema: float) -> None:
    """a <- a + (1 - d) (w - a) with d = min(ema, (1 + t) / (10 + t)); 0 keeps the weights themselves."""
    steps = snapshots(recipe_of("tiny-cct", epochs=1, ema=ema), tmp_path)
    saved = load_file(tmp_path / FILES[0])
    if ema == 0.0:
        assert all(torch.equal(saved[f"average.{name}"], saved[f"net.{name}"]) for name in steps[-1])
        return
    decays = [min(ema, (1 + step) / (10 + step)) for step in range(len(steps))]
    # tensors whose start is known: norms begin at 1 and 0, biases at 0
    for name, start in (("encoder.norm.weight", 1.0), ("encoder.norm.bias", 0.0), ("head.bias", 0.0)):
        average = np.full(steps[0][name].shape, start)
        for decay, weights in zip(decays, steps, strict=True):
            average = decay * average + (1 - decay) * float64(weights[name])
        np.testing.assert_allclose(float64(saved[f"average.{name}"]), average, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_norms_biases_and_positions_do_not_decay(tmp_path: Path, optimizer: str) -> None:
    """Weight decay is for matrices and convolutions, and all parameters are trained."""
    groups: dict[float, list[Tensor]] = {}

    def look(trained: torch.optim.Optimizer) -> None:
        for group in trained.param_groups:
            groups[group["weight_decay"]] = [tensor.detach().clone() for tensor in group["params"]]

    recipe = recipe_of("tiny-cct", epochs=1, optimizer=optimizer, weight_decay=0.25)
    with after_each_step(look):
        run(recipe, tmp_path)
    decayed, plain = (set(names_in_order(groups[decay], tmp_path)) for decay in (0.25, 0.0))
    assert decayed | plain == {name[4:] for name in load_file(tmp_path / FILES[0]) if name.startswith("net.")}
    assert plain == {name for name in decayed | plain if name.endswith("bias") or "norm" in name or name == "position"}


def test_the_rate_warms_up_and_then_follows_a_cosine(tmp_path: Path) -> None:
    """Linear over the warm-up epochs, then half a cosine from the recipe's rate to nought, step by step."""
    rates: list[float] = []
    recipe = recipe_of("tiny-cct", epochs=3, warmup_epochs=1.2)
    with after_each_step(lambda optimizer: rates.append(optimizer.param_groups[1]["lr"])):
        run(recipe, tmp_path)
    warmup = 6
    rising = [(step + 1) / warmup for step in range(warmup)]
    falling = [0.5 * (1 + np.cos(np.pi * step / (3 * STEPS - warmup))) for step in range(3 * STEPS - warmup)]
    np.testing.assert_allclose(rates, recipe.training.learning_rate * np.array(rising + falling), rtol=1e-9)


def test_training_learns(tmp_path: Path) -> None:
    """On 200 digits it gets from a tenth to most of them in a few seconds: the gradient points the right way."""
    recipe = tiny_recipe("tiny-resnet", epochs=8, optimizer="adamw", learning_rate=1e-2, ema=0.8, clip=5.0, shift=0)
    metrics = read_run(run(recipe, tmp_path))[3]
    assert max(line["held_out_accuracy"] for line in metrics) >= 0.7
    assert metrics[-1]["loss"] < metrics[0]["loss"] / 2


def test_a_run_folder_holds_nothing_pickled(tmp_path: Path) -> None:
    """Safetensors, JSON and TensorBoard's records: reading somebody else's run executes nothing."""
    run(recipe_of("tiny-cct", epochs=1), tmp_path)
    read: dict[str, Callable[[Path], Any]] = {
        "recipe.json": lambda path: json.loads(path.read_text()),
        "run.json": lambda path: json.loads(path.read_text()),
        "metrics.jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
        "checkpoint.safetensors": load_file,
        "best.safetensors": load_file,
        "tensorboard": lambda path: EventAccumulator(str(path)).Reload().Tags()["scalars"],
    }
    assert {path.name for path in tmp_path.iterdir()} == read.keys()
    for name, reader in read.items():
        assert reader(tmp_path / name)


def test_a_run_folder_says_all_that_is_needed_to_repeat_it(tmp_path: Path) -> None:
    """Recipe, seed, data by their checksum, versions, commit and command; the kept recipe gives the same weights."""
    base = tiny_recipe("tiny-cct")
    (tmp_path / "mine.json").write_text(base.model_dump_json())
    assert main(["train", str(tmp_path / "mine.json"), "--out", str(tmp_path / "first")]) == 0
    said = json.loads((tmp_path / "first" / "run.json").read_text())
    assert said["seed"] == base.seed
    assert said["data"] == "scikit-learn digits"
    assert said["data_sha256"] == Digits().training().fingerprint()
    assert said["versions"]["torch"] == version("torch")
    assert said["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", said["commit"])
    assert said["processes"] == 1
    assert said["command"]
    assert main(["train", str(tmp_path / "first" / "recipe.json"), "--out", str(tmp_path / "second")]) == 0
    assert_same(tmp_path / "first", tmp_path / "second")


def test_tensorboard_shows_each_epoch_once_after_a_run_was_cut_off(tmp_path: Path) -> None:
    """The values of metrics.jsonl; epochs that a crash took back and that came again are not there twice."""
    recipe = recipe_of("tiny-cct", epochs=3)
    run(recipe, tmp_path, stop_after=1)
    checkpoint = (tmp_path / FILES[0]).read_bytes()
    run(recipe, tmp_path, stop_after=2)
    (tmp_path / FILES[0]).write_bytes(checkpoint)  # as if the second epoch's had never been written
    run(recipe, tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    lines = read_run(tmp_path)[3]
    for name in ("loss", "held_out_accuracy", "learning_rate"):
        points = board.Scalars(name)
        assert [point.step for point in points] == [1, 2, 3]
        np.testing.assert_allclose([point.value for point in points], [line[name] for line in lines], rtol=1e-6)


@pytest.mark.parametrize("bytes_kept", [0, 100, 0.5])
def test_a_checkpoint_that_was_cut_short_is_named_and_nothing_is_overwritten(tmp_path: Path, bytes_kept: float) -> None:
    """The best weights and the metrics are there to be exported or looked at."""
    recipe = recipe_of("tiny-cct", epochs=2)
    run(recipe, tmp_path, stop_after=1)
    path = tmp_path / FILES[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(bytes_kept * len(whole)) if isinstance(bytes_kept, float) else bytes_kept])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=r"checkpoint\.safetensors is not a checkpoint"):
        run(recipe, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_checkpoint_that_lacks_a_tensor_is_named(tmp_path: Path) -> None:
    """A readable file that is not this net's whole state is refused in one sentence."""
    recipe = recipe_of("tiny-cct", epochs=2)
    run(recipe, tmp_path, stop_after=1)
    tensors, state = read(tmp_path / FILES[0])
    write(tmp_path / FILES[0], {name: one for name, one in tensors.items() if name != "net.head.bias"}, state)
    with pytest.raises(DataError, match=r"checkpoint\.safetensors does not fit its recipe: .*head\.bias"):
        run(recipe, tmp_path)


@pytest.mark.parametrize("room", [300, 1_000, 100_000])
def test_a_disk_that_is_full_stops_the_run_and_loses_nothing(tmp_path: Path, room: int) -> None:
    """Real writes that fail: one sentence, the checkpoint as it was, and with room again the run goes on from it."""
    recipe = recipe_of("tiny-cct", epochs=2)
    run(recipe, tmp_path / "full", stop_after=1)
    before = (tmp_path / "full" / FILES[0]).read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, old[1]))
    try:
        with pytest.raises(DataError, match=r"could not write .*File too large"):
            run(recipe, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (tmp_path / "full" / FILES[0]).read_bytes() == before
    assert not list((tmp_path / "full").glob("*.part"))
    run(recipe, tmp_path / "full")
    run(recipe, tmp_path / "whole")
    assert_same(tmp_path / "whole", tmp_path / "full")


def test_a_disk_that_is_full_when_a_run_goes_on_loses_no_metrics(tmp_path: Path) -> None:
    """Epochs that have no checkpoint are taken back whole or not at all; with room again the run goes on."""
    recipe = recipe_of("tiny-cct", epochs=2)
    run(recipe, tmp_path / "full", stop_after=1)
    first = (tmp_path / "full" / FILES[0]).read_bytes()
    run(recipe, tmp_path / "full")
    (tmp_path / "full" / FILES[0]).write_bytes(first)  # as if the second epoch's had never been written
    before = (tmp_path / "full" / "metrics.jsonl").read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, old[1]))
    try:
        with pytest.raises(DataError, match=r"could not write .*File too large"):
            run(recipe, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (tmp_path / "full" / "metrics.jsonl").read_bytes() == before
    run(recipe, tmp_path / "full")
    run(recipe, tmp_path / "whole")
    assert_same(tmp_path / "whole", tmp_path / "full")


def test_metrics_that_are_damaged_are_named_when_a_run_goes_on(tmp_path: Path) -> None:
    """One sentence with the file, not a parser's trace."""
    recipe = recipe_of("tiny-cct", epochs=2)
    run(recipe, tmp_path, stop_after=1)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "lo')
    with pytest.raises(DataError, match=r"metrics\.jsonl is not a line of JSON an epoch"):
        run(recipe, tmp_path)


def test_two_processes_do_not_train_into_one_folder(tmp_path: Path) -> None:
    """The second is told so, and the first goes on; once it has ended the folder is free."""
    recipe = recipe_of("tiny-cct", epochs=1)
    said: list[str] = []

    def second(_: torch.optim.Optimizer) -> None:
        if not said:
            with pytest.raises(DataError) as caught:
                run(recipe, tmp_path)
            said.append(str(caught.value))

    with after_each_step(second):
        run(recipe, tmp_path)
    assert said == [f"another process trains into {tmp_path}: give another folder, or wait for it"]
    run(recipe, tmp_path)


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With other processes or another torch the bits are others, and one line names both; here it is silent."""
    recipe = recipe_of("tiny-cct", epochs=3)
    run(recipe, tmp_path, stop_after=1)
    run(recipe, tmp_path, stop_after=2)
    assert "bit for bit" not in capsys.readouterr().err
    tensors, state = read(tmp_path / FILES[0])
    write(tmp_path / FILES[0], tensors, {**state, "processes": 8, "torch": "1.0"})
    run(recipe, tmp_path)
    said = (
        f"epoch 2 was trained with processes 8, now 1; torch 1.0, now {torch.__version__}: from here on not bit for bit"
    )
    assert said in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_compile_without_a_compiler_is_said_before_training(tmp_path: Path) -> None:
    """One sentence, and no folder."""
    from torch._inductor import config

    absent = config.patch({"cpp.cxx": (None, "absent-compiler")})
    with absent, pytest.raises(SetupError, match=r"compile = true needs a C\+\+ compiler"):
        run(recipe_of("tiny-cct", epochs=1, compile=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pictures_that_changed_since_the_run_began_are_refused(tmp_path: Path) -> None:
    """A run is of one set of pictures from end to end; both checksums are named."""

    class OtherDigits(Digits):
        def training(self) -> Examples:
            return super().training().choose(np.arange(1, 201))

    recipe = recipe_of("tiny-cct", epochs=2)
    run(recipe, tmp_path, stop_after=1)
    kept, now = FewDigits().training().fingerprint(), OtherDigits().training().fingerprint()
    with pytest.raises(DataError, match=f"run on other pictures: their sha256 is {kept}, .* is {now} now"):
        train(recipe, OtherDigits(), tmp_path)


def test_a_default_map_that_the_net_lacks_is_refused_before_training(tmp_path: Path) -> None:
    """Before an hour of training, not when the model is exported."""
    recipe = tiny_recipe("tiny-resnet").model_copy(update={"default_maps": ("rollout",)})
    with pytest.raises(RecipeError, match="default maps"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    """One line, and not torch's."""
    with pytest.raises(DataError, match="no device 'nonsense'"):
        run_recipe(tiny_recipe("tiny-cct"), tmp_path / "run", device="nonsense")

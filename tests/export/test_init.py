"""Fine-tuning: what is taken over, what is made new, what is refused, and that it pays."""

import io
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from export.checkpoint import read
from export.data import Digits
from export.init import Weights, initialise, read_weights
from export.nets import Net, NetConfig, build
from export.nets.base import layer_rates
from export.publish import publish
from export.recipe import Recipe, load_recipe
from export.run import read_run
from export.train import train
from saccade.bundle import open_bundle
from saccade.cli import main
from saccade.errors import BundleError, DataError
from tests.conftest import NETS, ROOT, tiny_recipe
from tests.export.conftest import FewDigits, after_each_step, float64, same_tensors

DIGITS = tuple("0123456789")
Array = NDArray[np.float64]


def fresh(name: str, size: tuple[int, int], classes: int = 10, **change: Any) -> Net:
    torch.manual_seed(5)
    return build(TypeAdapter[Any](NetConfig).validate_python({**NETS[name], **change}), size, classes)


def of_bundle(models: Path, name: str) -> Weights:
    return read_weights(name, models)


def unlike(net: Net, weights: Weights) -> set[str]:
    """Names whose tensors are not the source's."""
    state = net.state_dict()
    return {name for name, tensor in weights.tensors.items() if not torch.equal(tensor, state[name])}


# --- what is taken over


@pytest.mark.parametrize("name", NETS)
def test_the_same_net_for_the_same_classes_takes_every_weight(models: Path, name: str) -> None:
    """Nothing is changed behind one's back, running means of norms included; and the source is named by its bytes."""
    weights = of_bundle(models, name)
    net = fresh(name, tiny_recipe(name).size)
    said = initialise(net, weights, DIGITS)
    assert unlike(net, weights) == set()
    manifest = open_bundle(models / name / "1").manifest
    assert (said.name, said.sha256) == (f"{name}@1", manifest.files["weights.safetensors"].sha256)
    assert said.changes == ()


@pytest.mark.parametrize("classes", [tuple("abcdefghij"), ("cat", "dog")], ids=["as many", "fewer"])
def test_other_classes_get_a_new_head(models: Path, classes: tuple[str, ...]) -> None:
    """As many classes of other names are other classes too; all but the head is kept."""
    weights = of_bundle(models, "tiny-cct")
    net = fresh("tiny-cct", (16, 16), len(classes))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items() if name.startswith("head")}
    said = initialise(net, weights, classes)
    assert said.changes == (f"new head for {len(classes)} classes",)
    state = net.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(state[name], weights.tensors[name]) for name in state if not name.startswith("head"))


def bicubic(values: Array, count: int) -> Array:
    """Along the first axis: cubic convolution (Keys 1981, a = -0.75), pixel centres at halves, edges repeated."""

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    result = np.zeros((count, *values.shape[1:]))
    for place in range(count):
        centre = (place + 0.5) * len(values) / count - 0.5
        for source in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            result[place] += kernel(centre - source) * values[np.clip(source, 0, len(values) - 1)]
    return result


@pytest.mark.parametrize("size", [(24, 40), (24, 16), (8, 8)], ids=["larger", "as many patches", "smaller"])
def test_position_embeddings_are_interpolated_to_the_new_grid(models: Path, size: tuple[int, int]) -> None:
    """Bicubic over rows and columns, from the grid of the source; the class token's own is kept."""
    weights = of_bundle(models, "tiny-vit")  # 16 x 24 pixels, 4 x 6 patches
    net = fresh("tiny-vit", size)
    said = initialise(net, weights, DIGITS)
    old, new = float64(weights.tensors["position"])[0], float64(net.state_dict()["position"])[0]
    assert unlike(net, weights) == {"position"}
    assert len(said.changes) == 1
    assert said.changes[0].startswith("position 1 x 25 x 32 interpolated to 1 x ")
    np.testing.assert_array_equal(new[0], old[0])
    rows = bicubic(old[1:].reshape(4, 6, 32), size[0] // 4)
    both = bicubic(rows.transpose(1, 0, 2), size[1] // 4).transpose(1, 0, 2)
    np.testing.assert_allclose(new[1:], both.reshape(-1, 32), atol=1e-6)


def test_relative_positions_are_interpolated_step_by_step(models: Path) -> None:
    """Linear, in each axis by itself: no step stays no step, and the furthest stays the furthest."""
    weights = of_bundle(models, "tiny-hybrid")  # 24 x 16 pixels: attention over 6 x 4, then 3 x 2
    net = fresh("tiny-hybrid", (16, 32))  # over 4 x 8, then 2 x 4
    initialise(net, weights, DIGITS)
    state = net.state_dict()
    for name, old, new in (("0", 6, 4), ("1", 3, 2)):
        key = f"attention_blocks.{name}.attention.positions.height"
        seen, source = float64(state[key]), float64(weights.tensors[key])
        assert seen.shape == (2 * new - 1, 16 // NETS["tiny-hybrid"]["heads"][int(name)])
        places = np.linspace(-(old - 1), old - 1, 2 * new - 1)
        for column in range(seen.shape[1]):
            expected = np.interp(places, np.arange(-(old - 1), old), source[:, column])
            np.testing.assert_allclose(seen[:, column], expected, atol=1e-6)
        np.testing.assert_array_equal(seen[new - 1], source[old - 1])


def test_the_best_weights_of_a_run_know_their_grid_and_their_classes(runs: dict[str, Path], models: Path) -> None:
    """A run that was never exported can be gone on from."""
    weights = read_weights(str(runs["tiny-vit"] / "best.safetensors"), models)
    assert (weights.classes, weights.position_grid) == (DIGITS, (4, 6))
    said = initialise(fresh("tiny-vit", (24, 24), 2), weights, ("a", "b"))
    assert said.name == "best.safetensors"
    assert said.changes == ("new head for 2 classes", "position 1 x 25 x 32 interpolated to 1 x 37 x 32")
    assert read_weights(str(runs["tiny-vit"]), models).sha256 == weights.sha256  # the run folder itself does as well


def test_a_file_from_elsewhere_is_taken_where_it_fits_as_it_is(models: Path, tmp_path: Path) -> None:
    """Plain tensors say neither classes nor grid: the head is kept where its shape fits, a new grid is refused."""
    tensors = load_file(models / "tiny-vit" / "1" / "weights.safetensors")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "plain.safetensors")
    weights = read_weights(str(tmp_path / "plain.safetensors"), models)
    net = fresh("tiny-vit", (16, 24))
    assert initialise(net, weights, DIGITS).changes == ()
    assert torch.equal(net.state_dict()["head.weight"], tensors["head.weight"].half().float())
    assert initialise(fresh("tiny-vit", (16, 24), 3), weights, tuple("abc")).changes == ("new head for 3 classes",)
    with pytest.raises(DataError, match=r"position is 1 x 25 x 32 and the net's is 1 x 37 x 32; .* which grid"):
        initialise(fresh("tiny-vit", (24, 24)), weights, DIGITS)


@pytest.mark.parametrize("note", ["[]", "{", '{"recipe": {"net": 3}}', '{"classes": 7}'])
def test_what_somebody_else_noted_in_a_file_means_nothing(models: Path, tmp_path: Path, note: str) -> None:
    """Only a recipe and classes that are such are read; the tensors count all the same."""
    tensors = load_file(models / "tiny-vit" / "1" / "weights.safetensors")
    save_file(tensors, tmp_path / "w.safetensors", {"saccade": note})
    weights = read_weights(str(tmp_path / "w.safetensors"), models)
    assert (weights.classes, weights.position_grid) == (None, None)
    assert initialise(fresh("tiny-vit", (16, 24)), weights, DIGITS).changes == ()


# --- what is refused


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": 3}, r"it lacks encoder\.blocks\.2\.attention_norm\.weight, .* and 7 more$"),
        ({"layers": 1}, r"the net has no encoder\.blocks\.1\.attention\.output\.bias, .* and 7 more$"),
        ({"kernel": 5}, r"of another shape are tokenizer\.0\.weight \(32 x 3 x 3 x 3, the net's is 32 x 3 x 5 x 5\)$"),
    ],
)
def test_weights_of_another_net_are_refused_by_name(models: Path, change: dict[str, Any], says: str) -> None:
    """What is missing, what is too much and what has another shape; and the net is left as it was."""
    net = fresh("tiny-cct", (16, 16), **change)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(DataError, match=rf"tiny-cct@1 does not fit the recipe's net: {says}"):
        initialise(net, of_bundle(models, "tiny-cct"), DIGITS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def torch_file(bomb: Bomb) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weights": torch.zeros(3), "more": bomb}, buffer)
    return buffer.getvalue()


PICKLES: dict[str, Callable[[Bomb], bytes]] = {
    "pickle": pickle.dumps, "torch.save": torch_file, "pickle as text": lambda bomb: pickle.dumps(bomb, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.safetensors"])
@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_is_refused_and_not_opened(models: Path, tmp_path: Path, name: str, kind: str) -> None:
    """By its bytes or by its name, whatever it is called; and no code of it runs."""
    (tmp_path / name).write_bytes(PICKLES[kind](Bomb(tmp_path / "boom")))
    unknown = (name, kind) == ("w.safetensors", "pickle as text")
    says = "is no safetensors file" if unknown else "is a pickle, and nothing is unpickled here"
    with pytest.raises(DataError, match=rf"{name} {says}"):
        read_weights(str(tmp_path / name), models)
    assert not (tmp_path / "boom").exists()


def test_a_source_that_is_not_there_or_damaged_is_named(models: Path, tmp_path: Path) -> None:
    """A path, a name of no bundle with those there are, a file that was cut off."""
    with pytest.raises(DataError, match=r"could not read .*absent\.safetensors"):
        read_weights(str(tmp_path / "absent.safetensors"), models)
    with pytest.raises(BundleError, match=r"no model 'absent' in .*; there are: .*tiny-cct@1"):
        read_weights("absent", models)
    content = (models / "tiny-cct" / "1" / "weights.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"cut\.safetensors is no safetensors file"):
        read_weights(str(tmp_path / "cut.safetensors"), models)


# --- training with it


def recipe(**training: Any) -> Recipe:
    return tiny_recipe("tiny-cct", **{"epochs": 2, "layer_decay": 0.5, **training})


def test_a_run_says_what_it_began_with_and_goes_on_without_it(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sha256 is in the run folder and on the bundle; resumed with the source gone, it ends with the same bits."""
    shutil.copytree(models / "tiny-cct" / "1", tmp_path / "models" / "tiny-cct" / "1")
    init = partial(read_weights, "tiny-cct", tmp_path / "models")
    train(recipe(), FewDigits(), tmp_path / "whole", init=init)
    assert "initialised from tiny-cct@1: every weight\n" in capsys.readouterr().err
    train(recipe(), FewDigits(), tmp_path / "stopped", init=init, stop_after=1)
    sha256 = open_bundle(tmp_path / "models" / "tiny-cct" / "1").manifest.files["weights.safetensors"].sha256
    shutil.rmtree(tmp_path / "models" / "tiny-cct")
    train(recipe(), FewDigits(), tmp_path / "stopped", init=init)
    for name in ("checkpoint.safetensors", "best.safetensors"):
        assert same_tensors(tmp_path / "whole" / name, tmp_path / "stopped" / name)
        assert read(tmp_path / "stopped" / name)[1]["init"] == {"name": "tiny-cct@1", "sha256": sha256, "changes": []}
    provenance = publish(tmp_path / "stopped", tmp_path / "models", "tuned").manifest.provenance
    assert provenance.init is not None
    assert (provenance.init.name, provenance.init.sha256) == ("tiny-cct@1", sha256)


def test_a_run_is_not_given_another_beginning_afterwards(runs: dict[str, Path], models: Path, tmp_path: Path) -> None:
    """A folder holds one run: random weights, or the weights it began with, and none that came later."""
    init, other = (
        partial(read_weights, str(source), models) for source in ("tiny-cct", runs["tiny-resnet"] / "best.safetensors")
    )
    train(recipe(), FewDigits(), tmp_path / "random", stop_after=1)
    with pytest.raises(DataError, match=r"random holds a run that began with random weights"):
        train(recipe(), FewDigits(), tmp_path / "random", init=init)
    train(recipe(), FewDigits(), tmp_path / "tuned", init=init, stop_after=1)
    with pytest.raises(DataError, match=r"tuned holds a run that began with tiny-cct@1 of sha256 \w{64}; best\.safe"):
        train(recipe(), FewDigits(), tmp_path / "tuned", init=other)


def test_weights_that_do_not_fit_leave_no_run(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line one sentence and exit code 2, before a folder is made."""
    arguments = ["train", "digits-cct", "--out", str(tmp_path / "run"), "--models", str(models), "--init"]
    assert main([*arguments, "tiny-resnet"]) == 2
    assert "tiny-resnet@1 does not fit the recipe's net: it lacks position" in capsys.readouterr().err
    (tmp_path / "w.pth").write_bytes(pickle.dumps(0))
    assert main([*arguments, str(tmp_path / "w.pth")]) == 2
    assert "is a pickle" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_each_layer_is_trained_at_its_own_rate(tmp_path: Path) -> None:
    """layer_decay to the power of the distance from the head, for every parameter, at every step of the schedule."""
    seen: list[dict[float, int]] = []

    def look(optimizer: torch.optim.Optimizer) -> None:
        rates: dict[float, int] = {}
        for group in optimizer.param_groups:
            rates[group["lr"]] = rates.get(group["lr"], 0) + sum(tensor.numel() for tensor in group["params"])
        seen.append(rates)

    flat = recipe(epochs=1, warmup_epochs=0, layer_decay=1.0)
    for one in (recipe(epochs=1, warmup_epochs=0), flat):
        with after_each_step(look):
            train(one, FewDigits(), tmp_path / str(one.training.layer_decay))
    steps = len(seen) // 2
    net = fresh("tiny-cct", (16, 16))
    expected: dict[float, int] = {}
    for name, factor in layer_rates(net, 0.5).items():
        expected[factor] = expected.get(factor, 0) + net.get_parameter(name).numel()
    for layered, even in zip(seen[:steps], seen[steps:], strict=True):
        (rate,) = even
        assert {found / rate: count for found, count in layered.items()} == expected


def transfer(seed: int, folder: Path, init: Callable[[], Weights] | None) -> float:
    """Held-out accuracy after one epoch of CCT-2/3x2 on the digits as pictures of 16 x 16; both ways at one budget."""
    base = load_recipe("digits-finetune").model_dump()
    tuned = Recipe.model_validate(
        {
            **base,
            "seed": seed,
            "preprocessing": {**base["preprocessing"], "height": 16, "width": 16},
            "training": {**base["training"], "epochs": 1, "layer_decay": 0.75 if init else 1.0},
        }
    )
    train(tuned, Digits(), folder, init=init)
    return max(line["held_out_accuracy"] for line in read_run(folder)[3])


def test_fine_tuning_the_cifar10_model_beats_training_from_scratch(tmp_path: Path) -> None:
    """What ten classes of photographs taught serves for digits: on a new grid, with a new head, for three seeds."""
    init = partial(read_weights, str(ROOT / "models/cifar10-cct/1"), ROOT / "models")
    for seed in (1, 2, 3):
        scratch = transfer(seed, tmp_path / f"scratch-{seed}", None)
        tuned = transfer(seed, tmp_path / f"tuned-{seed}", init)
        assert tuned > scratch + 0.1, (seed, tuned, scratch)
        assert tuned > 0.7

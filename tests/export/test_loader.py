"""Batches of pictures: the same from memory and from worker processes, and a picture that cannot be read is named."""

import json
import os
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export import loader
from export.crop import DRAWS, crop_region
from export.data import open_source
from export.examples import Examples
from export.loader import Loader, Order, open_loader
from export.recipe import DataConfig, load_recipe
from export.train import train
from saccade.cli import main
from saccade.errors import DataError
from saccade.manifest import Preprocessing
from tests.conftest import tiny_recipe
from tests.export.conftest import FewDigits, same_tensors

SPEC = Preprocessing(height=12, width=20, fit="stretch", mean=(0, 0, 0), std=(1, 1, 1))
CPU = torch.device("cpu")


def write_folder(root: Path, classes: int = 3, count: int = 12) -> Path:
    """An image folder of noise, pictures of several sizes."""
    generator = np.random.default_rng(0)
    for label in range(classes):
        for split in ("train", "val"):
            (root / split / f"class{label}").mkdir(parents=True)
            for index in range(count):
                size = (int(generator.integers(20, 40)), int(generator.integers(20, 40)), 3)
                picture = Image.fromarray(generator.integers(0, 256, size, np.uint8))
                picture.save(root / split / f"class{label}" / f"{index:03}.png")
    return root


def folder_examples(root: Path) -> Examples:
    return open_source(DataConfig(kind="folder"), root, SPEC).training()


def seen(one: Loader, orders: list[Order]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(batch.pictures.contiguous(), batch.labels) for batch in one.batches(orders)]


def test_pictures_are_the_same_from_memory_and_from_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order and pixels, epoch after epoch, are those that were asked for."""
    examples = folder_examples(write_folder(tmp_path))
    orders = [Order(np.array(indices)) for indices in ([5, 0, 35], [7, 7], [1, 2, 3, 4])]
    streams = [open_loader(examples, SPEC, CPU, resident="never", workers=number) for number in (0, 2)]
    expected = seen(open_loader(examples, SPEC, CPU, resident="always"), orders)
    monkeypatch.setattr(loader, "WORTH_A_WORKER", 18)
    monkeypatch.setattr(loader, "FILL", 10)
    streams.append(open_loader(Unreadable(examples), SPEC, CPU, resident="always", workers=2))
    for again in (orders, orders[::-1]):
        for stream in streams:
            for one, other in zip(seen(stream, again), expected if again is orders else expected[::-1], strict=True):
                assert torch.equal(one[0], other[0])
                assert torch.equal(one[1], other[1])
    assert expected[0][0].dtype == torch.uint8
    assert expected[0][0].shape == (3, 3, 12, 20)
    assert expected[0][1].tolist() == [0, 0, 2]


class Unreadable(Examples):
    """In this process: worker processes must read them."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self._process = os.getpid()
        self.labels = examples.labels

    def picture(self, index: int) -> Image.Image:
        assert os.getpid() != self._process
        return self._examples.picture(index)

    def fingerprint(self) -> str:
        return self._examples.fingerprint()


def test_pictures_in_memory_take_no_more_than_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are put where they stay as they come: beside them there is never more than a batch or two."""
    spec = SPEC.model_copy(update={"height": 128, "width": 128})
    examples = folder_examples(write_folder(tmp_path))
    monkeypatch.setattr(loader, "FILL", 4)
    tracemalloc.start()  # sees NumPy's memory, not torch's
    try:
        open_loader(examples, spec, CPU, resident="always")
        assert tracemalloc.get_traced_memory()[1] < len(examples) * 3 * 128 * 128 / 2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_cannot_be_read_is_named_when_it_is_met(tmp_path: Path, workers: int) -> None:
    """By its path, in one sentence, from a worker process as well; batches before it come."""
    examples = folder_examples(write_folder(tmp_path))
    path = tmp_path / "train" / "class1" / "007.png"
    path.write_bytes(path.read_bytes()[:100])
    batches = open_loader(examples, SPEC, CPU, resident="never", workers=workers).batches(
        [Order(np.array([0, 1])), Order(np.array([18, 19, 20]))]
    )
    assert next(batches).labels.tolist() == [0, 0]
    with pytest.raises(DataError, match=r"^[^\n]*train/class1/007\.png: the picture is damaged[^\n]*$"):
        next(batches)


class Deadly(FewDigits):
    """The reader of its pictures ends, as the kernel ends one that takes too much memory."""

    def training(self) -> Examples:
        return DeadlyExamples(super().training())


class DeadlyExamples(Examples):
    def __init__(self, examples: Examples) -> None:
        self.labels = examples.labels

    def picture(self, index: int) -> Image.Image:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError(index)

    def fingerprint(self) -> str:
        return "none"


@pytest.mark.slow  # torch looks for it every five seconds
def test_a_worker_process_that_is_killed_is_said_and_ends_the_run(tmp_path: Path) -> None:
    """No endless wait, no trace: one sentence, and the run can go on from its last checkpoint."""
    with pytest.raises(DataError, match=r"^a worker process that reads pictures ended: [^\n]+$"):
        train(tiny_recipe("tiny-cct"), Deadly(), tmp_path / "run", resident="never", workers=1)
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()


def test_pictures_are_streamed_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As memory allows by itself; who insists on memory is told the two numbers."""
    examples = folder_examples(write_folder(tmp_path))
    size = 36 * 12 * 20 * 3
    for free, read in ((2 * size, 36), (2 * size - 1, 0)):
        monkeypatch.setattr(loader, "free_bytes", lambda _, free=free: free)
        counted = Counted(examples)
        open_loader(counted, SPEC, CPU, resident="auto")
        assert counted.read == read
    monkeypatch.setattr(loader, "free_bytes", lambda _: size - 1)
    with pytest.raises(DataError, match=f"36 pictures take {size} bytes; {size - 1} are free on cpu"):
        open_loader(examples, SPEC, CPU, resident="always")
    with pytest.raises(DataError, match="crop_area takes pictures at their full size: they cannot be resident"):
        open_loader(examples, SPEC, CPU, crop_area=0.1, resident="always")


class Counted(Examples):
    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self.labels = examples.labels
        self.read = 0

    def picture(self, index: int) -> Image.Image:
        self.read += 1
        return self._examples.picture(index)

    def fingerprint(self) -> str:
        return self._examples.fingerprint()


def test_free_memory_is_that_of_this_machine() -> None:
    """More than nothing and less than all there is."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    assert 0 < loader.free_bytes(CPU) < int(fields["MemTotal"].split()[0]) * 1024


def test_a_random_resized_crop_is_a_part_of_the_picture_at_its_full_size(tmp_path: Path) -> None:
    """The pixels that Pillow resamples from the box of the same four numbers, however many processes read."""
    examples = folder_examples(write_folder(tmp_path))
    draws = np.random.default_rng(1).random((6, DRAWS))
    order = Order(np.arange(6), draws)
    first, second = (
        seen(open_loader(examples, SPEC, CPU, crop_area=0.2, workers=workers), [order]) for workers in (0, 2)
    )
    assert torch.equal(first[0][0], second[0][0])
    for index in range(6):
        picture = Image.open(tmp_path / "train" / "class0" / f"{index:03}.png")
        left, top, width, height = crop_region(draws[index], *picture.size, 0.2)
        expected = picture.resize((20, 12), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        np.testing.assert_array_equal(first[0][0][index].permute(1, 2, 0).numpy(), np.asarray(expected))


def test_crops_have_the_areas_and_shapes_that_were_asked_for() -> None:
    """Area from the least share to the whole, aspect from 3/4 to 4/3, everywhere and never outside of the picture."""
    width, height = 300, 300
    boxes = np.array([crop_region(draws, width, height, 0.25) for draws in np.random.default_rng(0).random((4000, 4))])
    left, top, wide, high = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + wide <= width + 1e-9).all()
    assert (top + high <= height + 1e-9).all()
    share = wide * high / (width * height)
    assert 0.24 < share.min() < 0.26
    uncut = (wide < width) & (high < height)
    assert (np.abs(np.log(wide / high))[uncut] <= np.log(4 / 3) + 1e-9).all()
    assert share.mean() == pytest.approx(0.62, abs=0.02)  # an even draw's 0.625, less what is cut off at the edges
    assert left[wide < 200].max() > 100
    assert left[wide < 200].min() < 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_run_resumes_and_equals_a_resident_one(tmp_path: Path, workers: int) -> None:
    """Where pictures come from changes no bit of the weights; nor does a change of mind after a stop."""
    training = {"epochs": 2, "shift": 1, "flip": True, "randaugment": 1, "mixup": 0.8, "erase": 0.5}
    recipe = tiny_recipe("tiny-cct", **training)
    recipe = recipe.model_copy(update={"net": recipe.net.model_copy(update={"drop_path": 0.2})})
    train(recipe, FewDigits(), tmp_path / "whole", resident="always")
    train(recipe, FewDigits(), tmp_path / "stopped", resident="never", workers=workers, stop_after=1)
    train(recipe, FewDigits(), tmp_path / "stopped", resident="never", workers=2 - workers)
    for name in ("checkpoint.safetensors", "best.safetensors"):
        assert same_tensors(tmp_path / "whole" / name, tmp_path / "stopped" / name)


TINY = {
    "imagenet-vit-s": {"kind": "vit", "patch": 16, "layers": 1, "heads": 1, "width": 8, "drop_path": 0.1},
    "imagenet-resnet50": {"kind": "resnet", "depth": 8},
}


@pytest.mark.parametrize("name", TINY)
def test_the_imagenet_recipes_train_on_a_folder_by_the_command_line(tmp_path: Path, name: str) -> None:
    """With a tiny net: crops at full size through two workers or none, the recipe's augmentation, the same weights."""
    text = load_recipe(name).model_dump()
    text["data"]["classes"] = None
    text["preprocessing"] |= {"height": 32, "width": 48, "shortest_edge": 56}
    text["net"] = TINY[name]
    text["training"] |= {"epochs": 1, "warmup_epochs": 0.5, "batch": 16}
    (tmp_path / "mine.json").write_text(json.dumps(text))
    write_folder(tmp_path / "pictures")
    arguments = ["train", str(tmp_path / "mine.json"), "--data", str(tmp_path / "pictures")]
    assert main([*arguments, "--out", str(tmp_path / "run"), "--workers", "2"]) == 0
    assert main([*arguments, "--out", str(tmp_path / "again"), "--workers", "0"]) == 0
    assert same_tensors(tmp_path / "run" / "checkpoint.safetensors", tmp_path / "again" / "checkpoint.safetensors")


@pytest.mark.parametrize("count", ["-1", "many", "2000"])
def test_a_number_of_workers_that_is_none_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, with the limits and the value seen."""
    with pytest.raises(SystemExit):
        main(["train", "digits-cct", "--out", "run", "--workers", count])
    assert f"must be a whole number from 0 to 1024, not '{count}'" in capsys.readouterr().err

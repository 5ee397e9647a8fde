"""Image folders with something wrong in them: named before an hour of training, and nothing passed over."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.folder import ImageFolder
from export.run import read_run
from export.train import train
from saccade.errors import DataError
from tests.conftest import tiny_recipe
from tests.export.test_data import FORMATS, write_folder

WHITE = (255, 255, 255)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train/ and val/ with three classes."""
    write_folder(tmp_path)
    write_folder(tmp_path, "val")
    return tmp_path


def test_a_class_of_which_no_picture_can_be_read_is_named_at_once(root: Path) -> None:
    """Folder, how many, and what is wrong with the first."""
    for path in (root / "train" / "zebra").iterdir():
        path.write_bytes(b"not a picture")
    with pytest.raises(
        DataError, match=r"train/zebra has no readable picture; of 2 the first is .*zebra/a\.png: the 13 "
    ):
        ImageFolder(root, WHITE).training()


def test_an_empty_file_is_named_at_once(root: Path) -> None:
    """Half of a copy that broke off is found when sizes are read."""
    (root / "train" / "mole" / "g.jpeg").write_bytes(b"")
    with pytest.raises(DataError, match=r"train/mole/g\.jpeg: the picture is empty \(0 bytes\)"):
        ImageFolder(root, WHITE).training()


def test_a_corrupt_picture_in_the_middle_is_named_before_training_where_all_are_read_first(root: Path) -> None:
    """In memory: no epoch is lost to it, and no run is begun."""
    path = root / "train" / "mole" / "g.jpeg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"train/mole/g\.jpeg: "):
        train(tiny_recipe("tiny-cct"), ImageFolder(root, WHITE), root / "run", resident="always")
    assert not (root / "run").exists()


def test_a_run_that_a_corrupt_picture_ended_in_its_first_epoch_begins_anew(root: Path) -> None:
    """With the picture mended or gone the data are others, and the same command trains on them."""
    path = root / "train" / "mole" / "g.jpeg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"train/mole/g\.jpeg: "):
        train(tiny_recipe("tiny-cct"), ImageFolder(root, WHITE), root / "run", resident="never")
    path.unlink()
    source = ImageFolder(root, WHITE)
    train(tiny_recipe("tiny-cct"), source, root / "run", resident="never")
    assert json.loads((root / "run" / "run.json").read_text())["data_sha256"] == source.training().fingerprint()
    assert len(read_run(root / "run")[3]) == 1


def test_hidden_files_and_folders_are_passed_over(root: Path) -> None:
    """What notebooks and macOS leave behind is neither a class nor a picture."""
    before = ImageFolder(root, WHITE)
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "val" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "zebra" / "._a.jpg").write_bytes(b"Mac OS X")
    now = ImageFolder(root, WHITE)
    assert now.classes == before.classes
    assert now.training().fingerprint() == before.training().fingerprint()
    assert len(now.test()) == len(before.test())


def test_a_class_of_the_test_split_that_was_not_trained_is_refused(root: Path) -> None:
    """Its pictures would otherwise be left out without a word."""
    shutil.copytree(root / "val" / "zebra", root / "val" / "yak")
    with pytest.raises(DataError, match=r"val/yak is none of the 3 classes ant, mole, zebra$"):
        ImageFolder(root, WHITE).test()


def test_a_split_may_have_some_classes_only(root: Path) -> None:
    """Labels stay those of all classes, in the order that was given, whatever the order of the folders."""
    shutil.rmtree(root / "val" / "mole")
    shutil.rmtree(root / "train")
    examples = ImageFolder(root, WHITE, ("zebra", "yak", "mole", "ant")).test()
    assert examples.labels.tolist() == [0, 0, 3, 3]
    assert [examples.name(index) for index in range(4)] == ["zebra/a.png", "zebra/b.JPG", "ant/c.webp", "ant/d.gif"]
    assert [examples.file(index) for index in range(4)] == [root / "val" / examples.name(index) for index in range(4)]
    assert [example.label for example in examples] == [0, 0, 3, 3]


def test_the_fingerprint_is_that_of_names_and_sizes(root: Path) -> None:
    """A file more, another name or another size is another data set; the folder's place is not part of it."""
    first = ImageFolder(root, WHITE).training().fingerprint()
    shutil.copytree(root / "train", root / "elsewhere" / "train")
    assert ImageFolder(root / "elsewhere", WHITE).training().fingerprint() == first
    (root / "train" / "ant" / "c.webp").rename(root / "train" / "ant" / "d.webp")
    second = ImageFolder(root, WHITE).training().fingerprint()
    shutil.copy(root / "train" / "ant" / "d.webp", root / "train" / "ant" / "e.webp")
    assert len({first, second, ImageFolder(root, WHITE).training().fingerprint()}) == 3


def test_labels_are_known_without_reading_pictures(root: Path) -> None:
    """They are those of the pictures, in the same order; names may be anything that a file can have."""
    odd = "zebra/ümläut \udcff.png"
    shutil.copy(root / "train" / "zebra" / "a.png", root / "train" / odd)
    examples = ImageFolder(root, WHITE).training()
    assert examples.labels.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2] == [example.label for example in examples]
    assert len(examples) == len(FORMATS) + 1
    np.testing.assert_array_equal(np.asarray(examples.picture(8)), np.asarray(examples.picture(6)))

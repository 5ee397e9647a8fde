"""Which pictures a bundle is measured on: of every kind of data set, by name, and never those that it is chosen by."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.cifar10 import CIFAR10_CLASSES
from export.data import Digits
from export.evaluation.pictures import choose_pictures
from export.examples import held_out
from export.folder import ImageFolder
from saccade.bundle import open_bundle
from saccade.errors import DataError
from saccade.manifest import Manifest, Provenance
from tests.export.test_data import write_cifar10, write_folder, write_record

FOLDER = ("zebra", "yak", "mole", "ant")
"""Labels of a model: other than the folders of `write_folder` in number and order."""


@pytest.fixture
def trained(models: Path) -> Manifest:
    """Trained here, on the digits."""
    return open_bundle(models / "tiny-cct" / "1").manifest


def foreign(manifest: Manifest, *labels: str, **provenance: object) -> Manifest:
    """The manifest of a model with other labels that was not trained here, or on what `provenance` says."""
    fields = {"commit": None, "versions": {}, **provenance}
    return manifest.model_copy(update={"labels": labels, "provenance": Provenance.model_validate(fields)})


def test_a_model_trained_here_is_measured_on_the_splits_of_its_recipe(trained: Manifest) -> None:
    """The digits need no folder; the held-out pictures are those that training held out."""
    training = Digits().training()
    mask = held_out(training.labels, Digits.classes)
    for which, expected in (("test", Digits().test()), ("held-out", training.choose(np.flatnonzero(mask)))):
        name, examples = choose_pictures(trained, None, which)
        assert name == f"scikit-learn digits, {which}"
        assert examples.labels.tolist() == expected.labels.tolist()
        assert examples.fingerprint() == expected.fingerprint()


def test_classes_are_labels_by_name(trained: Manifest, tmp_path: Path) -> None:
    """In any order, some of them only, and without a folder to train on."""
    write_folder(tmp_path, "test")
    name, examples = choose_pictures(foreign(trained, *FOLDER), tmp_path, "test")
    assert name == f"image folder {tmp_path.name}, test"
    assert [FOLDER[label] for label in examples.labels] == ["zebra"] * 2 + ["mole"] * 4 + ["ant"] * 2
    assert all(examples.name(index).startswith(FOLDER[label]) for index, label in enumerate(examples.labels))


def test_digits_and_cifar10_are_matched_to_labels_in_any_order(trained: Manifest, tmp_path: Path) -> None:
    """A model from elsewhere may have more labels, and others first."""
    labels = ("none", *reversed(Digits.classes))
    examples = choose_pictures(foreign(trained, *labels), None, "test").examples
    assert [labels[label] for label in examples.labels] == [str(label) for label in Digits().test().labels]
    write_cifar10(tmp_path / "c10")
    write_record(tmp_path / "c10" / "test_batch.bin", 5, 7, np.zeros((32, 32, 3), np.uint8))
    name, examples = choose_pictures(foreign(trained, *sorted(CIFAR10_CLASSES, reverse=True)), tmp_path / "c10", "test")
    assert name == "CIFAR-10, test"
    assert (examples.labels[4], examples.labels[5]) == (9, 9 - CIFAR10_CLASSES.index("horse"))


def test_a_class_that_is_no_label_is_refused(trained: Manifest, tmp_path: Path) -> None:
    """A figure for the wrong data set never reaches a card: folder or class, and the labels there are."""
    write_folder(tmp_path, "val")
    with pytest.raises(DataError, match=r"val/mole is none of the 2 classes zebra, ant$"):
        choose_pictures(foreign(trained, "zebra", "ant"), tmp_path, "test")
    with pytest.raises(DataError, match=r"scikit-learn digits has the class 0, which is none of the 10 labels of tin"):
        choose_pictures(trained.model_copy(update={"labels": tuple("abcdefghij")}), None, "test")
    write_cifar10(tmp_path / "c10")
    with pytest.raises(DataError, match=r"CIFAR-10 has the class airplane, which is none of the 10 labels"):
        choose_pictures(trained, tmp_path / "c10", "test")


@pytest.mark.parametrize(
    ("parts", "test", "held"),
    [
        (("test",), "test", r"has test/ alone: pictures that are measured on must not be chosen by"),
        (("val",), "val", r"has val/ alone"),
        (("train",), r"has neither test/ nor val/", "train"),
        (("test", "val"), "test", "val"),
        (("train", "val"), "val", "train"),
        (("train", "test", "val"), "test", "val"),
        ((), r"has neither test/ nor val/", r"has neither test/ nor val/ nor train/"),
    ],
)
def test_no_picture_of_a_foreign_model_is_in_both_splits(
    trained: Manifest, tmp_path: Path, parts: tuple[str, ...], test: str, held: str
) -> None:
    """Whichever of train/, val/ and test/ there are; where it cannot be, it is refused."""
    for part in parts:
        write_folder(tmp_path, part)
    manifest = foreign(trained, *FOLDER)
    for which, expected in (("test", test), ("held-out", held)):
        if " " in expected:
            with pytest.raises(DataError, match=expected):
                choose_pictures(manifest, tmp_path, which)
            continue
        name, examples = choose_pictures(manifest, tmp_path, which)
        assert name == f"image folder {tmp_path.name}, {'held-out' if expected == 'train' else expected}"
        assert str(examples.file(0)).startswith(str(tmp_path / expected))
        assert len(examples) == (3 if expected == "train" else 8)  # one a class is held out


def test_what_was_held_out_is_known_by_the_pictures(trained: Manifest, tmp_path: Path) -> None:
    """The same pictures at another place are; others, of which the model may have seen some, are not."""
    write_folder(tmp_path / "first")
    write_folder(tmp_path / "first", "test")
    source = ImageFolder(tmp_path / "first", (255, 255, 255))
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    manifest = foreign(trained, *source.classes, data=source.name, data_sha256=source.training().fingerprint())
    chosen = choose_pictures(manifest, tmp_path / "second", "held-out")
    mask = held_out(source.training().labels, source.classes)
    expected = source.training().choose(np.flatnonzero(mask))
    assert [chosen.examples.name(index) for index in range(3)] == [expected.name(index) for index in range(3)]
    Image.new("RGB", (8, 8)).save(tmp_path / "second" / "train" / "ant" / "another.png")
    with pytest.raises(DataError, match=r"was trained on image folder first .* image folder second holds other pic"):
        choose_pictures(manifest, tmp_path / "second", "held-out")
    write_folder(tmp_path / "second", "val")
    assert choose_pictures(manifest, tmp_path / "second", "held-out").name == "image folder second, val"


def test_several_labels_a_picture_are_refused(trained: Manifest, tmp_path: Path) -> None:
    """One label a picture says nothing of the others."""
    with pytest.raises(DataError, match=r"tiny-cct@1 gives each label by itself \(sigmoid\)"):
        choose_pictures(trained.model_copy(update={"scores": "sigmoid"}), None, "test")


def test_a_folder_that_is_missing_or_not_named_is_said(trained: Manifest, tmp_path: Path) -> None:
    """In one sentence, with what to give."""
    with pytest.raises(DataError, match=r"nowhere is no folder"):
        choose_pictures(trained, tmp_path / "nowhere", "test")
    with pytest.raises(DataError, match=r"pictures for tiny-cct@1 are read from a folder: give --data DIR"):
        choose_pictures(foreign(trained, "cat"), None, "test")
    with pytest.raises(DataError, match=r"tiny-cct@1 was trained on CIFAR-10: give --data DIR"):
        choose_pictures(foreign(trained, *Digits.classes, data="CIFAR-10"), None, "test")

"""Which pictures a bundle is measured on: what a folder holds, and its classes matched to the bundle's labels."""

import re
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from export.cifar10 import CIFAR10_FOLDER, CIFAR10_TEST, Cifar10
from export.data import Digits
from export.examples import Examples, Source, held_out
from export.folder import ImageFolder, shortened
from saccade.errors import DataError
from saccade.manifest import Manifest, Provenance

Split = Literal["test", "held-out"]


class Chosen(NamedTuple):
    """Pictures to measure on."""

    name: str
    """As it stands on a card: `CIFAR-10, test`."""
    examples: Examples
    """Their labels are places among the bundle's labels."""

    @property
    def folder(self) -> str:
        """The name as that of a folder: `CIFAR-10-test`."""
        return re.sub(r"[^\w.]+", "-", self.name)


def choose_pictures(manifest: Manifest, data: Path | None, which: Split) -> Chosen:
    """`data` is CIFAR-10's binary version, or an image folder of `test/<label>/*`; None for the digits.

    `test` are the pictures of test/, or of val/ where there is no test/. `held-out` are pictures for every choice, a
    temperature's too, and never those of `test`: of the data that the bundle was trained on here, the tenth that
    training held out; else val/ where there is test/ beside it, else a tenth of train/.

    Raises DataError for a bundle of several labels a picture, for a class that is no label, for pictures that are not
    there or cannot be read, and where nothing is known to be held out.
    """
    if manifest.scores == "sigmoid":
        raise DataError(
            f"{manifest.id} gives each label by itself (sigmoid): pictures of one label each do not say which of the "
            "others are right as well"
        )
    source = _open(manifest, data)
    if which == "held-out":
        part, examples = _held_out(manifest, source)
    elif isinstance(source, ImageFolder):
        part, examples = source.test_name(), source.test()
    else:
        part, examples = "test", source.test()
    name = f"{source.name}, {part}"
    return Chosen(name, _matched(examples, source, manifest))


def _open(manifest: Manifest, data: Path | None) -> Source:
    """The files of the folder say what it is."""
    if data is None:
        if manifest.provenance.data not in (None, Digits.name):
            raise DataError(f"{manifest.id} was trained on {manifest.provenance.data}: give --data DIR")
        if manifest.provenance.data is None and not set(Digits.classes) <= set(manifest.labels):
            raise DataError(f"pictures for {manifest.id} are read from a folder: give --data DIR")
        return Digits()
    if any((data / inner / CIFAR10_TEST[0]).is_file() for inner in (".", CIFAR10_FOLDER)):
        return Cifar10(data)
    return ImageFolder(data, manifest.preprocessing.background, manifest.labels)


def _held_out(manifest: Manifest, source: Source) -> tuple[str, Examples]:
    """(name of the part, its pictures)."""
    trained_on = manifest.provenance.data
    has = ["train"]
    if isinstance(source, ImageFolder):
        has = [name for name in ("test", "val", "train") if (source.root / name).is_dir()]
    if trained_on is not None and "train" in has:
        training = source.training()
        if _is_trained_on(training, source, manifest.provenance):
            return "held-out", _tenth(training, source)
    if isinstance(source, ImageFolder) and has[:2] == ["test", "val"]:
        return "val", source.part("val")
    if trained_on is not None:
        raise DataError(
            f"{manifest.id} was trained on {trained_on} and held a tenth of that out; {source.name} holds other "
            "pictures: give the same, or an image folder with val/ beside test/"
        )
    if "train" not in has:
        there = f"{has[0]}/ alone" if has else "neither test/ nor val/ nor train/"
        raise DataError(
            f"{source.name} has {there}: pictures that are measured on must not be chosen by, so put others into "
            "val/ beside test/, or into train/"
        )
    return "held-out", _tenth(source.training(), source)


def _tenth(training: Examples, source: Source) -> Examples:
    """What training holds out."""
    return training.choose(np.flatnonzero(held_out(training.labels, source.classes)))


def _is_trained_on(training: Examples, source: Source, provenance: Provenance) -> bool:
    """By the fingerprint of its pictures; by the data's name where an older bundle has none."""
    if provenance.data_sha256 is None:
        return source.name == provenance.data
    return training.fingerprint() == provenance.data_sha256


def _matched(examples: Examples, source: Source, manifest: Manifest) -> Examples:
    """By the names of the classes, in any order. Raises DataError for one that is no label."""
    strange = [name for name in source.classes if name not in manifest.labels]
    if strange:
        raise DataError(
            f"{source.name} has the class {strange[0]}, which is none of the {len(manifest.labels)} labels of "
            f"{manifest.id}: {shortened(manifest.labels)}"
        )
    if source.classes == manifest.labels:
        return examples
    return examples.relabelled(np.array([manifest.labels.index(name) for name in source.classes], np.int64))

"""Labelled pictures: CIFAR-10 in its published binary layout, image folders, scikit-learn's digits.

Of the training pictures, a tenth of each class, drawn with a fixed seed, is held out for every choice (500 a class of
CIFAR-10). The test split is a call of its own, so that training cannot read it.
"""

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.recipe import DataConfig
from saccade.decode import decode
from saccade.errors import DataError, RequestError
from saccade.manifest import Preprocessing
from saccade.preprocess import resize

HELD_OUT_SEED = 2021
HELD_OUT_SHARE = 10  # one of so many

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_TRAIN = tuple(f"data_batch_{index}.bin" for index in range(1, 6))
CIFAR10_TEST = ("test_batch.bin",)
CIFAR10_RECORD = 1 + 3 * 32 * 32
CIFAR10_RECORDS = 10_000

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


class Example(NamedTuple):
    picture: Image.Image  # RGB, upright, of any size
    label: int


class Pictures(NamedTuple):
    """A split in memory, at the size of the net."""

    pixels: NDArray[np.uint8]  # (n, height, width, 3)
    labels: NDArray[np.int64]  # (n,)


class Source(ABC):
    """A data set. Splits are read when asked for."""

    name: str
    classes: tuple[str, ...]

    @abstractmethod
    def training(self) -> Iterator[Example]:
        """All training pictures, held-out ones included, in a fixed order."""

    @abstractmethod
    def test(self) -> Iterator[Example]:
        """The test split, in a fixed order. Read it once for each published figure."""


def open_source(config: DataConfig, root: Path | None, preprocessing: Preprocessing) -> Source:
    """The data set that a recipe names, in folder `root`. Raises DataError where it is missing or damaged."""
    if config.kind == "digits":
        return Digits()
    if root is None:
        raise DataError(f"the recipe's data ({config.kind}) is read from a folder: give --data DIR")
    if config.kind == "cifar10":
        return Cifar10(root)
    folder = ImageFolder(root, preprocessing.background)
    if config.classes not in (None, len(folder.classes)):
        raise DataError(f"{root} has {len(folder.classes)} class folders; the recipe says {config.classes} classes")
    return folder


def load(examples: Iterator[Example], spec: Preprocessing) -> Pictures:
    """Reads a split into memory through the one preprocessing."""
    pixels: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for picture, label in examples:
        pixels.append(resize(picture, spec))
        labels.append(label)
    if not pixels:
        raise DataError("the split has no pictures")
    return Pictures(np.stack(pixels), np.asarray(labels, np.int64))


def held_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask of the held-out pictures: a tenth of each class, at least one, by a seed that never changes."""
    generator = np.random.default_rng(HELD_OUT_SEED)
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise DataError(f"class {label} has {len(members)} training picture; at least 2 are needed")
        mask[generator.permutation(members)[: max(1, len(members) // HELD_OUT_SHARE)]] = True
    return mask


def split(pictures: Pictures) -> tuple[Pictures, Pictures]:
    """(to train on, held out)."""
    mask = held_out(pictures.labels)
    return (
        Pictures(pictures.pixels[~mask], pictures.labels[~mask]),
        Pictures(pictures.pixels[mask], pictures.labels[mask]),
    )


class Cifar10(Source):
    """CIFAR-10 (Krizhevsky 2009), binary layout: records of a label byte and 3,072 bytes, channel by channel."""

    name = "CIFAR-10"
    classes = tuple(CIFAR10_CLASSES)

    def __init__(self, root: Path) -> None:
        self.folder = root if (root / CIFAR10_TEST[0]).is_file() else root / CIFAR10_FOLDER
        missing = _missing(self.folder)
        if missing:
            raise DataError(
                f"{self.folder} lacks {', '.join(missing)}: give the folder of CIFAR-10's binary version, "
                "or add --download to fetch it there"
            )

    def training(self) -> Iterator[Example]:
        return self._read(CIFAR10_TRAIN)

    def test(self) -> Iterator[Example]:
        return self._read(CIFAR10_TEST)

    def _read(self, names: tuple[str, ...]) -> Iterator[Example]:
        for name in names:
            records = np.fromfile(self.folder / name, np.uint8)
            if records.size != CIFAR10_RECORD * CIFAR10_RECORDS:
                expected = CIFAR10_RECORD * CIFAR10_RECORDS
                raise DataError(f"{self.folder / name} has {records.size} bytes; CIFAR-10 has {expected} there")
            for record in records.reshape(-1, CIFAR10_RECORD):
                pixels = np.ascontiguousarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0))
                yield Example(Image.fromarray(pixels), int(record[0]))


def download_cifar10(root: Path) -> None:
    """Fetches CIFAR-10's binary version into `root`, whole and with the right checksum or not at all.

    Does nothing where the files are there already; raises DataError where only some of them are.
    """
    folder = root / CIFAR10_FOLDER
    if not _missing(root) or not _missing(folder):
        return
    if folder.exists():
        raise DataError(f"{folder} lacks {', '.join(_missing(folder))}: remove it, so that it can be fetched whole")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            archive = Path(scratch) / "archive.tar.gz"
            with urllib.request.urlopen(CIFAR10_URL, timeout=60) as answer, archive.open("wb") as file:
                shutil.copyfileobj(answer, file)
            with archive.open("rb") as file:
                seen = hashlib.file_digest(file, "sha256").hexdigest()
            if seen != CIFAR10_SHA256:
                raise DataError(f"{CIFAR10_URL} has sha256 {seen}; CIFAR-10 has {CIFAR10_SHA256}")
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            os.replace(Path(scratch) / CIFAR10_FOLDER, folder)
    except OSError as error:
        raise DataError(f"could not fetch {CIFAR10_URL} to {root}: {error}") from error


def _missing(folder: Path) -> list[str]:
    return [name for name in CIFAR10_TRAIN + CIFAR10_TEST if not (folder / name).is_file()]


class ImageFolder(Source):
    """`train/<class>/*`, and `test/<class>/*` or `val/<class>/*`: pictures of any size and format of the service."""

    def __init__(self, root: Path, background: tuple[int, int, int]) -> None:
        self.root = root
        self.background = background
        self.name = f"image folder {root.name}"
        if not (root / "train").is_dir():
            raise DataError(f"{root} has no folder train/ with one folder a class")
        self.classes = tuple(sorted(folder.name for folder in (root / "train").iterdir() if folder.is_dir()))
        if len(self.classes) < 2:
            raise DataError(f"{root / 'train'} has {len(self.classes)} class folders; at least 2 are needed")

    def training(self) -> Iterator[Example]:
        return self._read(self.root / "train")

    def test(self) -> Iterator[Example]:
        for name in ("test", "val"):
            if (self.root / name).is_dir():
                return self._read(self.root / name)
        raise DataError(f"{self.root} has neither test/ nor val/")

    def _read(self, folder: Path) -> Iterator[Example]:
        for label, name in enumerate(self.classes):
            files = sorted(file for file in (folder / name).glob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
            if not files:
                raise DataError(f"{folder / name} has no picture ({', '.join(sorted(PICTURE_SUFFIXES))})")
            for file in files:
                try:
                    yield Example(decode(file.read_bytes(), self.background), label)
                except (RequestError, OSError) as error:
                    raise DataError(f"{file}: {error}") from error


class Digits(Source):
    """scikit-learn's 1,797 digits of 8 x 8, as grey pictures; every fifth is the test split. Needs no download."""

    name = "scikit-learn digits"
    classes = tuple("0123456789")

    def training(self) -> Iterator[Example]:
        return self._read(test=False)

    def test(self) -> Iterator[Example]:
        return self._read(test=True)

    def _read(self, *, test: bool) -> Iterator[Example]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            if (index % 5 == 0) == test:
                grey = np.rint(image * (255 / 16)).astype(np.uint8)  # its levels are 0 to 16
                yield Example(Image.fromarray(grey).convert("RGB"), int(label))

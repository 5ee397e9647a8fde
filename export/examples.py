"""Labelled pictures of a data set, read when asked for; and which of them are held out.

Of the training pictures, a tenth of each class, drawn with a fixed seed, is held out for every choice (500 a class of
CIFAR-10). The test split is a call of its own, so that training cannot read it.
"""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade.errors import DataError
from saccade.manifest import Preprocessing
from saccade.picture import Picture
from saccade.preprocess import resize

HELD_OUT_SEED = 2021
HELD_OUT_SHARE = 10  # one of so many


class Example(NamedTuple):
    picture: Image.Image  # RGB, upright, of any size
    label: int


class Pictures(NamedTuple):
    """Examples in memory, at the size of the net."""

    pixels: NDArray[np.uint8]  # (n, height, width, 3)
    labels: NDArray[np.int64]  # (n,)


class Examples(ABC):
    """Labelled pictures in a fixed order, each read when it is asked for. They can be sent to worker processes."""

    labels: NDArray[np.int64]
    """(n,), known without reading a picture."""

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """RGB, upright, of any size. Raises DataError where it cannot be read."""

    def pixels(self, index: int, spec: Preprocessing) -> NDArray[np.uint8]:
        """As the model sees it, (height, width, 3), only to be read. Raises DataError where it cannot be read."""
        return resize(self.picture(index), spec)

    def name(self, index: int) -> str:
        """Which one it is, for whoever looks for it: its number in the data set, or its path below the split."""
        return str(index)

    def file(self, index: int) -> Picture:
        """What a caller would send of it: the file where it is one, else the picture itself."""
        return self.picture(index)

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of what they are made of, so that a run can say what it was trained on."""

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Example]:
        return (Example(self.picture(index), int(label)) for index, label in enumerate(self.labels))

    def choose(self, indices: NDArray[np.int64]) -> "Examples":
        """Those alone, in that order."""
        return _Chosen(self, indices)

    def relabelled(self, places: NDArray[np.int64]) -> "Examples":
        """The same pictures, where label k has become places[k]."""
        other = copy.copy(self)
        other.labels = places[self.labels]
        return other


class Source(ABC):
    """A data set. Splits are read when asked for."""

    name: str
    classes: tuple[str, ...]

    @abstractmethod
    def training(self) -> Examples:
        """All training pictures, held-out ones included."""

    @abstractmethod
    def test(self) -> Examples:
        """The test split. Read it once for each published figure."""


def load(examples: Iterable[Example], spec: Preprocessing) -> Pictures:
    """Reads examples into memory through the one preprocessing."""
    pixels: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for picture, label in examples:
        pixels.append(resize(picture, spec))
        labels.append(label)
    if not pixels:
        raise DataError("the split has no pictures")
    return Pictures(np.stack(pixels), np.asarray(labels, np.int64))


def held_out(labels: NDArray[np.int64], classes: Sequence[str]) -> NDArray[np.bool_]:
    """Mask of the held-out pictures: a tenth of each class, at least one, by a seed that never changes.

    Raises DataError naming a class of which nothing would be left to train on.
    """
    generator = np.random.default_rng(HELD_OUT_SEED)
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise DataError(f"class {classes[label]} has {len(members)} training picture; at least 2 are needed")
        mask[generator.permutation(members)[: max(1, len(members) // HELD_OUT_SHARE)]] = True
    return mask


def split(source: Source) -> tuple[Examples, Examples]:
    """(to train on, held out)."""
    examples = source.training()
    mask = held_out(examples.labels, source.classes)
    return examples.choose(np.flatnonzero(~mask)), examples.choose(np.flatnonzero(mask))


class _Chosen(Examples):
    def __init__(self, examples: Examples, indices: NDArray[np.int64]) -> None:
        self._examples = examples
        self._indices = indices
        self.labels = examples.labels[indices]

    def picture(self, index: int) -> Image.Image:
        return self._examples.picture(int(self._indices[index]))

    def pixels(self, index: int, spec: Preprocessing) -> NDArray[np.uint8]:
        return self._examples.pixels(int(self._indices[index]), spec)

    def name(self, index: int) -> str:
        return self._examples.name(int(self._indices[index]))

    def file(self, index: int) -> Picture:
        return self._examples.file(int(self._indices[index]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self._examples.fingerprint().encode() + self._indices.tobytes()).hexdigest()

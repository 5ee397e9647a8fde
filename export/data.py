"""The data sets that a recipe can name: CIFAR-10, an image folder, scikit-learn's digits."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from export.cifar10 import Cifar10
from export.examples import Examples, Source
from export.folder import ImageFolder
from export.recipe import DataConfig
from saccade.errors import DataError
from saccade.manifest import Preprocessing


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


class Digits(Source):
    """scikit-learn's 1,797 digits of 8 x 8, as grey pictures; every fifth is the test split. Needs no download."""

    name = "scikit-learn digits"
    classes = tuple("0123456789")

    def training(self) -> Examples:
        return _Greys(test=False)

    def test(self) -> Examples:
        return _Greys(test=True)


class _Greys(Examples):
    def __init__(self, *, test: bool) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        chosen = (np.arange(len(digits.target)) % 5 == 0) == test
        self._levels = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)  # scikit-learn's are 0 to 16
        self.labels = digits.target[chosen].astype(np.int64)

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self._levels[index]).convert("RGB")

    def fingerprint(self) -> str:
        return hashlib.sha256(self._levels.tobytes() + self.labels.tobytes()).hexdigest()

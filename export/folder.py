"""An image folder: `train/<class>/*`, and `test/<class>/*` or `val/<class>/*`, as ImageNet is usually laid out.

Names that begin with a dot are passed over.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image

from export.examples import Examples, Source
from saccade.decode import decode
from saccade.errors import DataError, RequestError

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_SHOWN = 10
"""Classes that a message names."""


class ImageFolder(Source):
    """One folder a class; pictures of any size, in the formats of the service."""

    def __init__(self, root: Path, background: tuple[int, int, int], classes: tuple[str, ...] | None = None) -> None:
        """`classes` are a model's labels, of which a split may have some only; without them those of train/.

        Raises DataError where there are none, and where `root` is no folder.
        """
        if not root.is_dir():
            raise DataError(f"{root} is no folder")
        self.root = root
        self.background = background
        self.name = f"image folder {root.resolve().name}"
        if classes is None and not (root / "train").is_dir():
            raise DataError(f"{root} has no folder train/ with one folder a class")
        self.classes = _folders(root / "train") if classes is None else classes
        if classes is None and len(self.classes) < 2:
            raise DataError(f"{root / 'train'} has {len(self.classes)} class folders; at least 2 are needed")

    def training(self) -> Examples:
        return self.part("train")

    def test(self) -> Examples:
        return self.part(self.test_name())

    def test_name(self) -> str:
        """`test`, or `val` where there is no test/. Raises DataError where there is neither."""
        for name in ("test", "val"):
            if (self.root / name).is_dir():
                return name
        raise DataError(f"{self.root} has neither test/ nor val/")

    def part(self, name: str) -> Examples:
        """The pictures of one of its folders. Raises DataError for a folder of no known class, or without a picture."""
        folder = self.root / name
        if not folder.is_dir():
            raise DataError(f"{self.root} has no folder {name}/ with one folder a class")
        found = _folders(folder)
        unknown = sorted(set(found) - set(self.classes))
        if unknown:
            known = f"the {len(self.classes)} classes {shortened(self.classes)}"
            raise DataError(f"{folder / unknown[0]} is none of {known}")
        if not found:
            raise DataError(f"{folder} has no class folders; at least 1 is needed")
        return _Files(folder, self.classes, self.background)


def shortened(classes: tuple[str, ...]) -> str:
    """The first of them, for a message."""
    return ", ".join((*classes[:_SHOWN], *(["…"] if len(classes) > _SHOWN else [])))


def _folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.name)))


class _Files(Examples):
    """Names stand in one array, a fraction of the memory of a million paths, in each worker process as well."""

    def __init__(self, folder: Path, classes: tuple[str, ...], background: tuple[int, int, int]) -> None:
        self._folder = folder
        self._background = background
        self._digest = hashlib.sha256()
        names: list[bytes] = []
        counts = []
        present = set(_folders(folder))  # a label need not be what a folder can be called
        for name in classes:
            found = self._scan(folder / name) if name in present else []
            names += found
            counts.append(len(found))
        self._names = np.array(names, np.bytes_)
        self.labels = np.repeat(np.arange(len(classes)), counts)
        ends = np.cumsum(counts)
        for last, count in zip(ends.tolist(), counts, strict=True):
            if count:
                self._check_readable(range(last - count, last))
        self._fingerprint = self._digest.hexdigest()
        del self._digest

    def picture(self, index: int) -> Image.Image:
        file = self.file(index)
        try:
            return decode(file.read_bytes(), self._background)
        except (RequestError, OSError) as error:
            raise DataError(f"{file}: {error}") from error

    def name(self, index: int) -> str:
        return os.fsdecode(self._names[index])

    def file(self, index: int) -> Path:
        return self._folder / self.name(index)

    def fingerprint(self) -> str:
        """Of names and sizes: to read a million pictures first would take an hour."""
        return self._fingerprint

    def _scan(self, folder: Path) -> list[bytes]:
        """Names of a class's pictures below the folder of all. Raises DataError for an empty one: it is no picture."""
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if _is_picture(entry)), key=lambda entry: entry.name)
        if not found:
            raise DataError(f"{folder} has no picture ({', '.join(sorted(PICTURE_SUFFIXES))})")
        for entry in found:
            size = entry.stat().st_size
            if not size:
                raise DataError(f"{entry.path}: the picture is empty (0 bytes)")
            self._digest.update(f"{folder.name}/{entry.name}\0{size}\n".encode(errors="surrogateescape"))
        return [os.fsencode(f"{folder.name}/{entry.name}") for entry in found]

    def _check_readable(self, members: range) -> None:
        """A class of which nothing can be read is found now, not after an hour."""
        first: DataError | None = None
        for index in members:
            try:
                self.picture(index)
            except DataError as error:
                first = first or error
            else:
                return
        folder = self.file(members[0]).parent
        raise DataError(f"{folder} has no readable picture; of {len(members)} the first is {first}")


def _is_picture(entry: os.DirEntry[str]) -> bool:
    suffix = Path(entry.name).suffix.lower()
    return suffix in PICTURE_SUFFIXES and entry.is_file() and not _is_hidden(entry.name)


def _is_hidden(name: str) -> bool:
    """What programs leave behind: .ipynb_checkpoints is no class, ._a.jpg of macOS no picture."""
    return name.startswith(".")

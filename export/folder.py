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


class ImageFolder(Source):
    """One folder a class; pictures of any size, in the formats of the service."""

    def __init__(self, root: Path, background: tuple[int, int, int]) -> None:
        self.root = root
        self.background = background
        self.name = f"image folder {root.name}"
        if not (root / "train").is_dir():
            raise DataError(f"{root} has no folder train/ with one folder a class")
        self.classes = _folders(root / "train")
        if len(self.classes) < 2:
            raise DataError(f"{root / 'train'} has {len(self.classes)} class folders; at least 2 are needed")

    def training(self) -> Examples:
        return _Files(self.root / "train", self.classes, self.background)

    def test(self) -> Examples:
        for name in ("test", "val"):
            if (self.root / name).is_dir():
                unknown = sorted(set(_folders(self.root / name)) - set(self.classes))
                if unknown:
                    raise DataError(f"{self.root / name / unknown[0]} is no class of {self.root / 'train'}")
                return _Files(self.root / name, self.classes, self.background)
        raise DataError(f"{self.root} has neither test/ nor val/")


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
        for name in classes:
            found = self._scan(folder / name)
            names += found
            counts.append(len(found))
        self._names = np.array(names, np.bytes_)
        self.labels = np.repeat(np.arange(len(classes)), counts)
        ends = np.cumsum(counts)
        for last, count in zip(ends.tolist(), counts, strict=True):
            self._check_readable(range(last - count, last))
        self._fingerprint = self._digest.hexdigest()
        del self._digest

    def picture(self, index: int) -> Image.Image:
        file = self._file(index)
        try:
            return decode(file.read_bytes(), self._background)
        except (RequestError, OSError) as error:
            raise DataError(f"{file}: {error}") from error

    def fingerprint(self) -> str:
        """Of names and sizes: to read a million pictures first would take an hour."""
        return self._fingerprint

    def _file(self, index: int) -> Path:
        return self._folder / os.fsdecode(self._names[index])

    def _scan(self, folder: Path) -> list[bytes]:
        """Names of a class's pictures below the folder of all. Raises DataError for an empty one: it is no picture."""
        if not folder.is_dir():
            raise DataError(f"{folder.parent} has no folder {folder.name}/, a class of the training pictures")
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
        folder = self._file(members[0]).parent
        raise DataError(f"{folder} has no readable picture; of {len(members)} the first is {first}")


def _is_picture(entry: os.DirEntry[str]) -> bool:
    suffix = Path(entry.name).suffix.lower()
    return suffix in PICTURE_SUFFIXES and entry.is_file() and not _is_hidden(entry.name)


def _is_hidden(name: str) -> bool:
    """What programs leave behind: .ipynb_checkpoints is no class, ._a.jpg of macOS no picture."""
    return name.startswith(".")

"""CIFAR-10 (Krizhevsky 2009) in its published binary layout, and the way to fetch it."""

import functools
import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.examples import Examples, Source
from saccade.errors import DataError
from saccade.manifest import Preprocessing
from saccade.preprocess import is_as_seen

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_TRAIN = tuple(f"data_batch_{index}.bin" for index in range(1, 6))
CIFAR10_TEST = ("test_batch.bin",)
CIFAR10_RECORD = 1 + 3 * 32 * 32
CIFAR10_RECORDS = 10_000


class Cifar10(Source):
    """CIFAR-10 (Krizhevsky 2009), binary layout: records of a label byte and 3,072 bytes, channel by channel."""

    name = "CIFAR-10"
    classes = tuple(CIFAR10_CLASSES)

    def __init__(self, root: Path) -> None:
        self.folder = root if (root / CIFAR10_TEST[0]).is_file() else root / CIFAR10_FOLDER
        missing = missing_files(self.folder)
        if missing:
            raise DataError(
                f"{self.folder} lacks {', '.join(missing)}: give the folder of CIFAR-10's binary version, "
                "or add --download to fetch it there"
            )

    def training(self) -> Examples:
        return _Records([self.folder / name for name in CIFAR10_TRAIN])

    def test(self) -> Examples:
        return _Records([self.folder / name for name in CIFAR10_TEST])


def missing_files(folder: Path) -> list[str]:
    """Names of CIFAR-10's files that the folder lacks."""
    return [name for name in CIFAR10_TRAIN + CIFAR10_TEST if not (folder / name).is_file()]


class _Records(Examples):
    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self.labels = np.concatenate([self._read_labels(file) for file in files])

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self._pixels(index)))

    def pixels(self, index: int, spec: Preprocessing) -> NDArray[np.uint8]:
        if is_as_seen(32, 32, spec):  # to make a picture of it and read that takes as long as all else
            return self._pixels(index)
        return super().pixels(index, spec)

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        number, record = divmod(index, CIFAR10_RECORDS)
        return self._records[number][record, 1:].reshape(3, 32, 32).transpose(1, 2, 0)

    @functools.cached_property
    def _records(self) -> list[NDArray[np.uint8]]:
        """(records, bytes) of each file, read as they are asked for: to open a file costs more than a picture of it."""
        shape = (CIFAR10_RECORDS, CIFAR10_RECORD)
        # as plain arrays: each part of a memmap is one again, which takes longer than to read it
        return [np.asarray(np.memmap(file, np.uint8, mode="r", shape=shape)) for file in self._files]

    def __getstate__(self) -> dict[str, object]:
        """A worker process maps the files anew: what is mapped would be sent as a copy."""
        return {name: value for name, value in self.__dict__.items() if name != "_records"}

    def fingerprint(self) -> str:
        """Of the files, one after the other."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(file.read_bytes())
        return digest.hexdigest()

    @staticmethod
    def _read_labels(file: Path) -> NDArray[np.int64]:
        size = file.stat().st_size
        if size != CIFAR10_RECORD * CIFAR10_RECORDS:
            raise DataError(f"{file} has {size} bytes; CIFAR-10 has {CIFAR10_RECORD * CIFAR10_RECORDS} there")
        labels = np.fromfile(file, np.uint8)[::CIFAR10_RECORD].astype(np.int64)
        if labels.max() >= len(CIFAR10_CLASSES):
            record = int(np.argmax(labels >= len(CIFAR10_CLASSES)))
            raise DataError(f"{file} has the label {labels[record]} in record {record}; the largest of CIFAR-10 is 9")
        return labels


def download_cifar10(root: Path) -> None:
    """Fetches CIFAR-10's binary version into `root`, whole and with the right checksum or not at all.

    What came of it before the connection broke stays in a `.part` file, and the next call goes on behind it. Does
    nothing where the files are there already. Raises DataError.
    """
    folder = root / CIFAR10_FOLDER
    if not missing_files(root) or not missing_files(folder):
        return
    if folder.exists():
        raise DataError(
            f"{folder} lacks {', '.join(missing_files(folder))}: remove it, so that it can be fetched whole"
        )
    part = root / f"{CIFAR10_FOLDER}.part"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _fetch(part)
        with part.open("rb") as file:
            seen = hashlib.file_digest(file, "sha256").hexdigest()
        if seen != CIFAR10_SHA256:
            part.unlink()  # nothing that is wrong is gone on with
            raise DataError(f"{CIFAR10_URL} has sha256 {seen}; CIFAR-10 has {CIFAR10_SHA256}")
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            with tarfile.open(part) as tar:
                tar.extractall(scratch, filter="data")
            os.replace(Path(scratch) / CIFAR10_FOLDER, folder)
        part.unlink()
    except (OSError, HTTPException) as error:
        raise DataError(f"could not fetch {CIFAR10_URL} to {root}: {error}") from error


def _fetch(part: Path) -> None:
    """Completes `part`. A server that knows ranges (RFC 9110, section 14) sends what is missing, another one all."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(CIFAR10_URL, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)  # noqa: S310 - the address is ours
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is missing, or it is another file: the checksum says which
        raise
    with answer, part.open("ab" if answer.status == HTTPStatus.PARTIAL_CONTENT else "wb") as file:
        shutil.copyfileobj(answer, file)
        have = file.tell()
        missing = answer.length  # what was announced and did not come
    if missing:
        raise DataError(
            f"{CIFAR10_URL} broke off after {have} of {have + missing} bytes: the same command goes on from there"
        )

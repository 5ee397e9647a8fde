"""A name -> a folder: one on this machine, or a snapshot of the Hugging Face hub, fetched and checked.

huggingface_hub goes on where a connection broke, and its cache shows a file under its name only when it has all its
bytes. That they are the right bytes is checked here, each time: the cache names a file's content by its checksum (the
hub's own, of Git LFS, or of Git for small files; https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
"""

import hashlib
import os
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from export.pretrained.checkpoint import CONFIGURATION, INDEX, WHOLE
from export.pretrained.library import hub
from export.pretrained.preprocessing import FILES as PROCESSOR_FILES
from saccade.errors import DataError

WANTED = (CONFIGURATION, *PROCESSOR_FILES, WHOLE, INDEX, "model-*-of-*.safetensors")

_HUB_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_CHECKSUM = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


class Found(NamedTuple):
    """Where a checkpoint lies, and which commit of the hub it is; None for a folder of one's own."""

    folder: Path
    revision: str | None


def find(name: str, revision: str | None = None) -> Found:
    """A folder of that name goes before the hub. Raises DataError for what is at neither, or arrived damaged."""
    folder = Path(name)
    if folder.is_dir():
        if revision is not None:
            raise DataError(f"--revision belongs to a name at the hub; {name} is a folder here")
        return Found(folder, None)
    if not _HUB_NAME.fullmatch(name):
        raise DataError(f"{name} is no folder here, and no name at the hub, which is of the form owner/model")
    return _fetch(name, revision)


def _fetch(name: str, revision: str | None) -> Found:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read at the import
    library = hub()
    try:
        folder = Path(library.snapshot_download(name, revision=revision, allow_patterns=list(WANTED)))
    except Exception as error:  # the hub's errors, those of its HTTP library and of the disk share no base class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = f"{name} (revision {revision})" if revision else name
        raise DataError(
            f"there is no folder {name} here, and {where} could not be had from the hub at "
            f"{library.HfApi().endpoint}: {reason}"
        ) from error
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in WANTED) and not path.is_dir():
            try:
                _check(path, name)
            except OSError as error:
                raise DataError(f"could not check {path}: {error}") from error
    return Found(folder, folder.name)


def _check(path: Path, name: str) -> None:
    """Raises DataError for content that is not what its name in the cache says, and removes it."""
    content = path.resolve()
    expected = content.name
    if not path.is_symlink() or not _CHECKSUM.fullmatch(expected):
        raise DataError(
            f"{path} cannot be checked: it is no link to a file called after its checksum, as the cache has them where "
            f"links can be made; huggingface_hub.snapshot_download({name!r}, local_dir=DIR) makes a folder, and DIR "
            "can be given instead of the name"
        )
    if not content.is_file():
        raise DataError(
            f"the content of {path.name} is missing from the cache, where it was {content}: fetch it again, by the "
            "same command with a connection to the hub"
        )
    if len(expected) == 64:
        with content.open("rb") as file:
            seen = hashlib.file_digest(file, "sha256").hexdigest()
    else:
        data = content.read_bytes()
        seen = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if seen != expected:
        path.unlink()
        content.unlink()
        raise DataError(
            f"{path.name} arrived damaged and was removed: its checksum is {seen}, the hub says {expected}; the same "
            "command fetches it anew"
        )

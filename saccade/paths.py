"""Which pictures a command line means: files, folders, globs, a list on stdin. In a fixed order, drawn as needed."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from saccade.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
"""Of the files in a folder that are pictures; a file that is named itself may have any name."""

STDIN = "-"


def find_pictures(arguments: Iterable[str], separator: bytes = b"\n") -> Iterator[str]:
    """Paths of pictures: of a folder all below it, by name; of `-` the list on stdin, one path before each `separator`.

    Hidden files of folders are left out, and folders that are links. Raises DataError for what there is none of.
    """
    for argument in arguments:
        if argument == STDIN:
            yield from _listed(separator)
        elif Path(argument).is_dir():
            yield from _below(argument)
        elif glob.has_magic(argument) and not Path(argument).exists():
            found = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
            if not found:
                raise DataError(f"nothing matches {argument}")
            yield from (path for path in found if not Path(path).is_dir())
        else:
            yield argument


def _below(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            here = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"could not read the folder {folder}: {error.strerror}") from error
    for entry in here:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path)
        elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
            yield entry.path


def _listed(separator: bytes) -> Iterator[str]:
    rest = b""
    while piece := os.read(sys.stdin.fileno(), 2**16):
        *names, rest = (rest + piece).split(separator)
        yield from (os.fsdecode(name) for line in names if (name := _name(line, separator)))
    if name := _name(rest, separator):
        yield os.fsdecode(name)


def _name(line: bytes, separator: bytes) -> bytes:
    return line.removesuffix(b"\r") if separator == b"\n" else line

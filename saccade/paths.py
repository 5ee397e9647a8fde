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


def find_pictures(arguments: Iterable[str], separator: bytes = b"\n", leave_out: Path | None = None) -> Iterator[str]:
    """Paths of pictures: of a folder all below it, by name; of `-` the list on stdin, one path before each `separator`.

    Hidden files of folders are left out, folders that are links, and the folder `leave_out`. A file that cannot be read
    is a path like any other. Raises DataError for what there is none of.
    """
    without = None if leave_out is None else os.path.realpath(leave_out)
    for argument in arguments:
        if argument == STDIN:
            yield from _listed(separator)
        elif os.path.isdir(argument):
            yield from _below(argument, without)
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            found = sorted(glob.glob(argument, recursive=True))
            if not found:
                raise DataError(f"nothing matches {argument}")
            yield from (path for path in found if not os.path.isdir(path))
        else:
            yield argument


def _below(folder: str, without: str | None) -> Iterator[str]:
    if without is not None and os.path.realpath(folder) == without:
        return
    try:
        with os.scandir(folder) as entries:
            here = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"could not read the folder {folder}: {error.strerror}") from error
    for entry in here:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path, without)
        elif entry.name.lower().endswith(SUFFIXES) and not os.path.isdir(entry.path):
            yield entry.path


def _listed(separator: bytes) -> Iterator[str]:
    if sys.stdin is None:
        raise DataError("there is no standard input to read a list of pictures from")
    rest = b""
    while piece := os.read(sys.stdin.fileno(), 2**16):
        *names, rest = (rest + piece).split(separator)
        yield from (os.fsdecode(name) for line in names if (name := _name(line, separator)))
    if name := _name(rest, separator):
        yield os.fsdecode(name)


def _name(line: bytes, separator: bytes) -> bytes:
    return line.removesuffix(b"\r") if separator == b"\n" else line

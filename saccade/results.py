"""A file of JSON lines, one a picture, that a crash at any moment leaves fit to go on with.

Whole lines are written ten times a second, and go to the disk once a second. What a crash leaves of a line at the end
is cut off when the file is opened again. A run that fails or is killed leaves its lines, and no file where it has none.
"""

import contextlib
import fcntl
import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from saccade.errors import DataError, SaccadeError

_WRITE_EVERY_S = 0.1
_SYNC_EVERY = 10
"""Writes after which to wait for the disk."""
_START = b'{"path": '
"""Of a line."""
_MOST_BYTES = 2**22
"""That wait to be written, where the disk does not keep up."""
_FLAGS = os.O_RDWR | os.O_APPEND


def answer_line(path: str, answer: bytes) -> bytes:
    """`{"path": …, "answer": …}`; the answer as the service sent it, which is JSON of one line."""
    return b'{"path": %b, "answer": %b}\n' % (json.dumps(path).encode(), answer)


def error_line(path: str, error: SaccadeError) -> bytes:
    """`{"path": …, "error": sentence, "code": snake_case}`."""
    return json.dumps({"path": path, "error": str(error), "code": error.code}).encode() + b"\n"


class Results:
    """Open for one process at a time. A context manager."""

    def __init__(self, path: Path, resume: bool) -> None:
        """Raises DataError: for a file with something in it, unless it is to be resumed, for one in use, and for a
        place where none can be made.
        """
        self._path = path
        self._file: int | None = None
        """Made with its first line: what ends before that, whatever ends it, leaves none."""
        self._regular = True
        self._lines: list[bytes] = []
        self._bytes = 0
        self._changing = threading.Lock()
        self._writing = threading.Lock()
        self._broken: OSError | None = None
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write_now_and_then, name="saccade-results", daemon=True)
        try:
            self._take(os.open(path, _FLAGS), resume)
        except FileNotFoundError as error:
            folder = _place(path).parent  # what is wrong with it is better said now than behind the first answer
            if not folder.is_dir():
                raise self._failure(error) from error
            if not os.access(folder, os.W_OK | os.X_OK):
                raise DataError(f"could not write {path}: no file can be made in {folder}") from error
        except OSError as error:
            raise self._failure(error) from error

    def _take(self, file: int, resume: bool) -> None:
        """One that is there."""
        try:
            _lock(file)
            state = os.fstat(file)
            if not _is_at(self._path, state):
                raise DataError(f"{self._path} was being written by another process, which has failed: try again")
            if state.st_size and not resume:
                raise DataError(f"{self._path} is there already: --resume goes on with it")
        except BaseException:
            os.close(file)
            raise
        self._regular = stat.S_ISREG(state.st_mode)
        self._file = file

    def __enter__(self) -> "Results":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        if self._writer.ident is not None:
            self._writer.join()
        if error is None or self._lines:
            self._flush()
            self._sync()
        if self._file is not None:
            os.close(self._file)
        if error is None:
            self._check()

    def skip(self, paths: Iterator[str]) -> tuple[int, int]:
        """Draws the paths that have a line already, and cuts off half a line at the end: (lines, errors among them).

        Raises DataError where the file is not about these pictures in this order.
        """
        done, failed, end = 0, 0, 0
        if self._file is None or not self._regular:  # a pipe, a device
            return done, failed
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n") or b"\0" in line:  # zeros: a disk that lost power had not got so far
                    if not done and not _may_be_ours(line):
                        raise DataError(f"line 1 of {self._path} is not one of this command")
                    break
                written = self._read(line, done + 1)
                path = next(paths, None)
                if path != written["path"]:
                    there = "ends before" if path is None else f"has {path!r} there"
                    where = f"line {done + 1} of {self._path} is about {written['path']!r}"
                    raise DataError(f"{where}, and the list of pictures {there}: --resume needs the same list")
                done, failed, end = done + 1, failed + ("error" in written), end + len(line)
        os.ftruncate(self._file, end)
        return done, failed

    def write(self, line: bytes) -> None:
        """Raises DataError where the disk is full, or worse; perhaps for a line before this one."""
        self._check()
        with self._changing:
            self._lines.append(line)
            self._bytes += len(line)
        if self._writer.ident is None:
            self._writer.start()
        if self._bytes > _MOST_BYTES:
            self._flush()
            self._check()

    def _write_now_and_then(self) -> None:
        count = 0
        while not self._closing.wait(_WRITE_EVERY_S) and self._broken is None:
            self._flush()
            count += 1
            if count % _SYNC_EVERY == 0:
                self._sync()

    def _flush(self) -> None:
        """Writes what waits; nothing behind what could not be written, or a line would be missing between others."""
        with self._writing:  # in their order
            with self._changing:
                lines, self._lines, self._bytes = self._lines, [], 0
            if self._broken is not None:
                return
            try:
                if self._file is None:
                    self._file = _make(self._path, b"".join(lines))
                else:
                    _write(self._file, b"".join(lines))
            except OSError as error:
                self._broken = error

    def _sync(self) -> None:
        try:
            if self._file is not None and self._regular:
                os.fdatasync(self._file)
        except OSError as error:
            self._broken = self._broken or error

    def _check(self) -> None:
        if self._broken is not None:
            raise self._failure(self._broken)

    def _failure(self, error: OSError) -> DataError:
        if isinstance(error, BlockingIOError):
            return DataError(f"{self._path} is being written by another process")
        if isinstance(error, FileExistsError):
            return DataError(f"{self._path} was made by another process meanwhile: --resume goes on with it")
        return DataError(f"could not write {self._path}: {error.strerror}")

    def _read(self, line: bytes, number: int) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            written = json.loads(line)
            if isinstance(written, dict) and isinstance(written.get("path"), str):
                return written
        raise DataError(f"line {number} of {self._path} is not one of this command")


def _make(path: Path, lines: bytes) -> int:
    """A file with these lines, or none. Raises OSError: FileExistsError where another process was faster."""
    place = _place(path)
    file = os.open(place, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            _lock(file)
            _write(file, lines)
        except BlockingIOError:  # it is another's, who found it there
            raise
        except BaseException:  # the disk is full, or somebody has had enough
            place.unlink()  # while it is locked: who waits for the lock looks if it is still there
            raise
        with contextlib.suppress(OSError):  # that the file is there is on the disk only once its folder is
            folder = os.open(place.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException:
        os.close(file)
        raise
    return file


def _write(file: int, lines: bytes) -> None:
    rest = memoryview(lines)
    while rest:  # a disk that is nearly full takes a part
        rest = rest[os.write(file, rest) :]


def _lock(file: int) -> None:
    """Raises BlockingIOError where another process writes it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network file systems have no locks
        pass


def _place(path: Path) -> Path:
    """Where it is made: a link to it may be there already."""
    return Path(os.path.realpath(path))


def _is_at(path: Path, state: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), state)
    except OSError:
        return False


def _may_be_ours(line: bytes) -> bool:
    """Whether a crash can have left it: the beginning of a line of ours, and zeros; or zeros alone."""
    head, _, rest = line.partition(b"\0")
    return (_START.startswith(head) or head.startswith(_START)) and (bool(head) or not rest.strip(b"\0\n"))


class Printed:
    """Lines on a stream instead; nothing is resumed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, line: bytes) -> None:
        """Raises BrokenPipeError where nobody reads on, DataError for whatever else is wrong."""
        try:
            self._stream.write(line)
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise DataError(f"could not write to standard output: {error.strerror}") from error

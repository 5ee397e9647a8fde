"""`saccade classify`: any number of pictures -> one JSON line each, in their order, from a service or without one."""

import errno
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple, TextIO

from pydantic import ValidationError
from pydantic_core import from_json

from saccade.api import Answer
from saccade.client import Effort, check_concurrency
from saccade.errors import (
    BodyTooLarge,
    DataError,
    DeadlineExceeded,
    ImageTooLarge,
    InferenceFailed,
    InvalidImage,
    InvalidParameter,
    RequestTimeout,
    SaccadeError,
    ServiceError,
    SetupError,
)
from saccade.ordered import in_order
from saccade.overlay import picture_file, write_whole
from saccade.paths import STDIN, find_pictures
from saccade.picture import picture_bytes
from saccade.progress import Progress
from saccade.results import Printed, Results, answer_line, error_line

Ask = Callable[[bytes, Effort], bytes]
"""The bytes of a picture -> its answer as JSON. Raises RequestError, ServiceError."""

_BEGIN = b'{"request_id":'
_LONGEST_NAME = 240  # bytes; with what is added, file systems take 255
_OF_THE_SYSTEM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENODEV, errno.ENOTCONN)
"""Reasons why a file could not be read that are not the file's: it would be read another time."""

_OF_ONE_PICTURE = (
    *(InvalidImage, ImageTooLarge, BodyTooLarge, DataError),
    *(RequestTimeout, InferenceFailed, DeadlineExceeded),
)


class Order(NamedTuple):
    """What to do with which pictures."""

    pictures: Sequence[str]
    """As `find_pictures` takes them."""
    separator: bytes
    concurrency: int
    out: Path | None
    """None: standard output."""
    resume: bool
    overlays: Path | None


def classify(order: Order, ask: Ask) -> int:
    """Writes a line for each picture; how many of the lines are errors.

    Raises SaccadeError for what is wrong with more than one picture: the service is away, the request is refused
    whatever the picture, the disk is full. All lines before it are written then.
    """
    check_concurrency(order.concurrency)
    if order.resume and order.out is None:
        raise InvalidParameter("--resume needs --out: there is nothing to go on with")
    if order.out is None and sys.stdout is None:
        raise DataError("there is no standard output: give --out")
    effort, paths = Effort(), find_pictures(order.pictures, order.separator, order.overlays)

    def score(path: str) -> tuple[bytes, bool]:
        try:
            picture = picture_bytes(path)
            answer = ask(picture, effort)
            _check(answer)
            if order.overlays is not None:
                with drawing:
                    _draw(path, picture, answer, order.overlays)
            return answer_line(path, answer), False
        except SaccadeError as error:
            if not isinstance(error, _OF_ONE_PICTURE) and type(error) is not SaccadeError:  # which is "internal"
                raise
            if getattr(error.__cause__, "errno", None) in _OF_THE_SYSTEM:
                raise
            return error_line(path, error), True

    drawing = threading.BoundedSemaphore(os.cpu_count() or 1)  # pictures are large once they are decoded
    with ExitStack() as stack:
        done = errors = 0
        if order.out is None:
            output: Results | Printed = Printed(sys.stdout.buffer)
        else:
            output = stack.enter_context(Results(order.out, order.resume))
            done, errors = output.skip(paths) if order.resume else (0, 0)
        progress = None
        if order.out is not None or (_is_terminal(sys.stderr) and not _is_terminal(sys.stdout)):
            progress = Progress(done=done, failed=errors)
            _count(order, progress)
            stack.callback(progress.end)
        for line, failed in in_order(paths, score, threads=order.concurrency, give_up=effort.give_up):
            output.write(line)
            errors += failed
            if progress:
                progress.step(failed)
    return errors


def _check(answer: bytes) -> None:
    """One line of JSON, or whoever answered is no Saccade: what goes into the file can be read again.

    An answer that begins and ends as ours is taken to be whole, since its length was; another one is parsed.
    """
    if b"\n" not in answer:
        if answer.startswith(_BEGIN) and answer.endswith(b"}"):
            return
        with suppress(ValueError):
            parsed = from_json(answer)
            if isinstance(parsed, dict) and {"labels", "model"} <= set(parsed):
                return
    raise ServiceError("the answer is in no known form: is it a Saccade?")


def _draw(path: str, picture: bytes, answer: bytes, folder: Path) -> None:
    try:
        drawn = Answer.model_validate_json(answer).overlay(picture=picture)
    except ValidationError as error:
        raise ServiceError("the answer is in no known form: is it a Saccade?") from error
    file = picture_file(drawn, "JPEG" if max(drawn.size) < 2**16 - 35 else "PNG")
    place = overlay_path(path, folder)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, file)
    except OSError as error:
        raise SetupError(f"could not write {place}: {error.strerror}") from error
    except DataError as error:
        raise SetupError(str(error)) from error  # a full disk is not the matter of this picture


def overlay_path(path: str, folder: Path) -> Path:
    """`a/b.png` -> `folder/a/b.png.jpg`: below the folder, whatever the path, and two pictures never in one place.

    The root and `..` have names of their own, `__root` and `__up`; names that begin so get two lines more.
    """
    given = Path(path)
    words = {given.anchor: "__root", "..": "__up"}
    parts = [words.get(part) or (f"__{part}" if part.startswith("__") else part) for part in given.parts]
    name = os.fsencode(parts[-1])
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(name).hexdigest()[:16]
        parts[-1] = f"{os.fsdecode(name[: _LONGEST_NAME - 17]).encode('ascii', 'replace').decode()}-{digest}"
    return folder.joinpath(*parts[:-1], f"{parts[-1]}.jpg")


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _count(order: Order, progress: Progress) -> None:
    """Finds out how many there are, beside the work: a walk through a million files takes a while."""

    def count() -> None:
        with suppress(SaccadeError):  # told in its place
            progress.total = sum(1 for _ in find_pictures(order.pictures, order.separator, order.overlays))

    if STDIN not in order.pictures:
        threading.Thread(target=count, name="saccade-count", daemon=True).start()

"""A client for scripts: one picture in, a typed answer out."""

import io
import os
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from pydantic import BaseModel, ValidationError

from saccade import errors
from saccade.api import Answer, ClassifyOptions, Error, ModelList
from saccade.decode import orientation
from saccade.errors import DataError, InvalidImage, InvalidParameter, Overloaded, SaccadeError, ServiceError

_Wire = TypeVar("_Wire", bound=BaseModel)

Picture = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8]


def _codes(root: type[SaccadeError]) -> dict[str, type[SaccadeError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _codes(child)
    return found


class Client:
    """Asks one service. Errors come as the classes of `saccade.errors`, by the answer's code."""

    def __init__(self, url: str = "http://127.0.0.1:8000", *, key: str | None = None, timeout: float = 60.0) -> None:
        """`key` is sent as a bearer token; `timeout` is in seconds."""
        if key and not key.isascii():
            raise InvalidParameter("the key holds characters that no HTTP header can carry")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        except httpx.InvalidURL as error:
            raise ServiceError(f"{url!r} is not the address of a service: {error}") from error

    def classify(self, picture: Picture, **options: Any) -> Answer:
        """Labels, maps and attention of a path, bytes, file, array (H, W, 3) or PIL image.

        `options` are those of `ClassifyOptions`. Raises RequestError, ServiceError, DataError for an unreadable path.
        """
        query = ClassifyOptions.checked(options).to_query()
        answer = self._ask(
            "POST", "/v1/classify", params=httpx.QueryParams(tuple(query)), content=picture_bytes(picture)
        )
        return self._read(Answer, answer)

    def models(self) -> ModelList:
        return self._read(ModelList, self._ask("GET", "/v1/models"))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, kind: type[_Wire], body: bytes) -> _Wire:
        try:
            return kind.model_validate_json(body)
        except ValidationError:
            raise ServiceError(f"{self._http.base_url} answered in no known form: is it a Saccade?") from None

    def _ask(self, method: str, path: str, **arguments: Any) -> bytes:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise ServiceError(f"{self._http.base_url} does not answer: {error}") from error
        if response.is_success:
            return response.content
        try:
            refusal = Error.model_validate_json(response.content)
        except ValidationError:
            raise ServiceError(f"{response.url} answered {response.status_code} in no known form") from None
        if refusal.code == Overloaded.code:
            wait = response.headers.get("retry-after", "")
            raise Overloaded(refusal.error, int(wait) if wait.isdecimal() else 1)
        raise _codes(errors.SaccadeError).get(refusal.code, ServiceError)(refusal.error)


def picture_bytes(picture: Picture) -> bytes:
    """The picture as a file: what has one is taken as it is, arrays and PIL images become PNG or TIFF, without loss."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    if isinstance(picture, Image.Image):
        return _as_file(picture)
    if isinstance(picture, str | os.PathLike):
        try:
            with open(picture, "rb") as file:
                return file.read()
        except OSError as error:
            raise DataError(f"could not read {os.fspath(picture)}: {error.strerror}") from error
    return picture.read()


def _as_file(picture: Image.Image) -> bytes:
    """PNG where it has the mode, else TIFF; with the orientation, so that the service turns it as it would the file."""
    buffer, exif = io.BytesIO(), Image.Exif()
    try:
        picture.load()
        exif[ExifTags.Base.Orientation] = orientation(picture)
        kind = "PNG" if picture.mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA") else "TIFF"
        picture.save(buffer, kind, exif=exif)
    except Exception as error:  # a file that Pillow has opened and not read yet may be damaged in every way
        raise InvalidImage(f"the picture of mode {picture.mode} cannot be sent: {error}") from error
    return buffer.getvalue()

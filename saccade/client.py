"""A client for scripts: one picture in, a typed answer out."""

import io
import os
from types import TracebackType
from typing import Any, BinaryIO

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from saccade import errors
from saccade.api import Answer, ClassifyOptions, Error, ModelList
from saccade.errors import DataError, SaccadeError, ServiceError

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
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)

    def classify(self, picture: Picture, **options: Any) -> Answer:
        """Labels, maps and attention of a path, bytes, file, array (H, W, 3) or PIL image.

        `options` are those of `ClassifyOptions`. Raises RequestError, ServiceError, DataError for an unreadable path.
        """
        query = ClassifyOptions(**options).to_query()
        answer = self._ask(
            "POST", "/v1/classify", params=httpx.QueryParams(tuple(query)), content=picture_bytes(picture)
        )
        return Answer.model_validate_json(answer)

    def models(self) -> ModelList:
        return ModelList.model_validate_json(self._ask("GET", "/v1/models"))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        raise _codes(errors.SaccadeError).get(refusal.code, ServiceError)(refusal.error)


def picture_bytes(picture: Picture) -> bytes:
    """The picture as a file: what has one is taken as it is, arrays and PIL images become PNG, without loss."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()
    if isinstance(picture, str | os.PathLike):
        try:
            with open(picture, "rb") as file:
                return file.read()
        except OSError as error:
            raise DataError(f"could not read {os.fspath(picture)}: {error.strerror}") from error
    return picture.read()

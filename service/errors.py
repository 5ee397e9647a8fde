"""The one table from errors of the domain to HTTP, and the one shape that all of them take."""

import orjson

from saccade import errors
from saccade.errors import SaccadeError
from service.plain import Json

STATUS: dict[type[SaccadeError], int] = {
    errors.InvalidParameter: 400,
    errors.InvalidImage: 400,
    errors.MalformedRequest: 400,
    errors.Unauthorized: 401,
    errors.UnknownModel: 404,
    errors.UnknownRoute: 404,
    errors.MethodNotAllowed: 405,
    errors.NotAcceptable: 406,
    errors.RequestTimeout: 408,
    errors.BodyTooLarge: 413,
    errors.ImageTooLarge: 413,
    errors.ResponseTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.UnsupportedMap: 422,
    errors.TooManyClasses: 422,
    errors.Overloaded: 429,
    errors.HeadTooLarge: 431,
    errors.InferenceFailed: 500,
    errors.RelevanceFailed: 500,
    errors.NotReady: 503,
    errors.Draining: 503,
    errors.DeadlineExceeded: 504,
}


_LONGEST = 1000  # characters of a sentence


def status_of(error: SaccadeError) -> int:
    """500 for what should not have reached a caller."""
    return STATUS.get(type(error), 500)


def error_response(error: SaccadeError, request_id: str, headers: dict[str, str] | None = None) -> Json:
    """`{"error": sentence, "code": snake_case, "request_id": …}` with its status and headers."""
    headers = dict(headers or {})
    if isinstance(error, errors.Overloaded):
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, errors.Unauthorized):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, errors.RequestTimeout):
        headers["connection"] = "close"  # nobody waits for the rest
    sentence = str(error)
    if len(sentence) > _LONGEST:  # it may quote what the caller sent
        sentence = f"{sentence[:_LONGEST]}…"
    body = orjson.dumps({"error": sentence, "code": error.code, "request_id": request_id})
    return Json(body, status_of(error), headers.items())

"""Everything that can be wrong, as the domain sees it. No HTTP here: `service.errors` has the one table to statuses.

    SaccadeError
    ├── RequestError                 the caller can mend it
    │   ├── InvalidParameter           invalid_parameter
    │   ├── InvalidImage               invalid_image
    │   ├── MalformedRequest           malformed_request
    │   ├── Unauthorized               unauthorized
    │   ├── UnknownModel               unknown_model
    │   ├── UnknownRoute               unknown_route
    │   ├── MethodNotAllowed           method_not_allowed
    │   ├── NotAcceptable              not_acceptable
    │   ├── RequestTimeout             request_timeout
    │   ├── BodyTooLarge               body_too_large
    │   ├── ImageTooLarge              image_too_large
    │   ├── ResponseTooLarge           response_too_large
    │   ├── UnsupportedMediaType       unsupported_media_type
    │   ├── UnsupportedMap             unsupported_map
    │   ├── TooManyClasses             too_many_classes
    │   └── HeadTooLarge               head_too_large
    ├── ServiceError                 the service cannot, now or at all
    │   ├── Overloaded                 overloaded
    │   ├── InferenceFailed            inference_failed
    │   ├── RelevanceFailed            relevance_failed
    │   ├── NotReady                   not_ready
    │   ├── Draining                   draining
    │   ├── DeadlineExceeded           deadline_exceeded
    │   └── Unreachable                of the client: nothing answers at the service's address
    └── SetupError                   whoever runs or builds it can mend it: the command line says it and exits with 2
        ├── BundleError                a bundle is missing, damaged or not what its manifest says
        ├── SettingsError              a setting is out of bounds, a provider is missing
        ├── RecipeError                a recipe has a typo
        └── DataError                  a data set is missing or damaged

A message is one sentence that says what was wrong, the limit and the value seen.
"""

from collections.abc import Mapping

from pydantic import BaseModel, ValidationError


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, as part of a sentence: where, what, and the value seen.

    What is wrong of several fields together has no single value, and of the whole no place.
    """
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    together = first["type"] == "value_error" and isinstance(first["input"], (Mapping, BaseModel))
    value = "" if together else f"; the value is {first['input']!r}"
    return f"{where and where + ': '}{said}{value}"[:500]


class SaccadeError(Exception):
    """Root of the tree. `str(error)` is a sentence for the person who can mend it."""

    code: str = "internal"


class RequestError(SaccadeError):
    """The request cannot be answered as it stands; the same request will fail again."""


class InvalidParameter(RequestError):
    code = "invalid_parameter"


class InvalidImage(RequestError):
    code = "invalid_image"


class MalformedRequest(RequestError):
    code = "malformed_request"


class Unauthorized(RequestError):
    code = "unauthorized"


class UnknownModel(RequestError):
    code = "unknown_model"


class UnknownRoute(RequestError):
    code = "unknown_route"


class MethodNotAllowed(RequestError):
    code = "method_not_allowed"


class NotAcceptable(RequestError):
    code = "not_acceptable"


class RequestTimeout(RequestError):
    """The caller sent too slowly; unlike DeadlineExceeded, which is the service's own slowness."""

    code = "request_timeout"


class BodyTooLarge(RequestError):
    code = "body_too_large"


class ImageTooLarge(RequestError):
    code = "image_too_large"


class ResponseTooLarge(RequestError):
    code = "response_too_large"


class UnsupportedMediaType(RequestError):
    code = "unsupported_media_type"


class UnsupportedMap(RequestError):
    code = "unsupported_map"


class TooManyClasses(RequestError):
    """Each class of a map of the gradient is a backward pass; unlike ResponseTooLarge, it is work that is bounded."""

    code = "too_many_classes"


class HeadTooLarge(RequestError):
    code = "head_too_large"


class ServiceError(SaccadeError):
    """The service could not answer a request that may be right; it may be worth sending again."""


class Overloaded(ServiceError):
    """The queue is full. `retry_after` is in whole seconds, at least 1."""

    code = "overloaded"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InferenceFailed(ServiceError):
    code = "inference_failed"


class RelevanceFailed(ServiceError):
    """relevance.onnx cannot be opened; unlike InferenceFailed, whatever the picture, until the service starts anew."""

    code = "relevance_failed"


class NotReady(ServiceError):
    code = "not_ready"


class Draining(ServiceError):
    code = "draining"


class DeadlineExceeded(ServiceError):
    code = "deadline_exceeded"


class Unreachable(ServiceError):
    """No connection, or one that broke before the answer was there. Only a client raises it."""

    code = "unreachable"


class SetupError(SaccadeError):
    """Wrong before any request came: what is installed, configured or on disk."""

    code = "setup"


class BundleError(SetupError):
    code = "bundle"


class SettingsError(SetupError):
    code = "settings"


class RecipeError(SetupError):
    code = "recipe"


class DataError(SetupError):
    code = "data"

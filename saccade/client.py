"""A client for scripts: pictures in, typed answers out, one or a million.

`saccade.async_client.AsyncClient` is the same for asyncio.
"""

import contextlib
import random
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ValidationError

from saccade import errors
from saccade.api import Answer, ClassifyOptions, Error, ModelInfo, ModelList
from saccade.connection import Address, Connection, NoHttp, Response
from saccade.errors import DeadlineExceeded, InvalidParameter, Overloaded, SaccadeError, ServiceError, Unreachable
from saccade.ordered import in_order
from saccade.picture import Picture, picture_bytes

_Wire = TypeVar("_Wire", bound=BaseModel)

_FIRST_WAIT_S = 0.5
_MOST_DOUBLINGS = 20
_MOST_SECONDS = 1e9
_MOST_THREADS = 1024
_WORTH_ANOTHER_TRY = (429, 502, 503)
"""502: a proxy says that its own connection broke."""


class Outcome(NamedTuple):
    """Of one picture among many: either `answer` or `error` is there."""

    picture: Picture
    """As it was given."""
    answer: Answer | None
    error: SaccadeError | None


class Effort:
    """What one caller waits for, so that it can be given up from another thread."""

    def __init__(self) -> None:
        self.given_up = threading.Event()
        self._connections: set[Connection] = set()
        self._changing = threading.Lock()  # a connection that has ended is another caller's, and not to be aborted

    def give_up(self) -> None:
        self.given_up.set()
        with self._changing:
            for connection in self._connections:
                connection.abort()

    def begin(self, connection: Connection) -> None:
        with self._changing:
            self._connections.add(connection)
            if self.given_up.is_set():
                connection.abort()

    def end(self, connection: Connection) -> None:
        with self._changing:
            self._connections.discard(connection)


class Client:
    """Asks one service, for any number of threads. Errors are classes of `saccade.errors`, by the answer's code.

    429, 503 and broken connections are tried again, up to `retries` times: after the seconds of `Retry-After` and a
    random part of a pause that doubles each time, up to `longest_wait` seconds. Not so a service that was never
    reached, nor one whose `Retry-After` is longer than that. Whatever is asked may be asked twice without harm.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout: float = 60.0,
        retries: int = 8,
        longest_wait: float = 60.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`key` is sent as a bearer token; `timeout` is for one try, in seconds.

        `tls` is for https with other authorities than the system's. Raises ServiceError for what is no address,
        InvalidParameter for what is out of bounds. No proxy is asked.
        """
        if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key != ""):
            raise InvalidParameter("the key is empty or holds characters that no HTTP header can carry")
        if not timeout > 0 or not longest_wait >= 0 or retries < 0:
            given = f"{timeout}, {longest_wait} and {retries}"
            raise InvalidParameter(f"timeout must be above 0, longest_wait and retries at least 0, not {given}")
        self._address = Address.parse(url)
        self._tls = (tls or ssl.create_default_context()) if self._address.tls else None
        self._timeout = timeout
        self._retries = retries
        self._longest_wait = longest_wait
        self._common = (
            f"HTTP/1.1\r\nhost: {self._address.authority}\r\nuser-agent: saccade\r\naccept: application/json\r\n"
        )
        if key is not None:
            self._common += f"authorization: Bearer {key}\r\n"
        self._idle: list[Connection] = []
        self._reached = False
        self._closed = False

    @property
    def url(self) -> str:
        return self._address.url

    def classify(self, picture: Picture, **options: Any) -> Answer:
        """Labels, maps and attention of a path, bytes, open file, array (H, W, 3) or PIL image.

        `options` are those of `ClassifyOptions`. Raises RequestError, ServiceError, DataError for an unreadable path.
        """
        return self.classifying(options)(picture, Effort())

    def classify_many(self, pictures: Iterable[Picture], *, concurrency: int = 16, **options: Any) -> Iterator[Outcome]:
        """One outcome a picture, in their order, with `concurrency` requests on their way.

        `pictures` are drawn as room is made, in other threads, so that a generator of a million costs no memory. Raises
        InvalidParameter; what is wrong with one picture is its outcome's `error`.
        """
        check_concurrency(concurrency)
        classify, effort = self.classifying(options), Effort()

        def attempt(picture: Picture) -> Outcome:
            try:
                return Outcome(picture, classify(picture, effort), None)
            except SaccadeError as error:
                return Outcome(picture, None, error)

        return in_order(pictures, attempt, threads=concurrency, give_up=effort.give_up)

    def classifying(self, options: dict[str, Any]) -> Callable[[Picture, Effort], Answer]:
        """A function that classifies pictures with `options`, which are looked at once. Raises InvalidParameter."""
        ask = self.asking(ClassifyOptions.checked(options))

        def classify(picture: Picture, effort: Effort) -> Answer:
            if hasattr(picture, "read"):  # an open file can be read only once
                picture = picture_bytes(picture)
            answer = self._read(Answer, ask(picture_bytes(picture), effort))
            answer._picture = picture
            return answer

        return classify

    def asking(self, options: ClassifyOptions) -> Callable[[bytes, Effort], bytes]:
        """A function: the bytes of a picture -> the answer as the service sent it."""
        query = urlencode(options.to_query())
        target = f"/v1/classify?{query}" if query else "/v1/classify"

        def ask(body: bytes, effort: Effort) -> bytes:
            return self._ask("POST", target, body, effort)

        return ask

    def models(self) -> ModelList:
        """What is served. Raises ServiceError, Unauthorized."""
        return self._read(ModelList, self._ask("GET", "/v1/models", b"", Effort()))

    def model(self, name: str) -> ModelInfo:
        """Maps, manifest, card, parity and plan of `name` or `name@version`. Raises UnknownModel, ServiceError."""
        return self._read(ModelInfo, self._ask("GET", f"/v1/models/{quote(name, safe='')}", b"", Effort()))

    def close(self) -> None:
        """Closes the connections; of those in use, each once it has its answer."""
        self._closed = True
        with contextlib.suppress(IndexError):  # another thread takes the last one
            while self._idle:
                self._idle.pop().close()

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
            raise ServiceError(f"{self.url} answered in no known form: is it a Saccade?") from None

    def _ask(self, method: str, target: str, body: bytes, effort: Effort) -> bytes:
        head = f"{method} {self._address.prefix}{target} {self._common}"
        if method == "POST":
            head += f"content-type: application/octet-stream\r\ncontent-length: {len(body)}\r\n"
        request = f"{head}\r\n".encode("ascii")
        tries = 0
        while True:
            try:
                response = self._exchange(request, body, effort)
            except Unreachable:
                if tries == self._retries or not self._reached:
                    raise
                asked = 0.0
            else:
                if response.status == 200:
                    return response.body
                asked = retry_after_s(response.headers.get(b"retry-after", b""), datetime.now(UTC))
                last = tries == self._retries or asked > self._longest_wait
                if last or response.status not in _WORTH_ANOTHER_TRY:
                    raise self._refusal(response, asked)
            if effort.given_up.wait(wait_s(tries, asked, self._longest_wait)):
                raise Unreachable(f"{self.url} was given up")
            tries += 1

    def _exchange(self, request: bytes, body: bytes, effort: Effort) -> Response:
        connection = self._connection()
        effort.begin(connection)
        try:
            while True:
                fresh = not connection.is_open
                try:
                    response = connection.exchange(request, body, self._timeout)
                except ConnectionError:
                    # a server may close an idle connection in the moment in which it is used again: that is no failure
                    if fresh or connection.has_begun_to_answer or effort.given_up.is_set():
                        raise
                    continue
                self._reached = True
                return response
        except TimeoutError as error:
            if error.errno is not None:  # the system gave up, for whom the other side is gone
                raise Unreachable(f"{self.url} does not answer: {error.strerror}") from error
            raise DeadlineExceeded(f"{self.url} does not answer within {self._timeout:g} s") from error
        except UnicodeError as error:  # a host that is no name
            raise ServiceError(f"{self.url!r} is not the address of a service: {error}") from error
        except OSError as error:
            raise Unreachable(f"{self.url} does not answer: {error.strerror or error}") from error
        except NoHttp as error:
            raise ServiceError(f"{self.url} answered in no known form: {error}") from error
        finally:
            effort.end(connection)
            if connection.is_open:
                self._idle.append(connection)
                if self._closed:
                    self.close()

    def _connection(self) -> Connection:
        while self._idle:
            try:
                connection = self._idle.pop()  # the one used last: the others may grow old and be closed
            except IndexError:  # by another thread
                break
            if not connection.is_stale:
                return connection
            connection.close()
        return Connection(self._address, self._tls)

    def _refusal(self, response: Response, asked: float) -> SaccadeError:
        try:
            refusal = Error.model_validate_json(response.body)
        except ValidationError:
            kind = _OF_A_PROXY.get(response.status, ServiceError)
            return kind(f"{self.url} answered {response.status} in no known form")
        if refusal.code == Overloaded.code:
            return Overloaded(refusal.error, max(1, round(asked)))
        return _CLASSES.get(refusal.code, ServiceError)(refusal.error)


def wait_s(tries: int, asked: float, longest: float) -> float:
    """Seconds before the next try: what the service asked for, and a random part of a pause that doubles each time.

    Never less than asked: jitter spreads the callers that were refused together, and must not bring them early.
    """
    pause = min(longest, _FIRST_WAIT_S * 2 ** min(tries, _MOST_DOUBLINGS))
    return asked + random.uniform(0, pause)  # noqa: S311 - nobody gains by guessing it


def retry_after_s(header: bytes, now: datetime) -> float:
    """Seconds of a Retry-After, which is a number of seconds or a date (RFC 9110, 10.2.3); 0 where there is none."""
    text = header.decode("latin-1").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), _MOST_SECONDS)
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())
    except (ValueError, OverflowError):
        return 0.0


def check_concurrency(concurrency: int) -> None:
    """Raises InvalidParameter."""
    if not 1 <= concurrency <= _MOST_THREADS:
        raise InvalidParameter(f"concurrency must be at least 1 and at most {_MOST_THREADS}, not {concurrency}")


def _codes(root: type[SaccadeError]) -> dict[str, type[SaccadeError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _codes(child)
    return found


_CLASSES = _codes(errors.SaccadeError)
_OF_A_PROXY: dict[int, type[SaccadeError]] = {
    401: errors.Unauthorized,
    408: errors.RequestTimeout,
    413: errors.BodyTooLarge,
    429: errors.Overloaded,
    502: errors.Unreachable,
    503: errors.NotReady,
    504: errors.DeadlineExceeded,
}
"""What a status means of which we do not know the body: something before the service said it."""

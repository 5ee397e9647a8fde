"""One connection to one server over HTTP/1.1: a request out, its answer back, within a time.

Not http.client or httpx: an exchange costs them 130 and 600 microseconds of CPU, where the service's whole answer to a
small picture takes a thousand (benchmarks/client.py). This one costs 65; llhttp reads the answers.
"""

import contextlib
import select
import socket
import ssl
import time
from typing import NamedTuple
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from saccade.errors import ServiceError

_PIECE = 2**18
"""Bytes of a body after which to look whether it has been refused meanwhile."""

_FRESH_S, _OLD_S = 0.5, 30.0
"""Of an idle connection: so long it is not looked at, and after so long it is not used again, since what stands between
may have forgotten it without a word."""


class Address(NamedTuple):
    """Where a service is."""

    url: str
    tls: bool
    host: str
    port: int
    authority: str
    """Host and port as the header `Host` wants them."""
    prefix: str
    """Path in front of the service's own, without a slash at its end."""

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Raises ServiceError for what is not the address of a service."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ServiceError(f"{url!r} is not the address of a service: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServiceError(f"{url!r} is not the address of a service: it must begin with http:// or https://")
        if parts.username is not None or parts.query or parts.fragment or not url.isascii() or " " in url:
            raise ServiceError(f"{url!r} is not the address of a service: give scheme, host, port and path alone")
        tls = parts.scheme == "https"
        return cls(
            url=url,
            tls=tls,
            host=parts.hostname,
            port=port if port is not None else 443 if tls else 80,
            authority=parts.netloc,
            prefix=parts.path.rstrip("/"),
        )


class Response(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    """Names in lower case; of a name that comes twice, the last."""
    body: bytes


class NoHttp(Exception):
    """What came back is not HTTP."""


class Connection:
    """Not for two threads at a time, but for `abort`. Opened by the first exchange."""

    def __init__(self, address: Address, tls: ssl.SSLContext | None) -> None:
        self._address = address
        self._tls = tls
        self._socket: socket.socket | None = None
        self._answer: _Answer | None = None
        self._answered = 0.0
        self._aborted = False

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    @property
    def is_stale(self) -> bool:
        """Whether the server has closed it, or sent what nobody asked for, since the last exchange.

        Not looked at in the first half second: servers keep them longer, and to look is a call of the system.
        """
        idle = time.monotonic() - self._answered
        return self._socket is None or idle > _OLD_S or (idle > _FRESH_S and _readable(self._socket))

    @property
    def has_begun_to_answer(self) -> bool:
        """Whether a byte of an answer to the last request came."""
        return self._answer is not None and self._answer.begun

    def exchange(self, head: bytes, body: bytes, timeout: float) -> Response:
        """Sends a request, head and body, and waits for its answer; closed afterwards where the server wants it.

        Raises OSError (TimeoutError after `timeout` seconds, ConnectionError where the server closed it), NoHttp.
        """
        deadline = time.monotonic() + timeout
        self._answer = answer = _Answer()
        try:
            stream = self._socket or self._open(deadline)
            whole = _send(stream, head, body, deadline, answer)
            while not answer.complete:
                stream.settimeout(_left(deadline))
                data = stream.recv(2**16)
                if not data:
                    answer.end()
                    whole = False
                    break
                answer.feed(data)
        except BaseException:
            self.close()
            raise
        if not (whole and answer.keeps_open):
            self.close()
        self._answered, self._answer = time.monotonic(), None
        return answer.response()

    def abort(self) -> None:
        """From another thread: an exchange that is waiting ends with ConnectionError, and the next one too."""
        self._aborted = True
        stream = self._socket
        if stream is not None:
            with contextlib.suppress(OSError):  # not TLS's own: from then on it would send in the clear
                socket.socket.shutdown(stream, socket.SHUT_RDWR)

    def close(self) -> None:
        stream, self._socket = self._socket, None
        if stream is not None:
            stream.close()

    def _open(self, deadline: float) -> socket.socket:
        """Raises ConnectionError where there is no connection in time."""
        problem: OSError = ConnectionError("the name has no address")
        for family, kind, protocol, _, place in socket.getaddrinfo(
            self._address.host, self._address.port, type=socket.SOCK_STREAM
        ):
            self._socket = stream = socket.socket(family, kind, protocol)  # at once, so that it can be aborted
            try:
                if self._aborted:
                    raise ConnectionAbortedError("given up")
                stream.settimeout(_left(deadline))
                stream.connect(place)
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # head and body may be two segments
                if self._tls is not None:
                    stream.settimeout(_left(deadline))
                    self._socket = stream = self._tls.wrap_socket(stream, server_hostname=self._address.host)
                if self._aborted:  # meanwhile
                    raise ConnectionAbortedError("given up")
                return stream
            except TimeoutError:
                problem = ConnectionError("no connection in time")
            except OSError as error:
                problem = error
            self.close()
            stream.close()
        raise problem


class _Answer:
    """What llhttp calls back to while it reads an answer."""

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self.begun = False
        self.has_head = False
        """That of the answer itself, and not of a 100 before it."""
        self.complete = False
        self.keeps_open = False

    def feed(self, data: bytes) -> None:
        self.begun = True
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not self.complete:
                raise NoHttp(str(error)) from error
            self.keeps_open = False

    def end(self) -> None:
        """The server closed the connection: the end of an answer that does not say its length. Or ConnectionError."""
        framed = b"content-length" in self._headers or b"transfer-encoding" in self._headers
        if framed or not self.has_head:
            raise ConnectionResetError("the connection was closed before the answer was whole")

    def response(self) -> Response:
        return Response(self._status, self._headers, b"".join(self._pieces))

    def on_message_begin(self) -> None:
        if self.complete:  # something that nobody asked for follows
            self.keeps_open = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if not self.complete:
            self._status = self._parser.get_status_code()
            self.has_head = self._status >= 200

    def on_body(self, data: bytes) -> None:
        if not self.complete:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self.complete:
            return
        if self.has_head:
            self.complete = True
            self.keeps_open = self._parser.should_keep_alive()  # which it forgets behind the message
        else:  # 100 Continue and the like: the answer is still to come
            self._headers = {}


def _send(stream: socket.socket, head: bytes, body: bytes, deadline: float, answer: _Answer) -> bool:
    """Whether all of it went out: a server may refuse a body while it is on its way, and says so before it closes."""
    stream.settimeout(_left(deadline))
    try:
        if len(body) <= _PIECE:
            stream.sendall(head + body)
            return True
        stream.sendall(head)
        with memoryview(body) as view:
            for start in range(0, len(body), _PIECE):
                if not isinstance(stream, ssl.SSLSocket) and _readable(stream):  # with TLS it may be a ticket
                    data = stream.recv(2**16)
                    if data:
                        answer.feed(data)
                    if not data or answer.has_head:
                        return False
                stream.settimeout(_left(deadline))
                stream.sendall(view[start : start + _PIECE])
    except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
        return False  # why is in the answer, if there is one
    return True


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _readable(stream: socket.socket) -> bool:
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(0))

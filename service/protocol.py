"""The connection: uvicorn's protocol, with a bound on all that a caller could draw out, and refusals in our words.

Where nothing is wrong it costs a request some assignments: times are compared by `look`, a few times a second.
"""

import asyncio
import math
import socket
import struct
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from saccade.errors import HeadTooLarge, MalformedRequest, Overloaded, RequestTimeout, SaccadeError
from service.edge import new_request_id, refuse
from service.metrics import Metrics
from service.settings import Settings

_LINGER_S = 5.0
"""To read a refusal in, for a caller who was still sending."""

_SMALL_REST = 2**18
"""Of a body that nobody reads, what is dropped so that the connection can be kept: one read of the event loop."""

_AHEAD = 8
"""Requests that may wait on a connection for the answer of one before them. Each costs some kilobytes, and one read
of the event loop could bring fifteen thousand."""

_FIELD = 32
"""Bytes that a header counts beside its own, as in RFC 9113, 6.5.2: a thousand empty ones are no small head."""


class Protocol(HttpToolsProtocol):
    """One connection. To be looked at some times a second."""

    def __init__(self, settings: Settings, metrics: Metrics, max_connections: int, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.headers = []
        self._settings = settings
        self._metrics = metrics
        self._max_connections = max_connections
        self._outlet = cast(asyncio.Transport, _Outlet(self))  # of which a request uses three methods
        self._lingering = cast(asyncio.Transport, _Lingering(self))
        self._running: RequestResponseCycle | None = None
        self._begun = False
        """Whether the head of the running answer has been written."""
        self._held = b""
        """It, until the first of its body comes."""
        self._due = math.inf
        """When the caller is late with what it is waited for, of loop.time()."""
        self._stalled = math.inf
        """When the caller should have read what is ready for it."""
        self._over = False
        """Nothing more is read: what comes is dropped, and the connection closed in the end."""
        self._in_head = self._in_body = self._upgrades = False
        self._head_bytes = -1
        """Of a head that came in several reads, without the first; -1 before the first."""
        self._body_bytes = 0
        """Of all bodies of the connection."""
        self._chunk_bytes = self._body_began = 0
        """Of this body: what was sent around it, and the place in `_body_bytes` at which it began."""
        self._keep_alive = False
        """Whether the connection may be kept once the body of the running request is there."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._due = self.loop.time() + self._settings.head_timeout_s
        if len(self.connections) > self._max_connections:
            most = self._max_connections
            self._say(Overloaded(f"there are {most} connections and no more are taken"))
            self._over = True
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.server_state.total_requests += 1  # after more of them memory is given back, and a refusal took some too
        for cycle in (self.cycle, self._running, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None:
                cycle.transport = self.transport  # no circle of references is left: the collector comes seldom
        del self._outlet, self._lingering
        if self._running is not None and not self._running.response_complete:  # uvicorn tells the last one only
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        step = self._settings.max_head_bytes
        if len(data) <= step:
            self._read(data)
        else:  # some of it may be a head or trailers, and become a hundred times as many bytes of headers
            for start in range(0, len(data), step):
                self._read(data[start : start + step])

    def look(self, now: float) -> None:
        """Ends what takes the caller too long."""
        if now >= self._stalled:
            self._cut()
        elif now >= self._due:
            if self._over or self.transport.is_closing():
                self._cut()
            elif self._in_head and not self._answering:
                seconds = self._settings.head_timeout_s
                self._refuse(RequestTimeout(f"the head of the request was not there within {seconds:g} s"))
            else:  # nobody asked for anything
                self.close()

    def close(self) -> None:
        """Once all is sent; and if that takes too long, before."""
        self.flush()
        self._over = True
        self._due = self.loop.time() + self._settings.transfer_timeout_s
        self.transport.close()

    def linger(self) -> None:
        """Closes as soon as the caller does, or had time to read: what was sent and not read would reset the connection
        at once, and the answer with it (RFC 9112, 9.6).
        """
        if not self.transport.is_closing():
            self._over = True
            self.flush()
            self.pipeline.clear()
            self._due = self.loop.time() + _LINGER_S
            self.flow.resume_reading()
            self.transport.write_eof()

    # what httptools says

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _AHEAD:
            raise MalformedRequest(f"more than {_AHEAD} requests were sent ahead of their answers")
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = -1

    def on_headers_complete(self) -> None:
        if self._size > self._settings.max_head_bytes:
            raise self._too_large(self._size)
        self._upgrades = self.parser.should_upgrade()
        if self._upgrades:
            if self.parser.get_method() == b"CONNECT":
                raise MalformedRequest("CONNECT asks for a proxy, and this is none")
            return
        super().on_headers_complete()
        self.cycle.transport = self._outlet
        self.headers = []  # trailers come here: the application has its headers, and nobody has a use for those
        self._in_head = False
        self._in_body = True
        self._chunk_bytes, self._body_began = 0, self._body_bytes
        if not self.pipeline:
            self._running = self.cycle
            self._due = math.inf

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrades:
            return
        self._in_body = False
        if self.cycle.transport is self._lingering:
            self.cycle.transport = self._outlet
            if not self.cycle.response_started:
                self.cycle.keep_alive = self._keep_alive
        super().on_message_complete()

    # what uvicorn says

    def on_response_complete(self) -> None:
        """As uvicorn's, but for its timer: a connection that waits for nothing is seen by `look`."""
        self.server_state.total_requests += 1
        self.flush()
        self._begun = False
        if self._over and not self.pipeline:
            return
        if self.transport.is_closing():
            self._due = self.loop.time() + self._settings.transfer_timeout_s
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._running, app = self.pipeline.pop()
            self._start_asgi_task(self._running, app)
        else:
            wait = self._settings.head_timeout_s if self._in_head else self.timeout_keep_alive
            self._due = self.loop.time() + wait

    def put(self, data: bytes) -> None:
        """Writes a piece of the running answer. Its head waits for the next: together they are one call of the system,
        one packet, and one reason for the caller to wake.
        """
        assert self._running is not None
        if self._held:
            head, self._held = self._held, b""
            self.transport.writelines((head, data))
        elif self._running.response_started and not self._begun:
            self._begun = True
            self._held = data
        else:
            self.transport.write(data)

    def flush(self) -> None:
        """Writes the head of an answer that has no body, or that ends before it."""
        if self._held:
            head, self._held = self._held, b""
            self.transport.write(head)

    def shutdown(self) -> None:
        self._keep_alive = False
        super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.time() + self._settings.transfer_timeout_s

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled = math.inf

    # the rest

    @property
    def _size(self) -> int:
        """Of the head, as far as it is there."""
        return len(self.url) + sum([len(name) + len(value) + _FIELD for name, value in self.headers])

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _read(self, data: bytes) -> None:
        if self._over:
            return
        cycle, body_bytes = self.cycle, self._body_bytes
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._refuse(_reason(error))
            return
        if self._in_head:
            self._wait_for_the_head(len(data))
            return
        self.headers.clear()  # trailers
        if self._in_body:
            if cycle is not self.cycle:
                self._wait_for_the_body()
                return
            self._chunk_bytes += len(data) - (self._body_bytes - body_bytes)
            limit = self._settings.max_head_bytes + self._body_bytes - self._body_began
            if self._chunk_bytes > limit:
                self._refuse(MalformedRequest(f"the chunks have {self._chunk_bytes} bytes around {limit} of the body"))

    def _feed(self, data: bytes) -> None:
        """To the parser, which would take what follows a request for an upgrade as something else than its body. Such
        a request is answered as if it had not asked (RFC 9110, 7.8); Java's HttpClient sends one first.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
                kept = [b"%s: %s" % field for field in self.headers if field[0] != b"upgrade"]
                data = b"\r\n".join([line, *kept, b"", data[upgrade.args[0] :]])
                self.parser = httptools.HttpRequestParser(self)
            else:
                return

    def _wait_for_the_head(self, size: int) -> None:
        if self._head_bytes < 0:
            self._head_bytes = 0  # that read may have held the end of another request
            if self.cycle is not None and not self._answering:
                self._due = self.loop.time() + self._settings.head_timeout_s
        else:
            self._head_bytes += size
        seen = max(self._head_bytes, self._size)
        if seen > self._settings.max_head_bytes:
            self._refuse(self._too_large(seen))

    def _wait_for_the_body(self) -> None:
        """Before the application says anything: unless the rest of the body comes before its answer, or is small, the
        connection will have to be closed; as it is where a 100 is expected, since who never got one may leave the body
        out (RFC 9110, 10.1.1).
        """
        lengths = [int(value) for name, value in self.scope["headers"] if name == b"content-length"]
        self._keep_alive = self.cycle.keep_alive
        self.cycle.transport = self._lingering
        if not lengths or lengths[0] > _SMALL_REST or self.expect_100_continue:
            self.cycle.keep_alive = False

    def _too_large(self, size: int) -> HeadTooLarge:
        limit = self._settings.max_head_bytes
        return HeadTooLarge(f"the request line and the headers have at least {size} bytes; the limit is {limit}")

    def _refuse(self, error: SaccadeError) -> None:
        """Ends the connection with a refusal; requests before this one are answered still."""
        cycle = self.cycle
        self.headers.clear()  # which may be many; those of a request that runs are another list
        if self._answering and (self.pipeline or not cycle.more_body):
            self._over = True
            cycle.keep_alive = False
            cycle.transport = self._lingering
            return
        if self._answering:  # it is the body of this one
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.linger()
                return
        self._say(error)
        self.linger()

    def _say(self, error: SaccadeError) -> None:
        request_id = new_request_id()
        response = refuse(self._metrics, error, request_id, {"connection": "close"})
        if self._answering:
            self.cycle.scope["state"]["answered"] = response.status_code  # the edge counts it
        else:
            self._metrics.request("other", response.status_code)
        own = (b"x-request-id", request_id.encode())
        headers = [*self.server_state.default_headers, *response.raw_headers, own]
        head = b"".join([b"%s: %s\r\n" % header for header in headers])
        self.transport.write(b"%s%s\r\n%s" % (STATUS_LINE[response.status_code], head, bytes(response.body)))

    def _cut(self) -> None:
        """With what was not read: the system would offer it for minutes more, from megabytes of its own."""
        self._over = True
        self._due = self._stalled = math.inf
        reset = struct.pack("ii", 1, 0)  # l_onoff, l_linger
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        self.transport.abort()


class _Outlet:
    """What a request writes to."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def write(self, data: bytes) -> None:
        self._protocol.put(data)

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        self._protocol.close()


class _Lingering(_Outlet):
    """What it writes to while its body is not all there: closing it leaves time to read the answer."""

    def close(self) -> None:
        self._protocol.linger()


def _reason(error: httptools.HttpParserError) -> SaccadeError:
    if not isinstance(error, httptools.HttpParserCallbackError):
        return MalformedRequest(f"the request is not HTTP/1.1: {error}")
    cause = error.__context__  # of one of the methods above
    return cause if isinstance(cause, SaccadeError) else MalformedRequest("the request's target cannot be read")

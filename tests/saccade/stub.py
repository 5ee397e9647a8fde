"""A server that answers what it is told to, byte by byte: for what no real service does on demand."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

ANSWER = {
    "request_id": "1",
    "model": {"name": "stub", "version": 1},
    "labels": [{"label": "cat", "index": 3, "score": 0.5}],
    "maps": [],
    "attention": None,
    "geometry": {
        "image": {"width": 2, "height": 2},
        "region": {"left": 0.0, "top": 0.0, "width": 2.0, "height": 2.0},
    },
    "timing": {"decode_ms": 0.0, "queue_ms": 0.0, "run_ms": 0.0, "total_ms": 0.0, "batch_size": 1},
}
CLOSE = b""
"""In a script: read the request, then close the connection without a word."""
HANG = None
"""In a script: read the request and say nothing until the caller leaves."""


class Request(NamedTuple):
    at: float
    head: str
    body: bytes


def response(status: int, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}", "content-type: application/json", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def good() -> bytes:
    return response(200, json.dumps(ANSWER).encode())


def refusal(status: int, code: str, *headers: str) -> bytes:
    body = json.dumps({"error": f"this is {code}", "code": code, "request_id": "1"}).encode()
    return response(status, body, *headers)


class Stub:
    """Answers the requests of all connections from one script, in turn, its last entry for ever; or by a function."""

    def __init__(
        self,
        *script: bytes | Callable[["Request"], bytes | None] | None,
        closes: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`closes`: the connection, after each answer, without saying so before."""
        self._script = list(script)
        self._closes = closes
        self._tls = tls
        self._lock = threading.Lock()
        self.requests: list[Request] = []
        self.connections = self.open = 0
        self.changed = threading.Condition()
        self.hanging = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"{'https' if tls else 'http'}://localhost:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Stub":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self.changed:
                self.connections += 1
                self.open += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as file:
                while (request := _read(file)) is not None:
                    with self._lock:
                        self.requests.append(request)
                        answer = self._script[0] if len(self._script) == 1 else self._script.pop(0)
                        answer = answer(request) if callable(answer) else answer
                    if answer == CLOSE and answer is not None:
                        return
                    if answer is None:
                        self.hanging.set()
                        file.read(1)  # until the caller leaves
                        return
                    connection.sendall(answer)
                    if self._closes:
                        return
        except OSError:
            pass
        finally:
            with self.changed:
                self.open -= 1
                self.changed.notify_all()

    def all_left(self) -> bool:
        """Whether each connection is closed; waits for it."""
        with self.changed:
            return self.changed.wait_for(lambda: self.open == 0, 20)


def _read(file: Iterable[bytes]) -> Request | None:
    lines: list[str] = []
    length = 0
    for line in file:
        if line == b"\r\n":
            body = file.read(length)  # type: ignore[attr-defined]
            return Request(time.monotonic(), "".join(lines), body)
        lines.append(line.decode("latin-1"))
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return None

"""A hub of one model on the loopback: the few routes that huggingface_hub asks for, with faults on request."""

import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

COMMIT = "a" * 40
LARGE = ".safetensors"
"""Such files are in Git LFS, and named by their sha256; others by their Git checksum."""


def checksum(name: str, content: bytes) -> str:
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class SmallHub:
    """`with SmallHub("owner/model", files) as hub`: `hub.url`, and `hub.fault[name]` of what is asked next.

    `cut` ends the connection half-way, `damage` flips a byte, `refuse` answers 500; each happens once. `served` counts
    the bytes of each file that were sent.
    """

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        self.name, self.files = name, files
        self.fault: dict[str, str] = {}
        self.served: Counter[str] = Counter()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "SmallHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path
        if path.startswith(f"/api/models/{self.name}/revision/"):
            known = path.endswith(("/main", COMMIT))
            error = {} if known else {"X-Error-Code": "RevisionNotFound"}
            body = {"id": self.name, "sha": COMMIT, "siblings": []} if known else {}
            self._send(request, 200 if known else 404, json.dumps(body).encode(), error)
        elif path == f"/api/models/{self.name}/tree/{COMMIT}":
            self._send(request, 200, json.dumps([self._entry(name) for name in self.files]).encode())
        elif path.startswith(f"/{self.name}/resolve/{COMMIT}/"):
            self._file(request, path.rpartition("/")[2])
        else:
            self._send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _entry(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        entry = {"type": "file", "path": name, "size": len(content), "oid": checksum("", content)}
        if name.endswith(LARGE):
            entry["lfs"] = {"oid": checksum(name, content), "size": len(content), "pointerSize": 128}
        return entry

    def _file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        content = self.files[name]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{checksum(name, content)}"', "Accept-Ranges": "bytes"}
        fault = None if request.command == "HEAD" else self.fault.pop(name, None)
        if fault == "refuse":
            self._send(request, 500, b"{}")
            return
        if fault == "damage":
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(request, 206 if start else 200, content[start:], headers, cut=fault == "cut")
        if request.command == "GET":
            self.served[name] += (len(content) - start) // (2 if fault == "cut" else 1)

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        cut: bool = False,
    ) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            request.close_connection = True

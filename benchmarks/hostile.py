"""What hostile requests cost: status, CPU, memory beyond the level, and how long a health probe waits beside them.

    python -m benchmarks.hostile [--callers 64] [--only NAME]

Starts a service on models/ and sends each of `CASES` from so many callers at once; a table for docs/robustness.md.
Linux; the callers run on the same CPUs, so the probe's times are upper bounds.
"""

import argparse
import contextlib
import http.client
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.process import PROC, cpu_seconds

MIB = 2**20
BODY = 20 * MIB  # max_body_bytes
SETTLE_S = 11  # the service gives memory back every ten seconds
ENVIRONMENT = {
    "SACCADE_PORT": "0",
    "SACCADE_DEFAULT_MODEL": "cifar10-hybrid-s",
    "SACCADE_TRANSFER_TIMEOUT_S": "20",
    "SACCADE_TIMEOUT_MS": "60000",
}


def post(kind: str = "application/octet-stream", length: int | None = None) -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST /v1/classify HTTP/1.1\r\nHost: here\r\nContent-Type: {kind}\r\n{size}\r\n\r\n".encode()


def json_of(body: bytes) -> list[bytes]:
    return [post("application/json", len(body)), body]


def form_of(body: bytes) -> list[bytes]:
    return [post("multipart/form-data; boundary=x", len(body)), body]


def file_of(content: bytes) -> list[bytes]:
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return form_of(head + content + b"\r\n--x--\r\n")


LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n"
PART = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
SCRIPT = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: here\r\n\r\n"  # 1.5 MB
CASES: dict[str, Sequence[bytes]] = {
    "body of 20 MiB": [post(length=BODY), b"x" * BODY],
    "the same in chunks": [post(), *[b"10000\r\n" + b"x" * 2**16 + b"\r\n"] * 319, b"0\r\n\r\n"],
    "JSON, 20 MiB of base64": json_of(b'{"image":"' + b"A" * (BODY - 16) + b'"}'),
    "JSON, each character escaped": json_of(b'{"image":"' + b"\\u0041" * (BODY // 6 - 4) + b'"}'),
    "JSON, 20 MiB of `[{},{},…`": json_of(b"[" + b"{}," * (BODY // 3 - 2) + b"1]"),
    "JSON, 20 MiB of `[[[[…`": json_of(b"[" * BODY),
    "form with a file of 20 MiB": file_of(os.urandom(BODY - 200)),
    "form, 20 MiB of line ends": file_of(b"\r\n" * (BODY // 2 - 100)),
    "form of 10,000 parts": form_of(PART * 10_000),
    "100 MiB against 20, declared": [post(length=100 * MIB), *[b"x" * MIB] * 100],
    "100 MiB against 20, in chunks": [post(), *[b"100000\r\n" + b"x" * MIB + b"\r\n"] * 100],
    "header of 100 MiB": [b"GET / HTTP/1.1\r\nX: ", *[b"a" * MIB] * 100],
    "a million headers": [b"GET / HTTP/1.1\r\n", *[b"X: a\r\n" * 100_000] * 10, b"\r\n"],
    "chunk extension of 50 MiB": [post() + b"5;a=", *[b"x" * MIB] * 50],
    "10,000 requests sent ahead": [LIVE * 10_000],
    "nine answers of 1.5 MB, unread": [SCRIPT * 9],
    "body of 20 MiB but for a byte": [post(length=BODY), b"x" * (BODY - 1)],
}


class Service:
    """`python -m service` on a free port."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "service"]
        self._process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        found = next(filter(None, (re.search(r"ready on http://\S+:(\d+)", line) for line in self._process.stderr)))
        self.port = int(found[1])
        self.pid = self._process.pid

    def memory(self, field: str) -> int:
        """MiB: VmRSS is the level, VmHWM the peak since `forget`."""
        found = re.search(rf"{field}:\s+(\d+) kB", (PROC / str(self.pid) / "status").read_text())
        assert found
        return int(found[1]) // 1024

    def forget(self) -> None:
        (PROC / str(self.pid) / "clear_refs").write_text("5")

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate()


@contextlib.contextmanager
def probe(port: int) -> Iterator[list[float]]:
    """Asks for the service's health some hundred times a second; the milliseconds that it took."""
    found: list[float] = []
    done = threading.Event()

    def ask() -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            while not done.wait(0.01):
                began = time.perf_counter()
                connection.request("GET", "/v2/health/live")
                connection.getresponse().read()
                found.append((time.perf_counter() - began) * 1000)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def send(port: int, parts: Sequence[bytes], reads: bool) -> str:
    """The status of the first answer, or what happened instead."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        with contextlib.suppress(OSError):
            for part in parts:
                connection.sendall(part)
        if not reads:
            time.sleep(25)  # longer than transfer_timeout_s
        try:
            return connection.recv(16)[9:12].decode() or "closed"
        except ConnectionError:
            return "cut"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    service = Service()
    print("| of each | answer | CPU, s | MiB beyond the level | after | probe, ms: median, longest |")
    print("|---|---|---|---|---|---|")
    for name, parts in CASES.items():
        if options.only not in name:
            continue
        service.forget()
        level, cpu = service.memory("VmRSS"), cpu_seconds(service.pid)
        with probe(service.port) as times, ThreadPoolExecutor(options.callers) as threads:
            asked = [threads.submit(send, service.port, parts, "unread" not in name) for _ in range(options.callers)]
            statuses = Counter(one.result() for one in asked)
        cpu, peak = cpu_seconds(service.pid) - cpu, service.memory("VmHWM") - level
        time.sleep(SETTLE_S)
        after = service.memory("VmRSS") - level
        said = ", ".join(f"{status}" for status in sorted(statuses))
        print(
            f"| {name} | {said} | {cpu:.1f} | {peak} | {after:+} | {statistics.median(times):.0f}, {max(times):.0f} |",
            flush=True,
        )
    files = len(list((PROC / str(service.pid) / "fd").iterdir()))
    print(f"\nlevel at the end: {service.memory('VmRSS')} MiB; open files: {files}")
    service.stop()


if __name__ == "__main__":
    main()

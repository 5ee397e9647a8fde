"""Open-loop load: requests arrive at random, at a rate that the server's answers do not change.

Arrivals are drawn in advance. Each is sent when due, on a free connection or a new one, and its latency counts from
when it was due, so that no wait is left out, the generator's own included. Prints a `Load` as one line of JSON.
"""

import argparse
import asyncio
import ctypes
import gc
import json
import os
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import numpy as np
import uvloop

from benchmarks.load import Load
from benchmarks.stats import percentile

LATE_S = 0.005
IDLE_S = 1.0
"""A connection that was free for longer is not used again: the server may be closing it (gunicorn does after 2 s)."""
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
CLOCK_MONOTONIC, TIMER_ABSTIME = 1, 1  # linux/time.h
clock = time.monotonic


class UnknownAnswer(RuntimeError):
    """The server says something that this generator does not read, so its figures would be wrong."""


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests are due, from 0 to `seconds`: a Poisson process, with exponential gaps of 1/rate on average."""
    generator = np.random.default_rng(seed)
    times: list[float] = []
    at = generator.exponential(1 / rate)
    while at < seconds:
        times.append(at)
        at += generator.exponential(1 / rate)
    return times


def request_bytes(url: str, body: bytes | None, media_type: str) -> bytes:
    """The request as it goes over the wire, with the headers that wrk sends. No body: GET."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if body is None:
        return f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    head = f"POST {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {media_type}\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def read_head(head: bytes) -> tuple[int, int, bool]:
    """(status, content-length, whether the connection stays) of an answer's head, without its last empty line."""
    length = LENGTH.search(head)
    if not head.startswith(b"HTTP/1.") or (length is None and head[9:12] not in {b"204", b"304"}):
        raise UnknownAnswer(f"an answer without content-length, which is all that is read here: {head!r}")
    return int(head[9:12]), int(length[1]) if length else 0, head[7:8] == b"1" and not CLOSE.search(head)


class Timer:
    """Calls `wake` at a time of `clock`, to some 0.1 ms; the loop's own timers count milliseconds, and spin."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.file = self.libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.file < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        loop.add_reader(self.file, wake)

    def set(self, at: float | None) -> None:
        """Also takes back a call that is due already, so that `wake` need not read the file; None: no further call."""
        value = struct.pack("4q", 0, 0, int(at), int(at % 1 * 1e9)) if at is not None else bytes(32)
        self.libc.timerfd_settime(self.file, TIMER_ABSTIME, value, None)


class Connection(asyncio.Protocol):
    """One connection, with at most one request on it: `due` says when that was due, None that there is none."""

    def __init__(self, run: "Run", due: float) -> None:
        self.run = run
        self.due: float | None = due
        self.head = b""
        self.rest: int | None = None  # bytes of the body still to come; None until the head is there
        self.status = 0
        self.stays = True
        self.free_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.run.request)

    def data_received(self, data: bytes) -> None:
        if self.rest is None:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            try:
                self.status, length, self.stays = read_head(self.head[:end])
            except UnknownAnswer as error:
                self.run.fail(error)
                return
            self.rest = length - (len(self.head) - end - 4)
            self.head = b""
        else:
            self.rest -= len(data)
        if self.rest < 0 or self.due is None:
            self.run.fail(UnknownAnswer("bytes beyond the answer"))
        elif self.rest == 0:
            self.rest = None
            self.run.answered(self, self.due)

    def connection_lost(self, _: Exception | None) -> None:
        self.run.open -= 1
        if self.due is not None:
            self.run.unanswered()


class Run:
    """One load on one server. Only requests due in the window from `start` to `end` count; those before it warm up."""

    def __init__(self, address: tuple[str, int], request: bytes, due: list[float], limit: int) -> None:
        self.address, self.request, self.due, self.limit = address, request, due, limit
        self.open = self.sent = self.waiting = self.late = self.dropped = self.came = 0
        self.over = False
        self.free: list[Connection] = []
        self.connecting: set[asyncio.Task[None]] = set()
        self.statuses: Counter[str] = Counter()
        self.accepted: list[float] = []
        self.refused: list[float] = []

    async def __call__(self, warmup: float, seconds: float, drain: float) -> Load:
        self.loop = asyncio.get_running_loop()
        self.done = self.loop.create_future()
        begin = clock() + 0.05
        self.start, self.end = begin + warmup, begin + warmup + seconds
        self.due = [begin + at for at in self.due]
        offered = sum(at >= self.start for at in self.due)
        busy: list[float] = []
        self.loop.call_later(self.start - clock(), lambda: busy.append(time.process_time()))

        def close_window() -> None:
            busy.append(time.process_time())
            self.over = True
            self.finish()

        self.loop.call_later(self.end - clock(), close_window)
        self.timer = Timer(self.loop, self.send_due)
        self.timer.set(begin)
        await asyncio.wait([self.done], timeout=self.end - clock() + drain)
        if self.done.done():
            self.done.result()
        return Load(
            requests=self.statuses.total(),
            ok=len(self.accepted),
            statuses=dict(self.statuses),
            errors=offered - self.statuses.total() - self.dropped,
            seconds=seconds,
            throughput=self.came / seconds,
            p50_s=percentile(self.accepted, 50),
            p99_s=percentile(self.accepted, 99),
            refusal_p50_s=percentile(self.refused, 50),
            refusal_p99_s=percentile(self.refused, 99),
            generator_cpu_share=(busy[1] - busy[0]) / seconds,
            offered=offered / seconds,
            late=self.late,
            dropped=self.dropped,
        )

    def send_due(self) -> None:
        now = clock()  # once: a generator that falls behind still goes back to the loop, and reads answers
        while self.sent < len(self.due) and self.due[self.sent] <= now:
            self.send(self.due[self.sent])
            self.sent += 1
        self.timer.set(self.due[self.sent] if self.sent < len(self.due) else None)

    def send(self, due: float) -> None:
        now = clock()
        self.late += due >= self.start and now - due > LATE_S
        while self.free:
            connection = self.free.pop()
            if not connection.transport.is_closing() and now - connection.free_since < IDLE_S:
                connection.due = due
                connection.transport.write(self.request)
                self.waiting += 1
                return
            connection.transport.close()
        if self.open >= self.limit:
            self.dropped += due >= self.start
            return
        self.open += 1
        self.waiting += 1
        task = self.loop.create_task(self.connect(due))
        self.connecting.add(task)
        task.add_done_callback(self.connecting.discard)

    async def connect(self, due: float) -> None:
        try:
            await self.loop.create_connection(lambda: Connection(self, due), *self.address)
        except OSError:
            self.open -= 1
            self.unanswered()

    def answered(self, connection: Connection, due: float) -> None:
        now = clock()
        connection.due, connection.free_since = None, now
        if connection.stays:
            self.free.append(connection)
        else:
            connection.transport.close()
        good = 200 <= connection.status < 300
        self.came += good and self.start <= now < self.end
        if due >= self.start:
            self.statuses[str(connection.status)] += 1
            if good:
                self.accepted.append(now - due)
            elif connection.status in {429, 503}:
                self.refused.append(now - due)
        self.waiting -= 1
        self.finish()

    def unanswered(self) -> None:
        self.waiting -= 1
        self.finish()

    def finish(self) -> None:
        if self.over and self.sent == len(self.due) and not self.waiting and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, required=True, help="requests a second, on average")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warmup", type=float, default=0, help="seconds of the same load before, not counted")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--body", type=Path, help="POST this file; without it, GET")
    parser.add_argument("--media-type", default="application/octet-stream")
    parser.add_argument("--connections", type=int, default=2048, help="the most at a time; a request beyond is dropped")
    parser.add_argument("--timeout", type=float, default=15, help="seconds after the end for the answers still to come")
    arguments = parser.parse_args()
    parts = urlsplit(arguments.url)
    if parts.scheme != "http" or parts.hostname is None:
        parser.error(f"only http:// is spoken, not {arguments.url}")
    body = arguments.body.read_bytes() if arguments.body else None
    try:
        with socket.create_connection((parts.hostname, parts.port or 80), timeout=arguments.timeout) as reached:
            host, port = reached.getpeername()[:2]  # a name may stand for several addresses; one of them answers
    except OSError as error:
        parser.exit(1, f"{arguments.url} cannot be reached: {error}\n")
    due = arrivals(arguments.rate, arguments.warmup + arguments.seconds, arguments.seed)
    run = Run((host, port), request_bytes(arguments.url, body, arguments.media_type), due, arguments.connections)
    gc.freeze()
    gc.disable()  # a pause would be measured as the server's
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            load = runner.run(run(arguments.warmup, arguments.seconds, arguments.timeout))
    except UnknownAnswer as error:
        parser.exit(1, f"{error}\n")
    print(json.dumps(load._asdict()))


if __name__ == "__main__":
    main()

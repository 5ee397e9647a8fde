"""The load generators, against a small server that counts what it is asked and what it answers."""

import asyncio
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load import as_measured, closed, open_loop

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="the closed loop needs wrk (Debian package `wrk`)")
BODY = bytes(range(256)) * 300  # more than one packet, and every byte


class Counting:
    """A server that answers the n-th request, from 1, as `behaviour` says; what it saw and said stays for the test."""

    def __init__(self, behaviour: str) -> None:
        self.behaviour = behaviour
        self.asked: list[tuple[bytes, bytes]] = []
        self.said: Counter[str] = Counter()
        self.connections: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self.connection, sock=listener)
        await stop.wait()
        server.close()
        for task in self.connections:
            task.cancel()
        await asyncio.gather(*self.connections, return_exceptions=True)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        task.add_done_callback(self.connections.discard)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                self.asked.append((head, await reader.readexactly(length)))
                if not await self.answer(len(self.asked), writer):
                    break
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def answer(self, number: int, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays."""
        status = "429" if self.behaviour == "every second refused" and number % 2 == 0 else "200"
        if self.behaviour == "every third unanswered" and number % 3 == 0:
            self.said["closed"] += 1
            return False
        if self.behaviour == "one second late" or (self.behaviour == "every tenth slow" and number % 10 == 0):
            await asyncio.sleep(1 if self.behaviour == "one second late" else 0.05)
        self.said[status] += 1
        close = b"Connection: close\r\n" if self.behaviour == "one answer a connection" else b""
        size = b"Transfer-Encoding: chunked" if self.behaviour == "chunked" else b"Content-Length: 2"
        text = b"2\r\n{}\r\n0\r\n\r\n" if self.behaviour == "chunked" else b"{}"
        message = b"HTTP/1.1 %s Why\r\n%s%s\r\n\r\n%s" % (status.encode(), close, size, text)
        step = 1 if self.behaviour == "byte by byte" else len(message)
        for start in range(0, len(message), step):
            writer.write(message[start : start + step])
            await asyncio.sleep(0)  # the generator reads what there is
        return not close


@contextmanager
def counting(behaviour: str = "") -> Iterator[tuple[Counting, str]]:
    """(a running server, its URL)."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/classify?top_k=3&maps=none"
    server, stop, loop = Counting(behaviour), asyncio.Event(), asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve(listener, stop)))
    thread.start()
    try:
        yield server, url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.fixture
def body(tmp_path: Path) -> Path:
    """The file that is sent."""
    file = tmp_path / "body.bin"
    file.write_bytes(BODY)
    return file


def scheduled(rate: float, seconds: float, seed: int, warmup: float = 0) -> int:
    """How many arrivals of a Poisson process lie between the end of the warm-up and the end."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(10 * rate * (warmup + seconds)) + 100)
    return sum(warmup <= at < warmup + seconds for at in accumulate(gaps))


@needs_wrk
def test_the_closed_loop_sends_the_file_and_counts_what_the_server_counts(body: Path) -> None:
    """A figure is of the request that was meant; only what was under way at the end, one a caller, is left out."""
    with counting() as (server, url):
        load = closed(url, body, "image/png", callers=4, seconds=1)
    assert load.requests == load.ok == load.statuses["2xx"] > 0
    assert 0 <= server.said["200"] - load.requests <= 4
    assert load.errors == 0
    assert load.throughput == load.ok / load.seconds
    assert load.p50_s is not None
    assert load.p99_s is not None
    assert 0 < load.p50_s <= load.p99_s
    head, content = server.asked[0]
    assert head.startswith(b"POST /v1/classify?top_k=3&maps=none HTTP/1.1\r\n")
    assert b"content-type: image/png\r\n" in head.lower()
    assert content == BODY


@needs_wrk
def test_the_closed_loop_shows_refusals(body: Path) -> None:
    """A server cannot look fast by refusing: a refusal is no throughput, and hides in no latency."""
    with counting("every second refused") as (_, url):
        load = closed(url, body, "image/png", callers=1, seconds=1)
    assert load.statuses == {"2xx": load.ok, "non-2xx": load.requests // 2}
    assert load.ok == load.requests - load.requests // 2
    assert load.p50_s is load.p99_s is None


@needs_wrk
def test_the_closed_loop_shows_answers_that_never_came(body: Path) -> None:
    """A closed connection is an error, not a request that was never made."""
    with counting("every third unanswered") as (server, url):
        load = closed(url, body, "image/png", callers=1, seconds=1)
    assert load.errors > 0
    assert 0 <= server.said["closed"] - load.errors <= 1


@needs_wrk
def test_the_closed_loops_latencies_are_of_answers_that_came(body: Path) -> None:
    """wrk makes up nearly as many for one slow answer in ten; `closed` refuses them if any is left in."""
    with counting("every tenth slow") as (_, url):
        load = closed(url, body, "image/png", callers=2, seconds=1)
    assert load.p99_s is not None
    assert load.p99_s >= 0.05


def test_what_wrk_makes_up_is_taken_out_again() -> None:
    """Its correction, retyped from stats_correct in wrk 4.1's stats.c, is undone exactly."""
    generator = np.random.default_rng(3)
    came = Counter(generator.integers(1, 900, 4000).tolist())
    for expected in (1, 40, 299, 450, 5000):
        corrected = Counter(came)
        for latency in range(2 * expected, 900):
            for earlier in range(latency - expected, expected, -expected):
                corrected[earlier] += came[latency]
        seconds = as_measured(sorted(corrected.items()), expected)
        assert Counter(round(value * 1e6) for value in seconds) == came


@needs_wrk
def test_without_a_file_both_loops_ask_with_get() -> None:
    """Health pages can be measured too."""
    with counting() as (server, url):
        closed(url, None, None, callers=1, seconds=1)
        assert server.asked[-1][0].startswith(b"GET /v1/classify?")
        open_loop(url, None, None, rate=50, seconds=0.2, seed=0)
        assert server.asked[-1][0].startswith(b"GET /v1/classify?")


def test_without_wrk_the_closed_loop_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody has to search for it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get install wrk"):
        closed("http://127.0.0.1:1/", None, None, callers=1, seconds=1)


def test_the_closed_loop_runs_for_whole_seconds() -> None:
    """wrk would cut 1.5 down to 1, and the figure would be of another run than was asked for."""
    with pytest.raises(ValueError, match="whole seconds"):
        closed("http://127.0.0.1:1/", None, None, callers=1, seconds=1.5)


@needs_wrk
def test_a_server_that_is_not_there_is_no_figure(body: Path) -> None:
    """Both loops say so at once."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
    with pytest.raises(RuntimeError, match="unable to connect"):
        closed(url, body, "image/png", callers=1, seconds=1)
    with pytest.raises(RuntimeError, match="cannot be reached"):
        open_loop(url, body, "image/png", rate=10, seconds=1, seed=0)


@pytest.mark.parametrize("behaviour", ["", "byte by byte", "one answer a connection"])
def test_the_open_loop_sends_every_arrival_of_its_seed_once(body: Path, behaviour: str) -> None:
    """Two servers get the same arrivals, however they write their answers; the warm-up is sent and not counted."""
    due = scheduled(rate=200, seconds=0.5, seed=7, warmup=0.25)
    with counting(behaviour) as (server, url):
        load = open_loop(url, body, "image/png", rate=200, seconds=0.5, seed=7, warmup=0.25)
    assert load.requests == load.ok == load.statuses["200"] == due
    assert len(server.asked) == scheduled(rate=200, seconds=0.75, seed=7)
    assert (load.errors, load.dropped, load.offered, load.seconds) == (0, 0, due / 0.5, 0.5)
    assert load.p50_s is not None
    assert load.p99_s is not None
    assert 0 < load.p50_s <= load.p99_s
    assert load.refusal_p50_s is load.refusal_p99_s is None
    assert server.asked[0][0].startswith(b"POST /v1/classify?top_k=3&maps=none HTTP/1.1\r\n")
    assert b"content-type: image/png\r\n" in server.asked[0][0].lower()
    assert {content for _, content in server.asked} == {BODY}


def test_the_open_loop_counts_refusals_as_the_server_does(body: Path) -> None:
    """Refusals have their own count and their own latency."""
    with counting("every second refused") as (server, url):
        load = open_loop(url, body, "image/png", rate=300, seconds=0.5, seed=1)
    assert load.statuses == dict(server.said)
    assert load.requests == scheduled(rate=300, seconds=0.5, seed=1)
    assert (load.ok, load.errors) == (server.said["200"], 0)
    assert load.refusal_p50_s is not None
    assert load.refusal_p99_s is not None
    assert 0 < load.refusal_p50_s <= load.refusal_p99_s


def test_a_connection_that_the_server_closes_is_an_error_and_is_replaced(body: Path) -> None:
    """Each request is answered, failed or never sent; none gets lost in between."""
    with counting("every third unanswered") as (server, url):
        load = open_loop(url, body, "image/png", rate=300, seconds=0.5, seed=2)
    assert load.errors == server.said["closed"] > 0
    assert load.ok == server.said["200"] > load.errors
    assert load.ok + load.errors == scheduled(rate=300, seconds=0.5, seed=2)


def test_the_open_loop_tells_what_it_could_not_send(body: Path) -> None:
    """A server that keeps every connection waiting gets no request beyond the limit, and no credit for late answers."""
    due = scheduled(rate=100, seconds=0.3, seed=5)
    with counting("one second late") as (server, url):
        load = open_loop(url, body, "image/png", rate=100, seconds=0.3, seed=5, connections=3)
    assert (load.requests, load.dropped, load.errors) == (3, due - 3, 0)
    assert len(server.asked) == 3
    assert load.throughput == 0
    assert load.p50_s is not None
    assert load.p50_s >= 1


def test_an_answer_that_the_open_loop_does_not_read_stops_it(body: Path) -> None:
    """It reads content-length only; a chunked answer ends the run with the reason, not with wrong figures."""
    with counting("chunked") as (_, url), pytest.raises(RuntimeError, match="without content-length"):
        open_loop(url, body, "image/png", rate=100, seconds=0.2, seed=0)

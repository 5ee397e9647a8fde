"""Hostile and slow callers, on real sockets: answered by the table or cut, at the cost that the limits say."""

import contextlib
import http.client
import json
import re
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Server
from tests.service.reference import PNG, encoded, picture

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n"
LAST = LIVE[:-2] + b"Connection: close\r\n\r\n"
MIB = 2**20


def post(*headers: str, query: str = "") -> bytes:
    return "\r\n".join([f"POST /v1/classify{query} HTTP/1.1", "Host: here", *headers, "", ""]).encode()


CHUNKED = post("Transfer-Encoding: chunked")


class Hostile(Server):
    """A server that gives its callers half a second, and a body one mebibyte."""

    @property
    def port(self) -> int:
        return httpx.URL(self.url).port or 80

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def said(self, *parts: bytes) -> list[tuple[int, dict[str, str], bytes]]:
        """The answers that come back until the server closes: (status, headers, body)."""
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):  # whoever is refused need not be read to the end
                for part in parts:
                    connection.sendall(part)
            return answers(connection)

    def peak(self) -> int:
        """The most bytes of memory since `forget`."""
        return self._status("VmHWM")

    def forget(self) -> int:
        """The bytes of memory now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self._status("VmRSS")

    def anonymous(self) -> int:
        """The bytes now that are in no file."""
        return self._status("RssAnon")

    def _status(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024

    def metric(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text)
        return sum(
            one.value for family in families for one in family.samples if (one.name, one.labels) == (name, labels)
        )


def answers(connection: socket.socket) -> list[tuple[int, dict[str, str], bytes]]:
    """All that come until the server closes."""
    found = []
    with connection.makefile("rb") as stream:
        while line := stream.readline():
            headers: dict[str, str] = {}
            for name, value in http.client.parse_headers(stream).items():
                headers[name.lower()] = ", ".join([*filter(None, [headers.get(name.lower())]), value])
            found.append((int(line.split()[1]), headers, stream.read(int(headers["content-length"]))))
    return found


def refusal(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    """Status and code of a refusal in the one shape, which says that the connection ends."""
    status, headers, body = answer
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"  # once: what comes twice would be joined by `answers`
    document = json.loads(body)
    assert list(document) == ["error", "code", "request_id"]
    assert document["request_id"] == headers["x-request-id"]
    return status, document["code"]


@pytest.fixture(scope="module")
def hostile(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    folder = tmp_path_factory.mktemp("small")
    (folder / "tiny-resnet").symlink_to(models / "tiny-resnet")
    with Hostile(
        models=folder, port=0, drain_grace_s=0, head_timeout_s=0.5, transfer_timeout_s=0.5, max_body_bytes=MIB
    ) as server:
        yield server
        assert server.stop() == 0


# --- what is no HTTP, or too much of it


@pytest.mark.parametrize(
    "sent",
    [
        b"BREW /pot HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET http://here HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
        b"CONNECT here:1 HTTP/1.1\r\nHost: here\r\n\r\n",
        b"CONNECT /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n",
        b"CONNECT http://a/b HTTP/1.1\r\nHost: here\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        bytes.fromhex("1603010200010001fc0303") + bytes(500),  # TLS
        b"\0" * 1000,
        post("Content-Length: -5") + b"hello",
        post("Content-Length: 5", "Content-Length: 6") + b"hello",
        post("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",  # two lengths: request smuggling
        CHUNKED + b"five\r\nhello\r\n",
        CHUNKED + b"fffffffffffffffff\r\nhello\r\n",
    ],
    ids=lambda sent: repr(sent[:40]),
)
def test_what_is_no_http_is_refused_in_the_one_shape(hostile: Hostile, sent: bytes) -> None:
    """400 malformed_request with an id, and the connection is closed: nobody guesses what was meant."""
    (answer,) = hostile.said(sent)
    assert refusal(answer) == (400, "malformed_request")


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET http://elsewhere/v2/health/live HTTP/1.1", 200),
        (b"GET /v2/health/live HTTP/1.0", 200),
        (b"GET /v1/models?a=%00%ff%zz HTTP/1.1", 200),
        (b"GET /v1/models/%00%ff%zz HTTP/1.1", 404),
        (b"OPTIONS * HTTP/1.1", 404),
        (b"TRACE / HTTP/1.1", 404),
        (b"DELETE /v1/classify HTTP/1.1", 405),
    ],
)
def test_an_odd_request_is_answered_like_any_other(hostile: Hostile, line: bytes, status: int) -> None:
    """A success or a refusal of the table, whatever the target, the verb and the version."""
    ((seen, headers, body),) = hostile.said(line + b"\r\nConnection: close\r\n\r\n")
    assert seen == status
    assert headers["content-type"] == "application/json"
    assert status == 200 or json.loads(body)["code"]


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET /", *[b"a" * MIB] * 10, b" HTTP/1.1\r\n\r\n"],
        [b"GET / HTTP/1.1\r\nX: ", *[b"a" * MIB] * 100, b"\r\n\r\n"],
        [b"GET / HTTP/1.1\r\n", *[b"X: a\r\n" * 100_000] * 10, b"\r\n"],
        [b"GET / HTTP/1.1\r\n" + b"X:\r\n" * 1000 + b"\r\n"],
    ],
    ids=["request line of 10 MiB", "header of 100 MiB", "a million headers", "a thousand empty ones"],
)
def test_a_head_over_its_limit_is_refused_while_it_arrives(hostile: Hostile, parts: list[bytes]) -> None:
    """431 with the limit, and no memory beyond what one read of the connection brings."""
    before = hostile.forget()
    *_, answer = hostile.said(*parts)
    assert refusal(answer) == (431, "head_too_large")
    assert b"limit is 32768" in answer[2]
    assert hostile.peak() - before < 16 * MIB


def test_a_head_over_its_limit_is_refused_on_a_connection_that_was_good_before(hostile: Hostile) -> None:
    """What was answered is no merit."""
    with hostile.connect() as connection:
        connection.sendall(LIVE)
        seen = b""
        while not seen.endswith(b"}"):
            seen += connection.recv(MIB)
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * MIB)
        (answer,) = answers(connection)
    assert refusal(answer) == (431, "head_too_large")


def test_connections_leave_nothing_behind(hostile: Hostile) -> None:
    """A hundred callers with headers by the ten thousand: each one's memory is there for the next."""

    def refuse_many() -> None:
        for _ in range(100):
            assert hostile.said(b"GET / HTTP/1.1\r\n" + b"X:\r\n" * 6_000 + b"\r\n")[0][0] == 431

    refuse_many()
    before = hostile.forget()
    refuse_many()
    assert hostile.peak() - before < 8 * MIB


def test_callers_who_are_refused_at_once_leave_no_headers_behind(hostile: Hostile) -> None:
    """A hundred connections with a head over the limit, as a first request and right behind another one's body, all
    open: refused, and what they sent is not kept until they go.
    """
    fields = b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 50_000
    first = b"POST /nothing HTTP/1.1\r\nHost: here\r\nContent-Length: 2000\r\n\r\n" + b"x" * 1999
    for before in (b"", first):
        hostile.said(before + b"x" + fields)
        level = hostile.forget()
        with contextlib.ExitStack() as held:
            callers = [held.enter_context(hostile.connect()) for _ in range(100)]
            for one in callers:
                one.sendall(before)
                if before:
                    assert one.recv(2**12).startswith(b"HTTP/1.1 404 ")
            for one in callers:
                with contextlib.suppress(ConnectionError):
                    one.sendall(b"x" * bool(before) + fields)
            seen = [refusal(answers(one)[-1]) for one in callers]
            assert seen == [(431, "head_too_large")] * 100
            assert hostile.peak() - level < 24 * MIB


def test_a_head_that_stays_below_its_limit_in_bytes_counts_its_headers(hostile: Hostile) -> None:
    """30,000 bytes may be 7,500 headers: refused where they stand, the end need not come."""
    (answer,) = hostile.said(b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 7_500)
    assert refusal(answer) == (431, "head_too_large")


def test_a_head_just_within_its_limit_is_read(hostile: Hostile) -> None:
    """The limit is what the settings say: target, names, values, and 32 for each header (as in RFC 9113, 6.5.2)."""
    spent = len("/v2/health/live") + len("connectionclose") + 32 + len("x") + 32
    for size, status in ((32_768 - spent, 200), (32_768 - spent + 1, 431)):
        (answer,) = hostile.said(
            LAST[: -len(b"\r\n")].replace(b"Host: here\r\n", b"") + b"X: %s\r\n\r\n" % (b"a" * size)
        )
        assert answer[0] == status


@pytest.mark.parametrize(
    "parts",
    [
        [b"5;a=", *[b"x" * MIB] * 20, b"\r\nhello\r\n0\r\n\r\n"],
        [b"5\r\nhello\r\n0\r\nA: ", *[b"x" * MIB] * 20, b"\r\n\r\n"],
        [b"5\r\nhello\r\n0\r\n", *[b"A: b\r\n" * 100_000] * 20, b"\r\n"],
        [b"1\r\nx\r\n" * 100_000, b"0\r\n\r\n"],
    ],
    ids=["extension", "trailer", "trailers", "chunks of one byte"],
)
def test_what_is_sent_around_the_chunks_of_a_body_is_bounded(hostile: Hostile, parts: list[bytes]) -> None:
    """Bytes that are no body count too."""
    before = hostile.forget()
    (answer,) = hostile.said(CHUNKED, *parts)
    assert refusal(answer) == (400, "malformed_request")
    assert hostile.peak() - before < 16 * MIB


def test_trailers_of_a_large_body_are_not_kept(small: Path) -> None:
    """They may have as many bytes as the body has, which would be thirty times as many as objects."""
    size = 3 * MIB
    with Hostile(models=small, port=0, drain_grace_s=0) as server:
        server.said(LAST)
        before = server.forget()
        sent = [CHUNKED, b"%x\r\n%s\r\n0\r\n" % (size, b"x" * size), b"aa:\r\n" * 600_000, b"\r\n" + LAST]
        assert [status for status, _, _ in server.said(*sent)] == [400, 200]
        assert server.peak() - before < 32 * MIB
        assert server.stop() == 0


def test_trailers_change_nothing(hostile: Hostile) -> None:
    """A header that comes after the body is no header: a Content-Type there would come too late."""
    head = post("Transfer-Encoding: chunked", "Connection: close")
    body = b"%x;name=value\r\n%s\r\n0\r\nContent-Type: text/plain\r\nX-Request-Id: late\r\n\r\n" % (len(PNG), PNG)
    ((status, headers, _),) = hostile.said(head + body)
    assert status == 200
    assert headers["x-request-id"] != "late"


def test_requests_sent_ahead_are_answered_in_their_order(hostile: Hostile) -> None:
    """Pipelining works, uploads among the others."""
    upload = post(f"Content-Length: {len(PNG)}") + PNG
    nothing = b"GET /nothing HTTP/1.1\r\nHost: here\r\n\r\n"
    statuses = [status for status, _, _ in hostile.said(LIVE + upload + nothing + upload + LAST)]
    assert statuses == [200, 200, 404, 200, 200]


def test_of_requests_sent_ahead_only_a_few_wait(hostile: Hostile) -> None:
    """One read could hold ten thousand; nine are answered, then the connection is closed."""
    before = hostile.forget()
    found = hostile.said(LIVE * 10_000)
    assert [status for status, _, _ in found] == [200] * 9
    assert found[-1][1]["connection"] == "close"
    assert hostile.peak() - before < 8 * MIB


@pytest.mark.parametrize("together", [True, False])
def test_an_upgrade_that_is_declined_takes_no_body_along(hostile: Hostile, together: bool) -> None:
    """Java's HttpClient and curl --http2 ask for HTTP/2 with their first request, uploads included."""
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    head = post(f"Content-Length: {len(PNG)}", *offer)
    sent = [head + PNG + LAST] if together else [head, PNG, LAST]
    assert [status for status, _, _ in hostile.said(*sent)] == [200, 200]


# --- what is too slow


def test_a_connection_that_says_nothing_is_closed_without_a_word(hostile: Hostile) -> None:
    """There is nothing to answer."""
    assert hostile.said() == []
    assert hostile.said(b"\r\n\r\n") == []


@pytest.mark.parametrize("before", [b"", LIVE], ids=["first", "second"])
def test_a_head_that_does_not_come_is_cut(hostile: Hostile, before: bytes) -> None:
    """408, on a fresh connection and on one that was good before."""
    *_, answer = hostile.said(before, b"GET /v2/health/live HT")
    assert refusal(answer) == (408, "request_timeout")
    assert b"0.5 s" in answer[2]


def drip(connection: socket.socket, data: bytes) -> None:
    """A byte each twentieth of a second, until the server has had enough."""
    for byte in data:
        if select.select([connection], [], [], 0.05)[0]:
            return
        connection.sendall(bytes([byte]))
    raise AssertionError("the server took all of it")


def test_a_byte_now_and_then_gains_no_time(hostile: Hostile) -> None:
    """Neither for the head nor for the body: what counts is when they are whole."""
    for sent in (b"GET /v2/health/live HTTP/1.1\r\nX: ", post("Content-Length: 1000"), CHUNKED + b"3e8\r\n"):
        with hostile.connect() as connection:
            connection.sendall(sent)
            drip(connection, b"a" * 200)
            (answer,) = answers(connection)
        assert refusal(answer) == (408, "request_timeout")


def test_a_slow_body_is_its_callers_fault_and_gives_its_place_back(hostile: Hostile) -> None:
    """408 and not 504, with the time that it had: the service's, or its own where it named a shorter one."""
    for query, words in (("", b"0.5 s"), ("?timeout_ms=100", b"0.1 s"), ("?timeout_ms=3600000", b"0.5 s")):
        (answer,) = hostile.said(post(f"Content-Length: {len(PNG)}", query=query) + PNG[:50])
        assert refusal(answer) == (408, "request_timeout")
        assert words in answer[2]
    assert hostile.metric("saccade_admitted_images", model="tiny-resnet@1") == 0


def test_a_slow_body_is_told_once_that_the_connection_ends_while_the_service_drains(small: Path) -> None:
    """Two reasons to close are one header."""
    with Hostile(models=small, port=0, drain_grace_s=600, transfer_timeout_s=0.5) as server:
        server.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{server.url}/v2/health/ready").status_code == 200:
            pass
        (answer,) = server.said(post("Content-Length: 1000"))
        assert refusal(answer) == (408, "request_timeout")
        server.process.send_signal(signal.SIGTERM)
        assert server.stop() == 0


def test_an_answer_that_nobody_reads_is_let_go(hostile: Hostile) -> None:
    """Megabytes wait for half a second for their caller, who finds the connection cut in the middle."""
    bundle = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: here\r\n\r\n"
    whole = len(httpx.get(f"{hostile.url}/docs/assets/swagger-ui-bundle.js").content)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", hostile.port))
        connection.sendall(bundle * 8)
        end = select.poll()
        end.register(connection, select.POLLRDHUP)
        assert end.poll(30_000)
        read = 0
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(MIB):
                read += len(data)
    assert read < 8 * whole


BREAKS = """
import asyncio, sys
from service import process
from service.app import create_app_for

class Breaks:
    async def __call__(self, scope, receive, send):
        transport = receive.__self__.transport._protocol.transport
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not transport.get_write_buffer_size():
            await send({"type": "http.response.body", "body": bytes(2**14), "more_body": True})
            for _ in range(3):  # turns of the event loop, in which it writes
                await asyncio.sleep(0)
        raise RuntimeError("half an answer is out")

def create(service):
    app = create_app_for(service)
    app.add_route("/breaks", Breaks())
    return app

process.create_app_for = create
sys.exit(process.main())
"""


def test_an_answer_that_breaks_off_and_that_nobody_reads_is_let_go(small: Path) -> None:
    """Some kilobytes that wait on a connection that is closed do not keep it for ever."""
    with Hostile(BREAKS, models=small, port=0, drain_grace_s=0, transfer_timeout_s=0.5) as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(b"GET /breaks HTTP/1.1\r\nHost: here\r\n\r\n")
            end = select.poll()
            end.register(connection, select.POLLRDHUP)
            assert end.poll(20_000)
        assert server.stop() == 0


# --- bodies that nobody reads


def with_http_client(url: str, body: Any) -> int:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/classify", body, encode_chunked=not isinstance(body, bytes))
        return connection.getresponse().status


def with_httpx(url: str, body: Any) -> int:
    return httpx.post(f"{url}/v1/classify", content=body, timeout=30).status_code


def with_curl(url: str, body: Any) -> int:
    chunked = () if isinstance(body, bytes) else ("--header", "Transfer-Encoding: chunked")
    command = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--data-binary", "@-"]
    sent = body if isinstance(body, bytes) else b"".join(body)
    ended = subprocess.run(
        [*command, "--header", "Expect:", *chunked, f"{url}/v1/classify"], input=sent, capture_output=True, check=True
    )
    return int(ended.stdout)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("ask", [with_http_client, with_httpx, with_curl])
def test_whoever_sends_a_hundred_megabytes_can_read_that_one_is_the_limit(
    hostile: Hostile, ask: Callable[[str, Any], int], chunked: bool
) -> None:
    """413 reaches clients that send all before they read, and what they send is kept nowhere."""
    before = hostile.forget()
    assert ask(hostile.url, iter([b"x" * MIB] * 100) if chunked else b"x" * 100 * MIB) == 413
    assert hostile.peak() - before < 16 * MIB


@pytest.mark.parametrize("target", ["GET /v2/health/live", "GET /v1/models", "POST /nothing", "DELETE /v1/classify"])
def test_a_body_that_a_route_does_not_read_costs_nothing(hostile: Hostile, target: str) -> None:
    """It is answered, the rest is thrown away, and the connection is closed; a small body leaves it open."""
    head = f"{target} HTTP/1.1\r\nHost: here\r\nContent-Length: {50 * MIB}\r\n\r\n".encode()
    before = hostile.forget()
    ((status, headers, _),) = hostile.said(head, *[b"x" * MIB] * 50)
    assert status in (200, 404, 405)
    assert headers["connection"] == "close"
    assert hostile.peak() - before < 8 * MIB
    small = head.replace(f"{50 * MIB}".encode(), b"100000")
    assert [one[0] for one in hostile.said(small, b"x" * 50_000, b"x" * 50_000, LAST)] == [status, 200]


def test_a_refusal_that_was_expected_to_be_continued_asks_for_no_body(hostile: Hostile) -> None:
    """Expect: 100-continue, as curl sends it: the answer is the refusal, and no byte of the body need be sent."""
    ((status, headers, _),) = hostile.said(post(f"Content-Length: {2 * MIB}", "Expect: 100-continue"))
    assert (status, headers["connection"]) == (413, "close")


def test_a_body_that_was_not_asked_for_does_not_swallow_the_next_request(hostile: Hostile) -> None:
    """Who expected a 100 and got a refusal may leave the body out: what comes then is no part of it."""
    head = post(f"Content-Length: {len(PNG)}", "Expect: 100-continue", query="?top_k=none")
    with hostile.connect() as connection:
        connection.sendall(head)
        ((status, headers, _),) = answers(connection)
    assert (status, headers["connection"]) == (400, "close")
    asked = post(f"Content-Length: {len(PNG)}", "Expect: 100-continue")
    with hostile.connect() as connection:
        connection.sendall(asked)
        assert connection.recv(2**12) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(PNG + LAST)
        assert [one[0] for one in answers(connection)] == [200, 200]


# --- how many


def test_connections_over_the_limit_are_told_and_closed(small: Path) -> None:
    """Those who are connected are served; who comes when one of them has left is too."""
    with Hostile(models=small, port=0, drain_grace_s=0, max_connections=4) as server:
        held = [server.connect() for _ in range(4)]
        (answer,) = server.said()
        assert refusal(answer) == (429, "overloaded")
        held[0].sendall(LAST)
        assert answers(held[0])[-1][0] == 200
        assert server.said(LAST)[0][0] == 200
        for one in held:
            one.close()
        assert server.stop() == 0


FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, {files}))
from service.__main__ import main
sys.exit(main())
"""


def test_files_never_run_out(small: Path) -> None:
    """The limit of the system bounds the connections before they reach it, and what it refuses harms nobody else."""
    with Hostile(FEW_FILES.format(files=140), models=small, port=0, drain_grace_s=0) as server:
        assert "connections are limited to 12, not 4096: the process may have 140 files" in server.log
        held = [server.connect() for _ in range(300)]
        refused = [refusal(answers(one)[0]) for one in held[12:]]
        assert refused == [(429, "overloaded")] * 288
        for one in held:
            one.close()
        assert httpx.post(f"{server.url}/v1/classify", content=PNG).status_code == 200
        assert server.stop() == 0


def test_what_a_connection_is_refused_for_is_counted(hostile: Hostile) -> None:
    """By code, and as requests: those that came to no route have the route `other`."""
    for sent, status, code in ((b"BREW /\r\n\r\n", 400, "malformed_request"), (b"GET /", 408, "request_timeout")):
        names = (("saccade_refusals_total", {"code": code}),
                 ("saccade_requests_total", {"route": "other", "status": str(status)}))  # fmt: skip
        before = [hostile.metric(name, **labels) for name, labels in names]
        hostile.said(sent)
        assert [hostile.metric(name, **labels) for name, labels in names] == [count + 1 for count in before]
    live = LIVE[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"
    for head, route in ((CHUNKED, "/v1/classify"), (live, "/v2/health/live")):
        labels = {"route": route, "status": "400"}
        count = hostile.metric("saccade_requests_total", **labels)
        hostile.said(head + b"five\r\n")
        assert hostile.metric("saccade_requests_total", **labels) == count + 1


def test_uploads_beside_all_this_are_answered(hostile: Hostile) -> None:
    """A picture of nearly the largest size, in one piece and in chunks."""
    large = encoded(picture(600, 500), "BMP")
    assert 0.8 * MIB < len(large) < MIB
    for body in (large, iter([large[start : start + 1000] for start in range(0, len(large), 1000)])):
        assert httpx.post(f"{hostile.url}/v1/classify", content=body).status_code == 200


def test_an_answer_is_one_packet(small: Path) -> None:
    """Head and body together: a caller is woken once, and a small picture's answer is there as a whole."""
    request = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(PNG), PNG)
    with Hostile(models=small, port=0, drain_grace_s=0) as server, server.connect() as caller:
        for _ in range(20):
            caller.sendall(request)
            head, _, body = caller.recv(2**16).partition(b"\r\n\r\n")
            assert b"content-length: %d\r\n" % len(body) in head
        caller.close()
        assert server.stop() == 0


@pytest.mark.parametrize(("method", "path"), [(b"HEAD", b"/docs/assets/swagger-ui.css"), (b"GET", b"/v2/health/ready")])
def test_an_answer_without_a_body_is_sent_too(small: Path, method: bytes, path: bytes) -> None:
    """Whatever waits for nothing more is not kept back."""
    with Hostile(models=small, port=0, drain_grace_s=0) as server, server.connect() as caller:
        for _ in range(3):
            caller.sendall(b"%b %b HTTP/1.1\r\nhost: x\r\n\r\n" % (method, path))
            assert caller.recv(2**16).startswith(b"HTTP/1.1 200 OK\r\n")
        caller.close()
        assert server.stop() == 0

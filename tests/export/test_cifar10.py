"""Fetching CIFAR-10 over connections that break, from a real server on the loopback."""

import hashlib
import http.server
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest

from export import cifar10
from export.cifar10 import Cifar10, download_cifar10
from saccade.errors import DataError
from tests.export.test_data import NAMES, RECORD, write_cifar10


class Breaking(http.server.ThreadingHTTPServer):
    """Sends at most `most` bytes of its archive an answer; knows ranges where `ranges`."""

    def __init__(self, archive: bytes) -> None:
        super().__init__(("127.0.0.1", 0), BreakingHandler)
        self.archive = archive
        self.most = len(archive)
        self.ranges = True
        self.asked: list[str | None] = []


class BreakingHandler(http.server.BaseHTTPRequestHandler):
    server: Breaking

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.ranges else 0
        if asked and self.server.ranges and start >= len(self.server.archive):
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.end_headers()
            return
        rest = self.server.archive[start:]
        self.send_response(HTTPStatus.PARTIAL_CONTENT if asked and self.server.ranges else HTTPStatus.OK)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.most])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Breaking]:
    """In place of Toronto: a small archive of the published form, whose checksum is expected."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in NAMES:
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = 4
            tar.addfile(entry, io.BytesIO(b"tiny"))
    with Breaking(buffer.getvalue()) as it:
        thread = threading.Thread(target=it.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(cifar10, "CIFAR10_URL", f"http://127.0.0.1:{it.server_port}/cifar.tar.gz")
        monkeypatch.setattr(cifar10, "CIFAR10_SHA256", hashlib.sha256(it.archive).hexdigest())
        yield it
        it.shutdown()
        thread.join()


def assert_whole(folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["cifar-10-batches-bin"]
    assert sorted(path.name for path in (folder / "cifar-10-batches-bin").iterdir()) == NAMES


def test_a_download_that_broke_off_goes_on_where_it_stopped(server: Breaking, tmp_path: Path) -> None:
    """Each call asks for what is missing alone; nothing counts as the data set before all of it is there and right."""
    size = len(server.archive)
    server.most = size // 3 + 1
    for had in (0, server.most):
        with pytest.raises(DataError, match=rf"broke off after {had + server.most} of {size} bytes: the same command"):
            download_cifar10(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-bin.part"]
    download_cifar10(tmp_path)
    assert server.asked == [None, f"bytes={server.most}-", f"bytes={2 * server.most}-"]
    assert_whole(tmp_path)


def test_a_server_without_ranges_sends_all_of_it_again(server: Breaking, tmp_path: Path) -> None:
    """What is there already is then not added to."""
    server.most, server.ranges = 50, False
    with pytest.raises(DataError, match="broke off after 50"):
        download_cifar10(tmp_path)
    server.most = len(server.archive)
    download_cifar10(tmp_path)
    assert_whole(tmp_path)


@pytest.mark.parametrize("part", [b"something else", b"something longer than the archive" * 100])
def test_a_part_of_something_else_is_refused_by_its_checksum(server: Breaking, tmp_path: Path, part: bytes) -> None:
    """And is not there for the next call, which fetches the data set whole."""
    (tmp_path / "cifar-10-batches-bin.part").write_bytes(part)
    with pytest.raises(DataError, match=r"has sha256 [0-9a-f]{64}; CIFAR-10 has [0-9a-f]{64}"):
        download_cifar10(tmp_path)
    assert list(tmp_path.iterdir()) == []
    download_cifar10(tmp_path)
    assert_whole(tmp_path)


def test_a_complete_part_is_not_fetched_again(server: Breaking, tmp_path: Path) -> None:
    """A call that ended between the last byte and the unpacking costs one question."""
    (tmp_path / "cifar-10-batches-bin.part").write_bytes(server.archive)
    download_cifar10(tmp_path)
    assert server.asked == [f"bytes={len(server.archive)}-"]
    assert_whole(tmp_path)


def test_a_label_that_is_none_is_named(tmp_path: Path) -> None:
    """A damaged record is found before training, with file and place."""
    write_cifar10(tmp_path / "bin")
    with (tmp_path / "bin" / "data_batch_2.bin").open("r+b") as file:
        file.seek(7 * RECORD)
        file.write(bytes([11]))
    with pytest.raises(
        DataError, match=r"data_batch_2\.bin has the label 11 in record 7; the largest of CIFAR-10 is 9"
    ):
        Cifar10(tmp_path / "bin").training()


def test_the_fingerprint_is_that_of_every_byte(tmp_path: Path) -> None:
    """One changed pixel, or another order of the pictures, is another data set."""
    write_cifar10(tmp_path / "bin")
    before = Cifar10(tmp_path / "bin").training()
    first, chosen = before.fingerprint(), before.choose(np.array([1, 2])).fingerprint()
    assert before.choose(np.array([2, 1])).fingerprint() != chosen
    with (tmp_path / "bin" / "data_batch_5.bin").open("r+b") as file:
        file.seek(9_999 * RECORD + 3_000)
        file.write(b"\x01")
    assert Cifar10(tmp_path / "bin").training().fingerprint() != first

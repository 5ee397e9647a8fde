"""The client against a real server: every way to hand over a picture, every option, every refusal by its class."""

import contextlib
import gc
import io
import itertools
import json
import socket
import ssl
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from numpy.typing import NDArray
from PIL import Image

import saccade
from saccade.api import Answer
from saccade.client import Client, Effort, Outcome, retry_after_s, wait_s
from saccade.connection import Address, Connection
from saccade.decode import decode
from saccade.errors import (
    BodyTooLarge,
    DataError,
    DeadlineExceeded,
    Draining,
    ImageTooLarge,
    InvalidImage,
    InvalidParameter,
    NotReady,
    Overloaded,
    RequestError,
    RequestTimeout,
    SaccadeError,
    ServiceError,
    Unauthorized,
    UnknownModel,
    Unreachable,
    UnsupportedMap,
)
from saccade.geometry import Region
from saccade.overlay import overlay
from saccade.picture import Picture, picture_bytes
from tests.conftest import NETS, Server
from tests.saccade.stub import ANSWER, CLOSE, HANG, Stub, good, refusal, response


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as it:
        yield it


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """Not square, so that a turn shows."""
    return np.random.default_rng(5).integers(0, 256, (20, 30, 3), np.uint8)


def png(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_a_picture_may_be_given_in_every_form(client: Client, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    """Path, text, bytes, open file, array and PIL image get the same answer to the last digit."""
    data = png(Image.fromarray(pixels))
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    expected = client.classify(data, decimals=9)
    assert expected.geometry.image.model_dump() == {"width": 30, "height": 20}
    with path.open("rb") as file:
        for picture in (path, str(path), file, io.BytesIO(data), pixels, Image.fromarray(pixels), Image.open(path)):
            answer = client.classify(picture, decimals=9)
            assert (answer.labels, answer.maps, answer.geometry) == (expected.labels, expected.maps, expected.geometry)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_a_pil_image_of_any_mode_may_be_given(client: Client, pixels: NDArray[np.uint8], mode: str) -> None:
    """It is answered as a file of it would be."""
    picture = Image.fromarray(pixels)
    picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    assert client.classify(picture).labels == client.classify(buffer.getvalue()).labels


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_opened_photograph_is_turned_as_its_file_is(
    client: Client, pixels: NDArray[np.uint8], kind: str, orientation: int
) -> None:
    """Image.open does not turn a photograph; what it says of its orientation travels with it."""
    block, buffer = Image.Exif(), io.BytesIO()
    block[274] = orientation
    Image.fromarray(pixels).save(buffer, kind, exif=block)
    by_file, by_image = client.classify(buffer.getvalue()), client.classify(Image.open(buffer))
    assert (by_image.labels, by_image.geometry) == (by_file.labels, by_file.geometry)


def test_a_grey_array_is_a_picture(client: Client, pixels: NDArray[np.uint8]) -> None:
    grey = pixels[..., 0]
    assert client.classify(grey).labels == client.classify(np.stack([grey] * 3, -1)).labels


def test_options_reach_the_service(client: Client, pixels: NDArray[np.uint8]) -> None:
    """Each by its name, as keyword."""
    answer = client.classify(
        pixels, model="tiny-vit@1", top_k=2, maps="rollout", attention="0,2", heads="all", rows="0,3", decimals=3
    )
    assert (answer.model.name, answer.model.version, len(answer.labels)) == ("tiny-vit", 1, 2)
    assert [map_.name for map_ in answer.maps] == ["rollout"]
    assert answer.attention is not None
    assert [layer.layer for layer in answer.attention] == [0, 2]
    for layer in answer.attention:
        weights = np.asarray(layer.weights)
        assert weights.shape == layer.shape == (2, 2, 25)
        assert np.abs(weights.sum(-1) - 1).max() < 0.02
        assert np.array_equal(weights, weights.round(3))


def test_classes_are_given_as_a_tuple(client: Client, pixels: NDArray[np.uint8]) -> None:
    """Indices and labels, one class map each."""
    answer = client.classify(pixels, model="tiny-resnet", maps="class", classes=("3", "7"))
    assert [map_.class_index for map_ in answer.maps] == [3, 7]
    for map_ in answer.maps:
        assert map_.sum is not None
        assert map_.bias is not None
        assert map_.logit == pytest.approx(map_.sum + map_.bias, abs=1e-4)


def test_the_models_are_listed(client: Client) -> None:
    listed = {model.name: model for model in client.models().models}
    assert set(listed) == set(NETS)
    assert listed["tiny-vit"].input_size == (16, 24)
    assert [name for name, model in listed.items() if model.default] == ["tiny-cct"]


@pytest.mark.parametrize(
    ("picture", "options", "kind", "words"),
    [
        (b"text", {}, InvalidImage, "4 bytes are not a picture"),
        (b"", {}, InvalidImage, "empty"),
        (None, {"top_k": 0}, InvalidParameter, "top_k must be at least 1, not 0"),
        (None, {"topk": 3}, InvalidParameter, "unknown parameter 'topk'"),
        (None, {"attention": "9"}, InvalidParameter, "9 is outside of 0 to"),
        (None, {"classes": ("zebra",), "maps": "class"}, InvalidParameter, "zebra"),
        (None, {"model": "absent"}, UnknownModel, "'absent'; there are tiny-cct@1"),
        (None, {"model": "tiny-cct@2"}, UnknownModel, "tiny-cct@2"),
        (None, {"model": "tiny-resnet", "maps": "rollout"}, UnsupportedMap, "no attention layers"),
        (None, {"model": "tiny-resnet", "attention": "last"}, UnsupportedMap, "no attention layers"),
    ],
)
def test_a_refusal_comes_as_its_class(
    client: Client,
    pixels: NDArray[np.uint8],
    picture: bytes | None,
    options: dict[str, Any],
    kind: type[SaccadeError],
    words: str,
) -> None:
    """`except UnknownModel` works in a script, with the service's sentence."""
    with pytest.raises(kind, match=words) as refusal:
        client.classify(pixels if picture is None else picture, **options)
    assert type(refusal.value) is kind
    assert isinstance(refusal.value, RequestError)


def test_a_bomb_comes_as_image_too_large(client: Client) -> None:
    with pytest.raises(ImageTooLarge, match="100000000 pixels"):
        client.classify(png(Image.new("1", (10_000, 10_000))))


def test_a_path_that_cannot_be_read_is_named(client: Client, tmp_path: Path) -> None:
    """Before anything is sent."""
    for path in (tmp_path / "absent.jpg", tmp_path):
        with pytest.raises(DataError, match=f"could not read {path}: "):
            client.classify(path)


@pytest.mark.filterwarnings("ignore")  # of Pillow, about the damage
def test_a_pil_image_that_cannot_be_sent_is_refused() -> None:
    """Cut short behind Image.open, or of a mode that no file holds."""
    cut = io.BytesIO(png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))[:3000])
    with pytest.raises(InvalidImage, match="cannot be sent"):
        picture_bytes(Image.open(cut))
    with pytest.raises(InvalidImage, match="mode HSV"):
        picture_bytes(Image.new("HSV", (2, 2)))


def test_a_dead_address_is_a_service_error() -> None:
    """Port 9 of the loopback: nobody listens there."""
    with Client("http://127.0.0.1:9") as dead, pytest.raises(ServiceError, match=r"127\.0\.0\.1:9.* does not answer"):
        dead.models()


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://127.0.0.1:99999", "http://[::1"])
def test_an_address_that_is_none_is_a_service_error(url: str) -> None:
    with pytest.raises(ServiceError, match=r"does not answer|not the address"), Client(url) as client:
        client.models()


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    """A web server that is no Saccade: every GET is 200, every POST 404, in HTML."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self._answer(404)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{listener.server_port}"
        listener.shutdown()
        thread.join()


def test_a_server_that_is_no_saccade_is_a_service_error(stranger: str) -> None:
    """A wrong port gives a sentence, whether it says 200 or 404."""
    with Client(stranger) as client:
        with pytest.raises(ServiceError, match="in no known form"):
            client.models()
        with pytest.raises(ServiceError, match="answered 404 in no known form"):
            client.classify(b"picture")


def test_a_key_opens_a_service_that_wants_one(models: Path, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    """Without it, and with another, it is Unauthorized."""
    keys, one = tmp_path / "keys", tmp_path / "models"
    keys.write_text("# ours\nopen-sesame\nsecond\n")
    one.mkdir()
    (one / "tiny-vit-mean").symlink_to(models / "tiny-vit-mean")
    guarded = Server(models=one, port=0, drain_grace_s=0, api_keys_file=keys)
    try:
        for key in ("open-sesame", "second"):
            with Client(guarded.url, key=key) as client:
                assert client.classify(pixels).model.name == "tiny-vit-mean"
        for wrong, words in ((None, "wants a key"), ("sesame", "not known"), ("# ours", "not known")):
            with Client(guarded.url, key=wrong) as client, pytest.raises(Unauthorized, match=words):
                client.classify(pixels)
    finally:
        assert guarded.stop() == 0


def test_a_full_queue_says_how_long_to_wait() -> None:
    """The seconds of Retry-After reach the script that has to wait them."""
    with Stub(refusal(429, "overloaded", "retry-after: 7")) as stub, Client(stub.url, retries=0) as client:
        with pytest.raises(Overloaded, match="this is overloaded") as caught:
            client.classify(b"picture")
        assert caught.value.retry_after == 7


def test_a_key_that_no_header_can_carry_is_refused() -> None:
    """With a word of ours, before anything is sent."""
    for key in ("schlüssel", "a\r\nx-evil: 1", "", " a"):
        with pytest.raises(InvalidParameter, match="no HTTP header"):
            Client(key=key)


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}, {"longest_wait": -1}])
def test_limits_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match="must be"):
        Client(**wrong)


# --- answers


def test_maps_and_weights_are_arrays(client: Client, pixels: NDArray[np.uint8]) -> None:
    """Nested lists of the JSON, to the last digit; and they come back out as the same JSON."""
    answer = client.classify(pixels, model="tiny-vit", attention="all", heads="all", decimals=9)
    raw = json.loads(answer.model_dump_json())
    assert answer.maps[0].values.shape == answer.maps[0].grid
    assert answer.maps[0].values.tolist() == raw["maps"][0]["values"]
    assert answer.attention is not None
    for layer, shown in zip(answer.attention, raw["attention"], strict=True):
        assert layer.weights.shape == layer.shape
        assert layer.weights.tolist() == shown["weights"]
    assert Answer.model_validate(raw) == answer
    assert Answer.model_validate(raw | {"maps": []}) != answer


@pytest.mark.parametrize("values", [[1.0, 2.0], [[1.0], [2.0, 3.0]], "text", [[["deep"]]]])
def test_an_answer_whose_map_is_no_grid_is_a_service_error(values: object) -> None:
    wrong = ANSWER | {"maps": [{"name": "rollout", "class_index": None, "grid": [1, 2], "values": values}]}
    answer = response(200, json.dumps(wrong).encode())
    with Stub(answer) as stub, Client(stub.url) as client, pytest.raises(ServiceError, match="in no known form"):
        client.classify(b"picture")


def test_an_answer_draws_its_map_over_the_picture_in_every_form(
    client: Client, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    """`answer.overlay()` is the map where the answer's geometry puts it, upright; a path is read again."""
    block = Image.Exif()
    block[274] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(pixels).save(path, exif=block)
    data = path.read_bytes()
    upright = decode(data, (255, 255, 255))
    assert upright.size == (20, 30)
    with path.open("rb") as file:
        answers = [
            client.classify(picture, model="tiny-vit")
            for picture in (path, data, bytearray(data), io.BytesIO(data), file, Image.open(path))
        ]
    for answer in answers:
        seen = Region(**answer.geometry.region.model_dump())
        expected = overlay(upright, answer.maps[0].values.astype(np.float32), seen)
        assert np.array_equal(np.asarray(answer.overlay()), np.asarray(expected))


def test_one_of_several_maps_is_drawn_by_name_and_class(client: Client, pixels: NDArray[np.uint8]) -> None:
    """The first where none is named; one that was not asked for is refused with what there is."""
    answer = client.classify(pixels, model="tiny-resnet", maps="class", classes=("3", "7"))
    first, third, seventh = (np.asarray(answer.overlay(*which)) for which in ((), ("class", 3), (None, 7)))
    assert np.array_equal(first, third)
    assert not np.array_equal(third, seventh)
    with pytest.raises(
        InvalidParameter, match=r"does not hold a map 'rollout'.*class map of class 3, class map of class 7"
    ):
        answer.overlay("rollout")
    with pytest.raises(InvalidParameter, match="of class 5"):
        answer.overlay(class_index=5)


def test_why_a_class_is_asked_for_as_any_map_and_drawn(client: Client, pixels: NDArray[np.uint8]) -> None:
    """By the number of the class, as the answer resolved it; two classes, two pictures."""
    answer = client.classify(pixels, model="tiny-vit", maps="relevance,rollout", classes=("3", "7"))
    assert [(one.name, one.class_index) for one in answer.maps] == [
        ("relevance", 3), ("relevance", 7), ("rollout", None),
    ]  # fmt: skip
    third, seventh = (np.asarray(answer.overlay(name="relevance", class_index=index)) for index in (3, 7))
    assert not np.array_equal(third, seventh)
    assert all(one.note is None for one in answer.maps)
    with pytest.raises(InvalidParameter, match=r"relevance map of class 3, relevance map of class 7, rollout map$"):
        answer.overlay("relevance", 5)


def test_an_answer_from_a_file_needs_its_picture(client: Client, pixels: NDArray[np.uint8]) -> None:
    """Results read from a disk can be drawn too, but not over another picture."""
    answer = client.classify(pixels)
    read = Answer.model_validate_json(answer.model_dump_json())
    with pytest.raises(InvalidParameter, match="picture="):
        read.overlay()
    assert np.array_equal(np.asarray(read.overlay(picture=pixels)), np.asarray(answer.overlay()))
    with pytest.raises(InvalidParameter, match="has 30 x 19 pixels, and the answer is about one of 30 x 20"):
        read.overlay(picture=pixels[:-1])


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((3,), np.uint8), np.zeros((0, 4), np.uint8)],
)
def test_an_array_that_is_no_picture_is_refused(array: Any) -> None:
    """Before anything is sent, with its type and shape."""
    with pytest.raises(InvalidImage, match="an array must be uint8"):
        picture_bytes(array)


def test_the_card_of_a_model_is_read(client: Client) -> None:
    """Manifest, card, parity and plan, typed."""
    info = client.model("tiny-vit@1")
    assert (info.manifest.name, info.version, len(info.manifest.labels)) == ("tiny-vit", 1, 10)
    with pytest.raises(UnknownModel, match=r"'tiny.vit#1'"):
        client.model("tiny?vit#1")


def test_both_clients_are_where_one_looks_for_them() -> None:
    assert saccade.Client is Client
    assert saccade.AsyncClient.__name__ == "AsyncClient"


# --- tries


@pytest.mark.parametrize(("status", "code"), [(429, "overloaded"), (503, "not_ready"), (503, "draining")])
def test_a_service_that_is_busy_or_away_is_asked_again(status: int, code: str) -> None:
    """Twice refused, then answered: the script sees the answer only."""
    busy = refusal(status, code, "retry-after: 0")
    with Stub(busy, busy, good()) as stub, Client(stub.url) as client:
        assert client.classify(b"picture").labels[0].label == "cat"
        assert [request.body for request in stub.requests] == [b"picture"] * 3


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(429, "overloaded", Overloaded), (503, "not_ready", NotReady), (503, "draining", Draining)],
)
def test_tries_have_an_end(status: int, code: str, kind: type[SaccadeError]) -> None:
    """After `retries` the refusal is raised as what it is."""
    with Stub(refusal(status, code)) as stub, Client(stub.url, retries=2) as client:
        with pytest.raises(kind):
            client.classify(b"picture")
        assert len(stub.requests) == 3


def test_nobody_comes_before_the_time_that_the_service_asked_for() -> None:
    """Retry-After: 1 is a second at the least, on the server's own clock."""
    with Stub(refusal(429, "overloaded", "retry-after: 1"), good()) as stub, Client(stub.url) as client:
        client.classify(b"picture")
        first, second = (request.at for request in stub.requests)
        assert second - first >= 1


def test_a_service_that_asks_for_too_long_is_not_waited_for() -> None:
    """An hour is the matter of whoever runs the script."""
    with Stub(refusal(429, "overloaded", "retry-after: 3600")) as stub, Client(stub.url) as client:
        with pytest.raises(Overloaded) as caught:
            client.classify(b"picture")
        assert caught.value.retry_after == 3600
        assert len(stub.requests) == 1


@pytest.mark.parametrize(
    ("status", "code"), [(400, "invalid_image"), (404, "unknown_model"), (500, "internal"), (504, "x")]
)
def test_what_would_be_refused_again_is_asked_once(status: int, code: str) -> None:
    with Stub(refusal(status, code)) as stub, Client(stub.url) as client:
        with pytest.raises(SaccadeError):
            client.classify(b"picture")
        assert len(stub.requests) == 1


def test_pauses_double_up_to_a_limit_and_spread_the_callers() -> None:
    """Never below what was asked for; callers that were refused together come apart, whatever they were told."""
    for tries, asked in itertools.product((*range(12), 10**6), (0.0, 3.0, 59.9)):
        waits = [wait_s(tries, asked, 60.0) for _ in range(200)]
        assert all(asked <= wait <= asked + min(60.0, 0.5 * 2 ** min(tries, 9)) for wait in waits)
        assert len(set(waits)) > 100


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (b"7", 7),
        (b" 120 ", 120),
        (b"Wed, 25 Nov 2026 12:00:30 GMT", 30),
        (b"Wed, 25 Nov 2026 11:59:30 GMT", 0),
        (b"", 0),
        (b"-3", 0),
        (b"soon", 0),
        (b"9" * 400, 1e9),
        (b"Wed, 25 Nov 99999999999999999999 12:00:30 GMT", 0),
        (b"Wed, 25 Nov 2026 12:00:30 +99999999999999", 0),
    ],
)
def test_retry_after_is_read_as_the_specification_has_it(header: bytes, seconds: float) -> None:
    """RFC 9110, 10.2.3: seconds or a date. Proxies send dates."""
    assert retry_after_s(header, datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)) == seconds


def test_a_connection_that_breaks_is_tried_again() -> None:
    """Once the service has been reached: a server that restarts costs a night's script nothing."""
    with Stub(good(), CLOSE, good()) as stub, Client(stub.url) as client:
        client.classify(b"one")
        client.classify(b"two")
        assert [request.body for request in stub.requests] == [b"one", b"two", b"two"]


def test_half_an_answer_is_none() -> None:
    """A connection that breaks in the middle of an answer is tried again; what came is thrown away."""
    with Stub(good(), good()[:-20], good(), closes=True) as stub, Client(stub.url) as client:
        client.classify(b"one")
        assert client.classify(b"two").labels[0].label == "cat"
        assert len(stub.requests) == 3


def test_an_address_at_which_nobody_ever_answered_is_not_tried_again() -> None:
    """A wrong port is told at once, and not after a minute of hope."""
    with Stub(CLOSE) as stub, Client(stub.url) as client:
        with pytest.raises(Unreachable, match="closed before the answer"):
            client.classify(b"picture")
        assert len(stub.requests) == 1


def test_an_idle_connection_that_the_server_closed_is_no_failure() -> None:
    """Servers close them after seconds; the next picture goes out on a new one, even without tries."""
    with Stub(good(), closes=True) as stub, Client(stub.url, retries=0) as client:
        for _ in range(5):
            client.classify(b"picture")
        assert stub.connections == 5


def test_connections_are_used_again(client: Client, pixels: NDArray[np.uint8]) -> None:
    """One for each thread that asks at a time, and no more."""
    with Stub(good()) as stub, Client(stub.url) as asking, ThreadPoolExecutor(4) as threads:
        assert len(list(threads.map(asking.classify, [b"picture"] * 100))) == 100
        assert len(stub.requests) == 100
        assert stub.connections <= 4


def test_a_service_that_does_not_answer_in_time_is_told_so() -> None:
    """With the seconds; and not asked again, which would double its work."""
    with Stub(HANG) as stub, Client(stub.url, timeout=0.05) as client:
        with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
            client.classify(b"picture")
        assert len(stub.requests) == 1


# --- HTTP as servers and proxies speak it


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b",
        b"HTTP/1.0 200 OK\r\n\r\n%b",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b",
    ],
    ids=["chunked", "after a 100", "until the end", "said to be the last"],
)
def test_every_framing_of_an_answer_is_read(answer: bytes) -> None:
    """RFC 9112: by length, by chunks, by the connection's end."""
    body = json.dumps(ANSWER).encode()
    parts: dict[int, tuple[Any, ...]] = {3: (body[:4], len(body) - 4, body[4:]), 2: (len(body), body), 1: (body,)}
    with Stub(answer % parts[answer.count(b"%")], closes=True) as stub, Client(stub.url, retries=0) as client:
        for _ in range(2):
            assert client.classify(b"picture").labels[0].label == "cat"


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\0" * 100])
def test_what_is_no_http_is_a_service_error(answer: bytes) -> None:
    with Stub(answer, closes=True) as stub, Client(stub.url) as client:
        with pytest.raises(ServiceError, match=r"no known form|closed"):
            client.classify(b"picture")
        assert len(stub.requests) == 1


def test_a_body_that_is_refused_on_its_way_is_told_why(small: Path) -> None:
    """20 MB against a limit of 1 kB: the service's sentence arrives, whenever it stops reading."""
    with Server(models=small, port=0, drain_grace_s=0, max_body_bytes=1024) as server, Client(server.url) as client:
        for size in (2_000, 300_000, 20_000_000):
            with pytest.raises(BodyTooLarge, match=f"has {size} bytes; the limit is 1024"):
                client.classify(bytes(size))
        assert server.stop() == 0


def test_a_service_below_a_path_is_reached() -> None:
    """As behind a proxy that gives each service a path of its own."""
    with Stub(good()) as stub, Client(f"{stub.url}/vision/") as client:
        client.classify(b"picture", top_k=3)
        assert stub.requests[0].head.startswith("POST /vision/v1/classify?top_k=3 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "url", ["http://user:word@127.0.0.1", "http://127.0.0.1/?a=1", "http://127.0.0.1/ä", "http:///x"]
)
def test_an_address_with_more_than_an_address_is_refused(url: str) -> None:
    with pytest.raises(ServiceError, match="not the address of a service"):
        Client(url)


def test_https_is_spoken_and_the_certificate_is_looked_at() -> None:
    """With the authorities given; with those of the system a certificate of our own is refused, and not retried."""
    authority = trustme.CA()
    server, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(trusting)
    large = bytes(3_000_000)
    with Stub(good(), tls=server) as stub:
        with Client(stub.url, tls=trusting) as client:
            for _ in range(3):
                assert client.classify(large).labels[0].label == "cat"
        assert [request.body == large for request in stub.requests] == [True] * 3
        before = stub.connections
        with Client(stub.url) as wary, pytest.raises(Unreachable, match="certificate"):
            wary.classify(b"picture")
        assert stub.connections == before + 1


# --- many


def numbered(count: int) -> list[bytes]:
    """Pictures that all differ."""
    levels = np.random.default_rng(9).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return [png(Image.fromarray(one)) for one in levels]


def test_many_pictures_are_answered_in_their_order(client: Client) -> None:
    """Each as it would be alone, the damaged ones with their error in their place."""
    pictures: list[Picture] = [*numbered(40)]
    pictures[7], pictures[23] = b"no picture", "/no/such/file.png"
    outcomes = list(client.classify_many(pictures, concurrency=5, top_k=1, decimals=9))
    assert [outcome.picture for outcome in outcomes] == pictures
    for number, (picture, answer, error) in enumerate(outcomes):
        if number in (7, 23):
            assert answer is None
            assert type(error) is (InvalidImage if number == 7 else DataError)
        else:
            assert error is None
            assert answer is not None
            assert answer.labels[0].score == pytest.approx(
                client.classify(picture, top_k=1, decimals=9).labels[0].score, abs=1e-5
            )


def test_a_million_pictures_would_need_no_more_memory_than_a_few(client: Client) -> None:
    """A generator is drawn as answers are taken, and what was answered is let go."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    def pictures() -> Iterator[Picture]:
        nonlocal most
        for data in numbered(200):
            picture = _Watched(data)
            alive.add(picture)
            most = max(most, len(alive))
            yield picture

    for number, outcome in enumerate(client.classify_many(pictures(), concurrency=2)):
        assert outcome.answer is not None, outcome.error
        assert number < 200
        del outcome
    gc.collect()
    assert most <= 4 * 2 + 4
    assert number == 199


class _Watched(io.BytesIO):
    """An open file that can be watched being let go."""


def test_who_stops_early_leaves_nothing_running(client: Client) -> None:
    """Threads end although the service hangs, and the rest of the pictures is not drawn."""
    drawn: list[int] = []

    def pictures() -> Iterator[Picture]:
        for number in range(1000):
            drawn.append(number)
            yield b"%d" % number

    with Stub(lambda request: good() if request.body == b"0" else HANG) as stub, Client(stub.url) as hanging:
        outcomes = hanging.classify_many(pictures(), concurrency=3)
        assert next(outcomes).answer is not None
        workers = [thread for thread in threading.enumerate() if thread.name == "saccade-client"]
        assert len(workers) == 3
        outcomes.close()  # type: ignore[attr-defined]
        for worker in workers:
            worker.join()
        hanging.close()
        assert stub.all_left()
    assert len(drawn) <= 13


def test_an_error_of_the_list_itself_is_raised_in_its_place(client: Client) -> None:
    """After the answers to what came before it."""

    def pictures() -> Iterator[Picture]:
        yield from numbered(5)
        raise OSError("the disk is gone")

    seen: list[Outcome] = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(client.classify_many(pictures()))
    outcomes = client.classify_many(pictures())
    assert [next(outcomes).error for _ in range(5)] == [None] * 5
    with pytest.raises(OSError, match="the disk is gone"):
        next(outcomes)


def test_a_list_that_waits_holds_nobody_up(client: Client) -> None:
    """Answers are given while the next picture is still being waited for, as from a camera."""
    more = threading.Event()

    def pictures() -> Iterator[Picture]:
        yield numbered(1)[0]
        assert more.wait(60)
        yield numbered(1)[0]

    outcomes = client.classify_many(pictures(), concurrency=2)
    assert next(outcomes).answer is not None
    more.set()
    assert next(outcomes).answer is not None
    assert next(outcomes, None) is None


def test_options_of_many_are_looked_at_before_the_first(client: Client) -> None:
    for wrong in ({"top_k": 0}, {"concurrency": 0}, {"concurrency": 2000}):
        with pytest.raises(InvalidParameter):
            client.classify_many([], **wrong)


# --- what goes wrong on the way


def test_a_machine_that_answers_no_call_is_unreachable(full: str) -> None:
    """Which is not the fault of the picture that is to be sent."""
    with Client(full, timeout=0.2) as client, pytest.raises(Unreachable, match="no connection in time"):
        client.classify(b"picture")


@pytest.mark.parametrize("host", ["127.0.0..1", "a" * 64])
def test_a_host_that_is_no_name_is_a_service_error(host: str) -> None:
    with Client(f"http://{host}:8000") as client, pytest.raises(ServiceError, match=r"not the address|does not answer"):
        client.classify(b"picture")


@pytest.mark.parametrize(
    ("status", "kind"), [(413, BodyTooLarge), (408, RequestTimeout), (504, DeadlineExceeded), (401, Unauthorized)]
)
def test_what_a_proxy_says_is_understood_by_its_status(status: int, kind: type[SaccadeError]) -> None:
    """nginx refuses a large picture in HTML, before the service hears of it."""
    with Stub(response(status, b"<html>")) as stub, Client(stub.url) as client, pytest.raises(kind, match=str(status)):
        client.classify(b"picture")


def test_a_proxy_whose_service_restarts_is_asked_again() -> None:
    """502, in HTML."""
    with Stub(response(502, b"<html>"), good()) as stub, Client(stub.url) as client:
        assert client.classify(b"picture").labels[0].label == "cat"


def test_what_follows_an_answer_is_no_part_of_it() -> None:
    """A server that ends an idle connection with a 408: the answer before it stands, and the connection is not used."""
    with Stub(good() + refusal(408, "request_timeout"), good()) as stub, Client(stub.url) as client:
        for _ in range(2):
            assert client.classify(b"picture").labels[0].label == "cat"
        assert stub.connections == 2


def test_an_answer_that_changes_the_protocol_is_a_service_error() -> None:
    switching = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"
    with Stub(switching) as stub, Client(stub.url) as client, pytest.raises(ServiceError, match="no known form"):
        client.classify(b"picture")


@contextlib.contextmanager
def speaking(said: bytes, then: bytes, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that says something once it has the head of a request, and something after its body, if it waits."""

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as plain:
            connection = tls.wrap_socket(plain, server_side=True) if tls else plain
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(1)
            connection.sendall(said)
            if then:
                left = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                while left:
                    left -= len(connection.recv(left))
                connection.sendall(then)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"{'https' if tls else 'http'}://localhost:{listener.getsockname()[1]}"
        thread.join()


def test_an_interim_answer_does_not_stop_a_large_body() -> None:
    """103 and 100 may come at any time (RFC 9110, 15.2)."""
    with speaking(b"HTTP/1.1 103 Early Hints\r\n\r\n", good()) as url, Client(url, retries=0) as client:
        assert client.classify(bytes(3_000_000)).labels[0].label == "cat"


def test_a_large_body_that_is_refused_on_its_way_through_tls_is_told_why() -> None:
    authority = trustme.CA()
    server, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(trusting)
    refused = refusal(413, "body_too_large", "connection: close")
    # a reset may destroy what was said: TCP has no other way
    told = pytest.raises((BodyTooLarge, Unreachable))
    with speaking(refused, b"", server) as url, Client(url, tls=trusting, retries=0) as client, told:
        client.classify(bytes(30_000_000))


def test_a_connection_that_has_ended_is_not_aborted() -> None:
    """It may be another caller's by then."""

    class Watched(Connection):
        aborted = False

        def abort(self) -> None:
            self.aborted = True

    ended, running = (Watched(Address.parse("http://127.0.0.1"), None) for _ in range(2))
    effort = Effort()
    for connection in (ended, running):
        effort.begin(connection)
    effort.end(ended)
    effort.give_up()
    assert (ended.aborted, running.aborted) == (False, True)


class _Broken(io.BytesIO):
    def read(self, *_: object) -> bytes:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize(
    ("picture", "kind", "words"),
    [
        (None, InvalidImage, "NoneType"),
        (7, InvalidImage, "int"),
        (io.StringIO("x"), InvalidImage, "opened for bytes"),
        (_Broken(), DataError, "Input/output error"),
        ("a\0b", DataError, "null byte"),
    ],
)
def test_what_is_no_picture_is_its_outcomes_error(
    client: Client, picture: Any, kind: type[SaccadeError], words: str
) -> None:
    """And not the end of all the others."""
    first, second = client.classify_many([picture, numbered(1)[0]])
    assert type(first.error) is kind
    assert words in str(first.error)
    assert second.answer is not None

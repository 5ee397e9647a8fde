"""The client against a real server: every way to hand over a picture, every option, every refusal by its class."""

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from saccade.client import Client, picture_bytes
from saccade.errors import (
    DataError,
    ImageTooLarge,
    InvalidImage,
    InvalidParameter,
    Overloaded,
    RequestError,
    SaccadeError,
    ServiceError,
    Unauthorized,
    UnknownModel,
    UnsupportedMap,
)
from tests.conftest import Server


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
    assert set(listed) == {"tiny-cct", "tiny-vit", "tiny-vit-mean", "tiny-resnet"}
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


class _Full(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = b'{"error": "256 images are waiting; the limit is 256", "code": "overloaded", "request_id": "1"}'
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(429)
        self.send_header("retry-after", "7")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_full_queue_says_how_long_to_wait() -> None:
    """The seconds of Retry-After reach the script that has to wait them."""
    with HTTPServer(("127.0.0.1", 0), _Full) as full:
        thread = threading.Thread(target=full.handle_request)
        thread.start()
        with Client(f"http://127.0.0.1:{full.server_port}") as client, pytest.raises(Overloaded) as caught:
            client.classify(b"picture")
        thread.join()
    assert caught.value.retry_after == 7


def test_a_key_that_no_header_can_carry_is_refused() -> None:
    """With a word of ours, before anything is sent."""
    with pytest.raises(InvalidParameter, match="no HTTP header"):
        Client(key="schlüssel")

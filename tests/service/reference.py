"""What the tests of the service stand on: pictures, the eager net's own numbers, formulas retyped, and fake runners."""

import base64
import io
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from export.verify import rebuild
from saccade.bundle import Bundle, open_bundle, update_bundle
from saccade.decode import decode
from saccade.preprocess import preprocess
from service.batcher import Batcher
from service.classifier import Classifier

Floats = NDArray[np.float32]
NAMES = ("tiny-cct", "tiny-vit", "tiny-vit-mean", "tiny-resnet")
WITH_ATTENTION = NAMES[:3]
WITH_CLASS_MAP = ("tiny-cct", "tiny-vit-mean", "tiny-resnet")


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Coarse noise, enlarged: it differs everywhere and survives JPEG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int = 0, width: int = 40, height: int = 30) -> bytes:
    return encoded(picture(width, height, seed))


PNG = png()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Eager(NamedTuple):
    """What the net itself, rebuilt in eager PyTorch, says of one picture."""

    logits: Floats  # (classes,)
    attention: tuple[Floats, ...]  # (heads, N, N) a layer
    pooling: Floats | None  # (N,)
    tokens: Floats | None  # (patches, width)
    weight: Floats  # (classes, width)
    bias: Floats  # (classes,)


def eager(bundle: Bundle, data: bytes) -> Eager:
    """The reference for one picture, on the pixels that the manifest's preprocessing makes of it."""
    spec = bundle.manifest.preprocessing
    pixels = preprocess(decode(data, spec.background), spec)
    net = rebuild(bundle)
    with torch.inference_mode():
        outputs = net.explain(torch.from_numpy(pixels[None]))
    first = [None if tensor is None else tensor[0].numpy() for tensor in (outputs.pooling, outputs.class_tokens)]
    return Eager(
        outputs.logits[0].numpy(),
        tuple(tensor[0].numpy() for tensor in outputs.attention),
        first[0],
        first[1],
        net.head.weight.detach().numpy(),
        net.head.bias.detach().numpy(),
    )


def softmax(logits: Floats) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    probabilities: NDArray[np.float64] = np.exp(wide) / np.exp(wide).sum()
    return probabilities


def pooled_row(bundle: Bundle, reference: Eager) -> NDArray[np.float64]:
    """(N,): how the classifier reads the tokens of the last layer."""
    tokens = reference.attention[-1].shape[-1]
    pooling = bundle.manifest.pooling
    assert pooling is not None
    if pooling.kind == "learned":
        assert reference.pooling is not None
        return reference.pooling.astype(np.float64)
    return np.full(tokens, 1 / tokens) if pooling.kind == "mean" else np.eye(tokens)[pooling.index]


def rollout(bundle: Bundle, reference: Eager) -> NDArray[np.float64]:
    """Abnar and Zuidema 2020: products of (mean over heads + identity) / 2, read by the pooled row. (N,)."""
    row = pooled_row(bundle, reference)
    for weights in reversed(reference.attention):
        row = row @ ((weights.astype(np.float64).mean(0) + np.eye(len(row))) / 2)
    return row


def patches(bundle: Bundle, row: NDArray[Any]) -> NDArray[Any]:
    """(N,) -> (rows, columns): special tokens left out."""
    layer = bundle.manifest.attention[-1]
    special = layer.special_tokens
    kept = row[special.count :] if special.place == "first" else row[: len(row) - special.count]
    return kept.reshape(layer.grid)


def copy_bundle(models: Path, name: str, folder: Path, version: int = 1, **fields: Any) -> Bundle:
    """A copy under `folder`, with fields of its manifest replaced, in a folder called after it."""
    original = open_bundle(models / name / "1")
    target = folder / name / str(version)
    shutil.copytree(original.folder, target)
    update_bundle(Bundle(target, original.manifest), {"version": version, **fields})
    return open_bundle(target)


class Real:
    """A runner on a real session of its own, which notes what it was asked."""

    def __init__(self, bundle: Bundle) -> None:
        self.session = onnxruntime.InferenceSession(str(bundle.graph), providers=["CPUExecutionProvider"])
        self.sizes: list[int] = []
        self.asked: list[tuple[str, ...]] = []

    def run(self, pixels: Floats, outputs: Sequence[str]) -> dict[str, Floats]:
        self.sizes.append(len(pixels))
        self.asked.append(tuple(outputs))
        return dict(zip(outputs, self.session.run(list(outputs), {"pixel_values": pixels}), strict=True))


class Gated(Real):
    """Each run says that it has begun and waits until it may go on."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.began = threading.Semaphore(0)
        self.go_on = threading.Event()

    def run(self, pixels: Floats, outputs: Sequence[str]) -> dict[str, Floats]:
        self.began.release()
        assert self.go_on.wait(30)
        return super().run(pixels, outputs)


class Changed(Real):
    """What the session gave, changed on the way out."""

    def __init__(self, bundle: Bundle, change: Callable[[dict[str, Floats]], dict[str, Floats]]) -> None:
        super().__init__(bundle)
        self.change = change

    def run(self, pixels: Floats, outputs: Sequence[str]) -> dict[str, Floats]:
        return self.change(super().run(pixels, outputs))


def put_runner(
    client: TestClient, runner: Any, model: str = "tiny-cct", max_batch: int = 16, capacity: int = 64
) -> Batcher:
    """Lets `runner` do the work of `model` from here on."""
    classifier: Classifier = client.app.state.service.registry().get(model)  # type: ignore[attr-defined]
    classifier.batcher.close()
    classifier.batcher = Batcher([runner], max_batch=max_batch, capacity=capacity)
    return classifier.batcher


def ask(client: Any, body: bytes = PNG, /, **query: Any) -> dict[str, Any]:
    """The answer of POST /v1/classify, which must be a success."""
    response = client.post("/v1/classify", params=query, content=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer

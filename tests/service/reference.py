"""What the tests of the service stand on: pictures, the eager net's own numbers, formulas retyped, and fake runners."""

import asyncio
import base64
import io
import shutil
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import onnx
import onnxruntime
import torch
import uvicorn
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from export.reference import rebuild
from saccade.bundle import GRAPH, Bundle, open_bundle, update_bundle
from saccade.decode import decode
from saccade.preprocess import preprocess
from service.app import Service, create_app_for
from service.batcher import Batcher, Runner
from service.settings import Settings

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
NAMES = ("tiny-cct", "tiny-vit", "tiny-vit-mean", "tiny-resnet")
WITH_ATTENTION = NAMES[:3]
WITH_CLASS_MAP = ("tiny-cct", "tiny-vit-mean", "tiny-resnet")
PATIENCE = 120
"""Seconds after which a test that waits has failed: longer than a busy machine lets any thread stand still."""


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
    special = bundle.manifest.attention[-1].special_tokens.count  # they stand first
    mean = np.where(np.arange(tokens) < special, 0, 1 / (tokens - special))
    return mean if pooling.kind == "mean" else np.eye(tokens)[pooling.index]


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

    def run(self, pixels: Floats, outputs: Sequence[str], class_index: Indices | None = None) -> dict[str, Floats]:
        assert class_index is None
        self.sizes.append(len(pixels))
        self.asked.append(tuple(outputs))
        return dict(zip(outputs, self.session.run(list(outputs), {"pixel_values": pixels}), strict=True))


class Gated(Real):
    """Each run says that it has begun and waits until it may go on."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.began = threading.Semaphore(0)
        self.go_on = threading.Event()

    def run(self, pixels: Floats, outputs: Sequence[str], class_index: Indices | None = None) -> dict[str, Floats]:
        self.began.release()
        assert self.go_on.wait(60)
        return super().run(pixels, outputs, class_index)


class Changed(Real):
    """What the session gave, changed on the way out."""

    def __init__(self, bundle: Bundle, change: Callable[[dict[str, Floats]], dict[str, Floats]]) -> None:
        super().__init__(bundle)
        self.change = change

    def run(self, pixels: Floats, outputs: Sequence[str], class_index: Indices | None = None) -> dict[str, Floats]:
        return self.change(super().run(pixels, outputs, class_index))


def put_runner(
    service: Service,
    *runners: Runner,
    model: str = "tiny-cct",
    replace: Callable[[Runner], Runner] | None = None,
    **plan: Any,
) -> Batcher[Any, Any]:
    """Lets `runners` do the work of `model` from here on, by the plan with these changes."""
    classifier = service.registry().get(model)
    classifier.close()
    classifier.plan = classifier.plan.model_copy(update=plan)
    classifier.start(runners, replace)
    return classifier.batcher


class Scene:
    """The service on a real socket, by uvicorn in a thread, with `runners` doing the work of one model."""

    def __init__(
        self,
        models: Path,
        *runners: Runner,
        model: str = "tiny-cct",
        replace: Callable[[Runner], Runner] | None = None,
        decode_threads: int | None = None,
        **plan: Any,
    ) -> None:
        self.model = model
        self.service = Service(Settings(models=models, default_model=model, decode_threads=decode_threads))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(create_app_for(self.service), lifespan="off", log_config=None, access_log=False)
        self.server = uvicorn.Server(config)
        loaded = threading.Event()

        async def run() -> None:
            await self.service.load()
            put_runner(self.service, *runners, model=model, replace=replace, **plan)
            loaded.set()
            await self.server.serve(sockets=[self.listener])
            await asyncio.to_thread(self.service.close)

        self.thread = threading.Thread(target=lambda: asyncio.run(run()))
        self.thread.start()
        assert loaded.wait(60)
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def post(self, body: bytes = PNG, /, **query: Any) -> httpx.Response:
        """Of POST /v1/classify, whatever it is."""
        return self.client.post("/v1/classify", params=query, content=body)

    def metric(self, name: str, **labels: str) -> float:
        """One sample of the model's, as /metrics shows it now: each look is a turn of the service's loop."""
        wanted = {"model": f"{self.model}@1", **labels}
        families = text_string_to_metric_families(self.get("/metrics").text)
        (value,) = [one.value for family in families for one in family.samples if one.name == name
                    and one.labels == wanted]  # fmt: skip
        return value

    def until(self, name: str, value: float) -> None:
        """Looks at /metrics until it says so."""
        for _ in range(3000):
            if self.metric(name) == value:
                return
        raise AssertionError(f"{name} is {self.metric(name)}, not {value}")

    def stop(self) -> None:
        """Runners that wait must be told to go on before."""
        self.client.close()
        self.server.should_exit = True
        self.thread.join()


def hanging_bundle(models: Path, folder: Path, file: str = GRAPH, *, always: bool = False) -> Bundle:
    """A copy of tiny-resnet whose graph never ends on a picture of one colour, or on any: a real run of the engine that
    hangs.
    """
    bundle = copy_bundle(models, "tiny-resnet", folder)
    model = onnx.load(bundle.folder / file, load_external_data=False)
    (last,) = [node for node in model.graph.node if "logits" in node.output]
    last.output[0] = "honest_logits"
    more = helper.make_node("Add", ["turns", "one"], ["turns_after"])
    again = helper.make_node("Identity", ["go_on"], ["go_on_after"])
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["one"], value_float=1.0), more, again],
        "turn",
        [
            helper.make_tensor_value_info("turn_index", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("turns", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on_after", TensorProto.BOOL, []),
            helper.make_tensor_value_info("turns_after", TensorProto.FLOAT, []),
        ],
    )
    model.graph.node.extend(
        [
            helper.make_node("Constant", [], ["pixels_of_a_channel"], value_ints=[0, 2, 3]),
            helper.make_node("ReduceMax", ["pixel_values", "pixels_of_a_channel"], ["brightest"], keepdims=0),
            helper.make_node("ReduceMin", ["pixel_values", "pixels_of_a_channel"], ["darkest"], keepdims=0),
            helper.make_node("Equal", ["brightest", "darkest"], ["even"]),
            helper.make_node("Cast", ["even"], ["even_number"], to=TensorProto.INT64),
            helper.make_node("ReduceMin", ["even_number"], ["one_colour"], keepdims=0),
            helper.make_node("Constant", [], ["always"], value_int=int(always)),
            helper.make_node("Max", ["one_colour", "always"], ["hangs"]),
            helper.make_node("Constant", [], ["for_ever"], value_int=2**60),
            helper.make_node("Mul", ["hangs", "for_ever"], ["most_turns"]),
            helper.make_node("Constant", [], ["nothing"], value_float=0.0),
            helper.make_node("Loop", ["most_turns", "", "nothing"], ["waste"], body=body),
            helper.make_node("Add", ["honest_logits", "waste"], ["logits"]),
        ]
    )
    update_bundle(bundle, {}, {file: model.SerializeToString()})
    return open_bundle(bundle.folder)


BLACK = encoded(Image.new("RGB", (20, 20)))
"""On which the graph of `hanging_bundle` never ends."""


def ask(client: Any, body: bytes = PNG, /, **query: Any) -> dict[str, Any]:
    """The answer of POST /v1/classify, which must be a success."""
    response = client.post("/v1/classify", params=query, content=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer

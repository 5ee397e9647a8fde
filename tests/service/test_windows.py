"""A model that attends within windows and scores each label by itself: what the service says, against numpy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from starlette.testclient import TestClient

from saccade.api import Answer, ClassifyOptions
from saccade.bundle import GOLDEN, GRAPH, WEIGHTS, open_bundle, write_bundle
from saccade.decode import decode
from saccade.errors import ResponseTooLarge
from saccade.golden import golden_file
from saccade.manifest import Manifest, Windows
from saccade.preprocess import preprocess
from service.app import create_app
from service.selection import select
from service.settings import Settings
from tests.service.reference import PNG

ROWS, COLUMNS = 4, 6
WINDOWS = Windows(count=(2, 3), picture=(ROWS, COLUMNS))
HEAD = np.random.default_rng(0).normal(size=(3, ROWS * COLUMNS)).astype(np.float32)
LABELS = ("grass", "sky", "dog")
FIELDS: dict[str, Any] = {
    "labels": LABELS,
    "scores": "sigmoid",
    "preprocessing": {"height": ROWS, "width": COLUMNS, "fit": "stretch", "mean": (0.5,) * 3, "std": (0.25,) * 3},
    "attention": [{"output": "attention_00", "grid": (2, 2), "heads": 1, "windows": WINDOWS.model_dump()}],
    "maps": {"default": []},
    "tolerance": {"CPUExecutionProvider": {"logits": 1e-4, "attention": 1e-5}},
    "provenance": {"origin": {"kind": "onnx", "name": "made.onnx"}, "commit": None, "versions": {}},
    "card": {"summary": "made", "license": "CC0-1.0", "parameters": HEAD.size},
}
Floats = NDArray[np.float32]


def formula(pixels: NDArray[Any]) -> dict[str, Floats]:
    """(n, 3, 4, 6) -> what the graph below promises, written with loops: every pixel is a token, its red the query."""
    red = pixels[:, 0].astype(np.float64)
    attention = np.zeros((len(red), 6, 1, 4, 4))
    for picture, whole in enumerate(red):
        for number in range(6):
            top, left = 2 * (number // 3), 2 * (number % 3)
            tokens = whole[top : top + 2, left : left + 2].ravel()
            powers = np.exp(np.outer(tokens, tokens))
            attention[picture, number, 0] = powers / powers.sum(-1, keepdims=True)
    logits = red.reshape(len(red), -1) @ HEAD.astype(np.float64).T
    return {"logits": logits.astype(np.float32), "attention_00": attention.astype(np.float32)}


def write_graph(folder: Path) -> None:
    """Red pixels, cut into windows of 2 x 2: softmax(x xᵀ) in each of them; the logits are a linear layer of all."""
    constants = {
        "cut": np.array([-1, 2, 2, 3, 2]), "fold": np.array([-1, 6, 1, 4, 1]), "flat": np.array([-1, ROWS * COLUMNS]),
        "start": np.array([0]), "end": np.array([1]), "axis": np.array([1]), "head": HEAD.T.copy(),
    }  # fmt: skip
    nodes = [
        helper.make_node("Slice", ["pixel_values", "start", "end", "axis"], ["red"]),
        helper.make_node("Reshape", ["red", "cut"], ["cut_up"]),
        helper.make_node("Transpose", ["cut_up"], ["windows"], perm=[0, 1, 3, 2, 4]),
        helper.make_node("Reshape", ["windows", "fold"], ["tokens"]),
        helper.make_node("Transpose", ["tokens"], ["turned"], perm=[0, 1, 2, 4, 3]),
        helper.make_node("MatMul", ["tokens", "turned"], ["products"]),
        helper.make_node("Softmax", ["products"], ["attention_00"], axis=-1),
        helper.make_node("Reshape", ["red", "flat"], ["all"]),
        helper.make_node("MatMul", ["all", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "windowed",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, ROWS, COLUMNS])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("attention_00", TensorProto.FLOAT, ["batch", 6, 1, 4, 4]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / GRAPH)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The service on a multi-label model with one layer of windows."""
    models = tmp_path_factory.mktemp("windowed")

    def write(folder: Path) -> dict[str, Any]:
        write_graph(folder)
        save_file({"head": HEAD}, folder / WEIGHTS)
        draft = {"schema_version": 1, "name": "windowed", "version": 1, "files": {}, **FIELDS}
        (folder / GOLDEN).write_bytes(golden_file(Manifest.model_validate(draft), formula))
        return FIELDS

    write_bundle(models, "windowed", 1, write)
    with TestClient(create_app(Settings(models=models)), raise_server_exceptions=False) as client:
        yield client


def expected(service: TestClient) -> dict[str, Floats]:
    spec = Manifest.model_validate(service.get("/v1/models/windowed").json()["manifest"]).preprocessing
    return formula(preprocess(decode(PNG, spec.background), spec)[None])


def ask(service: TestClient, **query: Any) -> Any:
    return service.post("/v1/classify", params={"decimals": 9, **query}, content=PNG).json()


def test_a_multi_label_model_scores_each_label_by_itself(windowed: TestClient) -> None:
    """1 / (1 + exp(-logit)), the largest first; they need not sum to 1, and `/v1/models` says so."""
    scores = 1 / (1 + np.exp(-expected(windowed)["logits"][0].astype(np.float64)))
    seen = {label["label"]: label["score"] for label in ask(windowed)["labels"]}
    assert list(seen) == [LABELS[index] for index in np.argsort(-scores)]
    np.testing.assert_allclose([seen[label] for label in LABELS], scores, atol=1e-6)
    assert windowed.get("/v1/models").json()["models"][0]["scores"] == "sigmoid"


def test_each_window_is_an_entry_that_says_where_it_lies(windowed: TestClient) -> None:
    """Softmax weights of one window of 2 x 2 tokens each, row by row over the picture."""
    answer = Answer.model_validate(ask(windowed, attention="all", heads="all"), strict=False)
    weights = expected(windowed)["attention_00"][0]
    assert answer.attention is not None
    assert len(answer.attention) == 6
    for number, entry in enumerate(answer.attention):
        assert entry.window is not None
        assert (entry.window.number, entry.window.row, entry.window.column) == (number, number // 3, number % 3)
        assert (entry.window.count, entry.window.picture) == ((2, 3), (4, 6))
        assert (entry.grid, entry.shape) == ((2, 2), (1, 4, 4))
        np.testing.assert_allclose(entry.weights, weights[number], atol=1e-6)


def test_windows_and_rows_are_chosen_by_number(windowed: TestClient) -> None:
    """In the order in which they were asked for."""
    weights = expected(windowed)["attention_00"][0]
    entries = ask(windowed, attention="0", windows="4,1", rows="3,0")["attention"]
    assert [entry["window"]["number"] for entry in entries] == [4, 1]
    for number, entry in zip((4, 1), entries, strict=True):
        np.testing.assert_allclose(entry["weights"], weights[number][:, [3, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({"attention": "all", "windows": "6"}, 400, "windows: 6 is outside of 0 to 5, the windows of layer 0"),
        ({"attention": "all", "rows": "4"}, 400, "rows: 4 is outside of 0 to 3"),
        ({"attention": "all", "rows": "pool"}, 422, "how windowed@1 pools its tokens is not known"),
        ({"maps": "rollout"}, 422, "its attention layers see parts of the picture, windows"),
    ],
)
def test_what_windows_cannot_give_is_refused_in_words(
    windowed: TestClient, query: dict[str, str], status: int, words: str
) -> None:
    response = windowed.post("/v1/classify", params=query, content=PNG)
    assert response.status_code == status
    assert words in response.json()["error"]


def test_windows_of_a_layer_that_has_none_are_refused(service: TestClient) -> None:
    """It would be ignored otherwise, and the caller would think that it got a part."""
    response = service.post("/v1/classify", params={"attention": "0", "windows": "0"}, content=PNG)
    assert response.status_code == 400
    assert "windows: layer 0 of tiny-cct@1 attends to the whole picture" in response.json()["error"]


def test_an_answer_that_is_too_large_names_one_window() -> None:
    """The first layer of a Swin-T: 64 windows, 3 heads, 49 tokens. The suggestion is a request that the model takes."""
    layer = {"output": "attention_00", "grid": (7, 7), "heads": 3, "windows": {"count": (8, 8), "picture": (56, 56)}}
    draft = {"schema_version": 1, "name": "swin", "version": 1, "files": {}, **FIELDS, "attention": [layer]}
    manifest = Manifest.model_validate(draft)
    with pytest.raises(ResponseTooLarge, match="attention=last&heads=mean&windows=0") as refused:
        select(manifest, ClassifyOptions(attention="all", heads="all"), 60_000)
    asked = str(refused.value).split("with ")[1].split(" ", maxsplit=1)[0]
    assert select(manifest, ClassifyOptions.from_query(parse_qsl(asked)), 60_000).numbers == 49 * 49


def test_the_golden_file_keeps_some_windows(windowed: TestClient) -> None:
    """At most 8 of them, and at most 8 rows: here all six, all four."""
    models = Path(windowed.app.state.service.settings.models)  # type: ignore[attr-defined]
    bundle = open_bundle(models / "windowed" / "1")
    with np.load(bundle.golden) as file:
        assert file["attention_00_windows"].tolist() == list(range(6))
        assert file["attention_00"].shape == (4, 6, 1, 4, 4)

"""The rule of large files: what is too much for one file, which protobuf allows 2 GiB, has its weights beside it."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from export.explain.relevance import Classifier, add_relevance
from export.explain.write import WITHIN, Written, write_beside
from export.names import LOGITS
from tests.export.graph import models
from tests.export.graph.conftest import exposed, noise, write


@pytest.fixture(scope="module")
def net() -> models.Classifier:
    return models.lively(models.Vit())


@pytest.fixture(scope="module")
def source(net: models.Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(net, net.size, tmp_path_factory.mktemp("given") / "vit.onnx", "script")


def explained(source: Path, size: tuple[int, int]) -> ir.Model:
    model, found = exposed(source, size)
    outputs = {value.name: value for value in model.graph.outputs}
    attention = tuple(outputs[layer.output] for layer in found.layers)
    add_relevance(model, Classifier("it", outputs[LOGITS], found.classes, found.layers, attention, found.pooling, None))
    return model


def written(source: Path, net: models.Classifier, out: Path, within: int) -> Written:
    theirs = onnx.load(source).graph.output[0].name
    model = explained(source, net.size)
    own = next(value for value in model.graph.outputs if value.name == theirs or value.name == LOGITS)
    own.name = theirs
    return write_beside(model, source, out, [theirs], within=within)


def test_weights_go_beside_the_graph_where_they_are_too_many(
    source: Path, net: models.Classifier, tmp_path: Path
) -> None:
    """By one byte; either way any ONNX Runtime opens it, and it gives the same logits."""
    (tmp_path / "all").mkdir()
    written(source, net, tmp_path / "all" / "one.onnx", WITHIN)
    weights = sum(
        numpy_helper.to_array(one).nbytes for one in onnx.load(tmp_path / "all" / "one.onnx").graph.initializer
    )
    pixels = noise(2, net.size)
    with torch.inference_mode():
        expected = net(torch.from_numpy(pixels)).numpy()
    for within, beside in ((weights, False), (weights - 1, True)):
        folder = tmp_path / str(within)
        folder.mkdir()
        made = written(source, net, folder / "why.onnx", within)
        data = folder / "why.onnx.data"
        assert made.data == (data if beside else None)
        assert sorted(one.name for one in folder.iterdir()) == ["why.onnx", *(["why.onnx.data"] if beside else [])]
        session = onnxruntime.InferenceSession(str(folder / "why.onnx"), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        logits, *_ = session.run(None, {name: pixels, "class_index": np.array([[-1], [-1]])})
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_what_one_file_may_hold_leaves_room_for_a_graph_below_2_gib() -> None:
    assert 2**30 < WITHIN < onnx.checker.MAXIMUM_PROTOBUF
    assert onnx.checker.MAXIMUM_PROTOBUF - WITHIN > 32 * 2**20

"""relevance.onnx on disk: on the weights of the bundle, and nothing where a gradient is wrong."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from export.explain.build import write_relevance
from export.explain.relevance import CLASS_INDEX, TOP
from export.names import INPUT
from export.runtime import open_graph
from saccade.bundle import RELEVANCE, Bundle, open_bundle
from saccade.errors import BundleError
from saccade.manifest import SWITCHES
from tests.conftest import NETS
from tests.export.explain.test_relevance import noise


@pytest.mark.parametrize("name", NETS)
def test_it_gives_what_the_model_gives_on_the_same_weights(models: Path, tmp_path: Path, name: str) -> None:
    """From a folder with the one file of weights; beside it the graph is small."""
    shutil.copytree(models / name, tmp_path / name)
    folder = tmp_path / name / "1"
    bundle = open_bundle(folder)
    maps = write_relevance(bundle, folder)
    assert (folder / RELEVANCE).stat().st_size < 100_000
    proto = onnx.load(folder / RELEVANCE, load_external_data=False)
    assert {
        entry.value for one in proto.graph.initializer for entry in one.external_data if entry.key == "location"
    } == {"weights.safetensors"}
    session = onnxruntime.InferenceSession(str(folder / RELEVANCE), providers=["CPUExecutionProvider"])
    names, pixels = [output.name for output in session.get_outputs()], noise(bundle, 2)
    feed = {INPUT: pixels, CLASS_INDEX: np.full((2, 1), TOP)}
    feed |= {one.name: np.array(True) for one in session.get_inputs() if one.name in SWITCHES}
    seen = dict(zip(names, session.run(None, feed), strict=True))
    assert maps.gradients is not None
    assert {*bundle.manifest.outputs, *maps.gradients.names} == set(names)
    for output, values in open_graph(bundle.graph)(pixels).items():
        np.testing.assert_allclose(seen[output], values, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-cct", "tiny-vit"])
def test_an_error_function_is_worked_out_once(models: Path, tmp_path: Path, name: str) -> None:
    """GELU and its derivative share it, in all maps: there are as many as blocks, and none is hidden in an operator."""
    bundle = open_bundle(models / name / "1")
    write_relevance(bundle, tmp_path)
    proto = onnx.load(tmp_path / RELEVANCE, load_external_data=False)
    branches = [attribute.g for node in proto.graph.node for attribute in node.attribute if attribute.HasField("g")]
    operators = [node.op_type for graph in (proto.graph, *branches) for node in graph.node]
    blocks = len(bundle.manifest.attention)
    assert blocks
    assert (operators.count("Erf"), operators.count("Gelu")) == (blocks, 0)


def test_what_cannot_be_had_is_said_and_nothing_is_written(models: Path, tmp_path: Path) -> None:
    """Each map with its reason."""
    bundle = open_bundle(models / "tiny-vit" / "1")
    unread = Bundle(bundle.folder, bundle.manifest.model_copy(update={"pooling": None}))
    with pytest.raises(
        BundleError, match=r"no map of gradients: relevance: how the classifier reads the tokens is not"
    ):
        write_relevance(unread, tmp_path)
    assert not list(tmp_path.iterdir())

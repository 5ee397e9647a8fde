"""The graph is the net: its own parameters under their own names, and the same answers."""

import socket
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf.message import Message
from safetensors.torch import load_file

from export.convert import write_model
from export.nets import Net, build
from export.nets.maps import output_names
from export.recipe import Recipe
from saccade.bundle import Bundle
from tests.conftest import ROOT, tiny_recipe
from tests.export.conftest import noise

TORCH_TYPES = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.INT64: torch.int64}


def graph_of(folder: Path) -> onnx.ModelProto:
    return onnx.load(folder / "model.onnx", load_external_data=False)


def trained_net(runs: dict[str, Path], name: str) -> Net:
    """Built from the run, not from the bundle."""
    recipe = Recipe.model_validate_json((runs[name] / "recipe.json").read_text())
    net = build(recipe.net, recipe.size, 10)
    net.load_state_dict(load_file(runs[name] / "best.safetensors"))
    return net.eval()


def external_entries(model: onnx.ModelProto) -> list[tuple[str, dict[str, str], onnx.TensorProto]]:
    return [
        (tensor.name, {entry.key: entry.value for entry in tensor.external_data}, tensor)
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]


def assert_holds_each_parameter_once(folder: Path, net: Net) -> None:
    state = net.state_dict()
    content = (folder / "weights.safetensors").read_bytes()
    names = Counter[str]()
    for name, entry, tensor in external_entries(graph_of(folder)):
        assert entry["location"] == "weights.safetensors"
        begin, length = int(entry["offset"]), int(entry["length"])
        assert content[begin : begin + length] == state[name].contiguous().numpy().tobytes(), name
        assert tuple(tensor.dims) == tuple(state[name].shape)
        assert TORCH_TYPES[tensor.data_type] == state[name].dtype
        names[name] += 1
    assert set(names.values()) == {1}
    parameters = {name for name, parameter in net.named_parameters() if parameter.numel()}
    assert parameters <= names.keys()
    assert {name for name in state if "running" in name} <= names.keys()


def test_each_initializer_is_a_parameter_bit_for_bit(bundle: Bundle, runs: dict[str, Path]) -> None:
    """Weights stand once, in safetensors, under the names and in the layout of the net they came from."""
    net = trained_net(runs, bundle.manifest.name)
    assert_holds_each_parameter_once(bundle.folder, net)
    saved, state = load_file(bundle.weights), net.state_dict()
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[name], state[name]) for name in state)


@pytest.mark.parametrize("name", ["tiny-cct", "tiny-resnet"])
def test_parameters_that_are_equal_stay_two(name: str, tmp_path: Path) -> None:
    """Norms of a fresh net are all ones and zeros; each keeps its own name, so that the net can be rebuilt."""
    recipe = tiny_recipe(name)
    torch.manual_seed(0)
    net = build(recipe.net, recipe.size, 10)
    write_model(net, recipe.size, tmp_path)
    assert_holds_each_parameter_once(tmp_path, net)


def test_outputs_have_their_fixed_names_in_the_order_of_the_manifest(bundle: Bundle) -> None:
    """A reader of the manifest knows the graph: one input, outputs by name and place."""
    graph = graph_of(bundle.folder).graph
    expected = {
        "tiny-cct": ["logits", "attention_00", "attention_01", "pooling", "rollout", "class_tokens"],
        "tiny-vit": ["logits", "attention_00", "attention_01", "attention_02", "rollout"],
        "tiny-vit-mean": ["logits", "attention_00", "attention_01", "rollout", "class_tokens"],
        "tiny-hybrid": ["logits", "attention_00", "attention_01", "class_tokens"],
        "tiny-resnet": ["logits", "class_tokens"],
        "tiny-convmixer": ["logits", "class_tokens"],
    }[bundle.manifest.name]
    assert [output.name for output in graph.output] == expected == list(bundle.manifest.outputs)
    assert [value.name for value in graph.input] == ["pixel_values"]
    shape = graph.input[0].type.tensor_type.shape.dim
    assert shape[0].dim_param
    spec = bundle.manifest.preprocessing
    assert [dim.dim_value for dim in shape[1:]] == [3, spec.height, spec.width]


def test_the_graph_is_valid_and_of_the_opset_that_every_provider_runs(bundle: Bundle) -> None:
    """onnx's own checker has nothing to say; opset 20 and no other domain."""
    onnx.checker.check_model(str(bundle.graph), full_check=True)
    model = graph_of(bundle.folder)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions


def test_the_graph_tells_nothing_of_the_machine_that_made_it(bundle: Bundle) -> None:
    """No stack trace, no path, no host, no note of the exporter: only what the model is."""
    content = bundle.graph.read_bytes()
    telling = [b"stack_trace", b"site-packages", b".py", b"export/nets", b"export.nets", b"/tmp", b"pkg.torch"]
    for word in [*telling, str(ROOT).encode(), str(Path.home()).encode(), socket.gethostname().encode()]:
        assert word not in content, word
    assert not list(_notes(graph_of(bundle.folder)))
    assert len(content) < 300_000


def _notes(message: Message) -> list[str]:
    """All doc strings and metadata, wherever they stand."""
    found = []
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            found.append(f"{message.DESCRIPTOR.name}.{field.name}: {value}")
        elif field.message_type is not None:
            for child in [value] if isinstance(value, Message) else value:
                found += _notes(child)
    return found


@pytest.mark.parametrize("count", [1, 5])
def test_onnx_runtime_answers_as_eager_pytorch(bundle: Bundle, runs: dict[str, Path], count: int) -> None:
    """Any batch size, the numbers of the net that was trained: logits to 1e-4, attention to 1e-5."""
    name = bundle.manifest.name
    net, images = trained_net(runs, name), noise(name, count)
    session = onnxruntime.InferenceSession(str(bundle.graph), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    seen = dict(zip(names, session.run(None, {"pixel_values": images.numpy()}), strict=True))
    with torch.inference_mode():
        outputs, fused = net.explain(images), net(images)
    np.testing.assert_allclose(seen["logits"], fused.numpy(), atol=1e-4)
    for index, attention in enumerate(outputs.attention):
        np.testing.assert_allclose(seen[f"attention_{index:02d}"], attention.numpy(), atol=1e-5)
    if outputs.pooling is not None:
        np.testing.assert_allclose(seen["pooling"], outputs.pooling.numpy(), atol=1e-5)
    if outputs.class_tokens is not None:
        np.testing.assert_allclose(seen["class_tokens"], outputs.class_tokens.numpy(), atol=1e-4)


def test_only_what_a_net_has_is_an_output() -> None:
    """A CNN has no attention and no rollout, a class-token net no exact class map, a net of two grids no rollout."""
    pairs = [("tiny-resnet", "rollout"), ("tiny-vit", "class_tokens"), ("tiny-vit-mean", "pooling")]
    for name, absent in (*pairs, ("tiny-hybrid", "rollout"), ("tiny-hybrid", "pooling")):
        recipe = tiny_recipe(name)
        assert absent not in output_names(build(recipe.net, recipe.size, 10))

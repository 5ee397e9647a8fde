"""Which model a name means, and what stops a load."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save
from starlette.testclient import TestClient

from saccade.bundle import open_bundle, update_bundle
from saccade.errors import BundleError, SettingsError
from tests.service.reference import ask, copy_bundle

Start = Callable[..., TestClient]


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A models folder with two versions of tiny-resnet and one of tiny-cct."""
    for version in (2, 10):
        copy_bundle(models, "tiny-resnet", tmp_path, version)
    copy_bundle(models, "tiny-cct", tmp_path)
    return tmp_path


def listed(client: TestClient) -> dict[str, bool]:
    models = client.get("/v1/models").json()["models"]
    return {f"{one['name']}@{one['version']}": one["default"] for one in models}


def test_the_default_is_the_one_that_the_setting_names(serve: Start, folder: Path) -> None:
    """With a version or without; without, the highest, by number and not by letters."""
    for default, version in (("tiny-resnet@2", 2), ("tiny-resnet", 10)):
        client = serve(models=folder, default_model=default)
        assert ask(client)["model"] == {"name": "tiny-resnet", "version": version}
        assert [name for name, is_default in listed(client).items() if is_default] == [f"tiny-resnet@{version}"]


def test_the_only_model_is_the_default(serve: Start, folder: Path) -> None:
    """Nothing to set for one model; of several versions the highest counts."""
    shutil.rmtree(folder / "tiny-cct")
    assert ask(serve(models=folder, default_model=None))["model"] == {"name": "tiny-resnet", "version": 10}


def test_without_a_default_several_models_are_all_named(serve: Start, folder: Path) -> None:
    """400, not a guess; a request that names one is answered."""
    client = serve(models=folder, default_model=None)
    error = client.post("/v1/classify", content=b"").json()["error"]
    assert all(name in error for name in ("tiny-cct@1", "tiny-resnet@2", "tiny-resnet@10"))
    assert not any(listed(client).values())
    assert ask(client, model="tiny-cct")["model"]["name"] == "tiny-cct"


def test_two_versions_are_served_side_by_side(serve: Start, folder: Path) -> None:
    """name@version is that version, name the highest; and the routes of the models agree."""
    client = serve(models=folder)
    for model, version in (("tiny-resnet@2", 2), ("tiny-resnet@10", 10), ("tiny-resnet", 10)):
        assert ask(client, model=model)["model"]["version"] == version
        assert client.get(f"/v1/models/{model}").json()["version"] == version
    assert set(listed(client)) == {"tiny-cct@1", "tiny-resnet@2", "tiny-resnet@10"}


@pytest.mark.parametrize("default", ["nobody", "tiny-cct@2"])
def test_a_default_that_is_not_there_stops_the_start(serve: Start, models: Path, default: str) -> None:
    """And says what there is."""
    with pytest.raises(SettingsError, match=rf"SACCADE_DEFAULT_MODEL is '{default}'.*tiny-cct@1.*tiny-resnet@1"):
        serve(models=models, default_model=default)


def test_a_folder_without_models_stops_the_start(serve: Start, tmp_path: Path) -> None:
    """Empty or missing: each its sentence with the path."""
    with pytest.raises(BundleError, match=rf"{tmp_path} holds no bundle"):
        serve(models=tmp_path)
    with pytest.raises(BundleError, match=rf"no folder of models at {tmp_path}/nowhere"):
        serve(models=tmp_path / "nowhere")


def test_models_says_what_each_can_do(service: TestClient) -> None:
    """Enough to choose a model and its maps without reading a manifest."""
    found = {one["name"]: one for one in service.get("/v1/models").json()["models"]}
    assert found["tiny-vit"] == {
        "name": "tiny-vit", "version": 1, "default": False, "labels": 10,
        "attention_layers": 3, "maps": ["rollout", "relevance", "grad_attention", "legrad"], "scores": "softmax",
        "input_size": [16, 24], "precision": "float32", "parent": None,
    }  # fmt: skip
    assert found["tiny-cct"]["maps"] == ["pooling", "rollout", "class", "relevance", "grad_attention", "legrad"]
    assert found["tiny-cct"]["default"] is True
    assert found["tiny-resnet"]["attention_layers"] == 0


def test_one_model_shows_its_manifest_card_and_plan(service: TestClient, models: Path) -> None:
    """The manifest over HTTP is the manifest on disk."""
    import json

    info = service.get("/v1/models/tiny-vit").json()
    on_disk = json.loads((models / "tiny-vit" / "1" / "manifest.json").read_text())
    assert info["manifest"] == on_disk
    assert info["card"] == on_disk["card"]
    assert info["plan"]["provider"] == "CPUExecutionProvider"


# --- damage


def cut(bundle: Path) -> str:
    path = bundle / "model.onnx"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    return rf"model\.onnx has {size - 1} bytes; the manifest says {size}"


def flip(bundle: Path) -> str:
    path = bundle / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return r"weights\.safetensors has sha256 [0-9a-f]{64}; the manifest says [0-9a-f]{64}"


def other_golden(bundle: Path) -> str:
    opened = open_bundle(bundle)
    with np.load(opened.golden) as file:
        arrays = dict(file)
    arrays["logits"] = arrays["logits"] + np.float32(0.5)
    import io

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    update_bundle(opened, {}, {"golden.npz": buffer.getvalue()})
    return r"output logits is 0\.5 away from its golden values; 0\.0001 is allowed"


def renamed_output(bundle: Path) -> str:
    opened = open_bundle(bundle)
    (first, *others) = opened.manifest.model_dump()["attention"]
    update_bundle(opened, {"attention": [{**first, "output": "attention_07"}, *others]})
    return r"no output attention_07; it has logits, attention_00"


def other_grid(bundle: Path) -> str:
    opened = open_bundle(bundle)
    (first, *others) = opened.manifest.model_dump()["attention"]
    update_bundle(opened, {"attention": [{**first, "grid": (4, 8)}, *others]})
    return r"attention_00 is \[2, 64, 64\]; the manifest says \[2, 32, 32\]"


def fewer_labels(bundle: Path) -> str:
    update_bundle(open_bundle(bundle), {"labels": ["a", "b"]})
    return r"\(10, 32\).*the manifest has 2 labels"


def no_head(bundle: Path) -> str:
    opened = open_bundle(bundle)
    tensors = {name: values for name, values in load_file(opened.weights).items() if name != "head.weight"}
    update_bundle(opened, {}, {"weights.safetensors": save(tensors)})
    return r"weights\.safetensors.*head\.weight"


def other_size(bundle: Path) -> str:
    opened = open_bundle(bundle)
    update_bundle(opened, {"preprocessing": {**opened.manifest.preprocessing.model_dump(), "height": 32}})
    return r"pixel_values tensor\(float\) \[batch, 3, 16, 16\]; the manifest says .*\[batch, 3, 32, 16\]"


def no_tolerance(bundle: Path) -> str:
    update_bundle(open_bundle(bundle), {"tolerance": {"CUDAExecutionProvider": {"logits": 1}}})
    return r"no tolerance for CPUExecutionProvider; it states them for CUDAExecutionProvider"


def no_graph(bundle: Path) -> str:
    update_bundle(open_bundle(bundle), {}, {"model.onnx": b"this is no graph"})
    return r"ONNX Runtime does not load .*model\.onnx"


def flat_head(bundle: Path) -> str:
    opened = open_bundle(bundle)
    maps = opened.manifest.model_dump()["maps"]
    update_bundle(opened, {"maps": {**maps, "class_map": {**maps["class_map"], "weight": "head.bias"}}})
    return r"head\.bias is \(10,\).*the manifest has 10 labels"


def open_dimensions(bundle: Path) -> str:
    opened = open_bundle(bundle)
    graph = onnx.load(opened.graph, load_external_data=False)
    for output in graph.graph.output:
        if output.name == "attention_00":
            output.type.tensor_type.shape.dim[1].Clear()
            output.type.tensor_type.shape.dim[1].dim_param = "heads"
    (first, *others) = opened.manifest.model_dump()["attention"]
    changed = {"attention": [{**first, "heads": 7}, *others]}
    update_bundle(opened, changed, {"model.onnx": graph.SerializeToString()})
    return r"attention_00 is \[2, 64, 64\]; the manifest says \[7, 64, 64\]"


def no_input(bundle: Path) -> str:
    constant = onnx.helper.make_node("Constant", [], ["logits"], value_floats=[1.0] * 10)
    output = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [10])
    graph = onnx.helper.make_graph([constant], "constant", [], [output])
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    update_bundle(open_bundle(bundle), {}, {"model.onnx": model.SerializeToString()})
    return r"the graph takes no input; the manifest says pixel_values"


def large_golden(bundle: Path) -> str:
    opened = open_bundle(bundle)
    update_bundle(opened, {}, {"golden.npz": opened.golden.read_bytes() + bytes(10**6)})
    return r"golden\.npz does not fit the manifest: it has \d+ bytes; the limit is 1000000"


@pytest.mark.parametrize(
    "damage",
    [cut, flip, other_golden, renamed_output, other_grid, fewer_labels, no_head, other_size, no_tolerance, no_graph,
     flat_head, open_dimensions, no_input, large_golden],
)  # fmt: skip
def test_a_bundle_that_is_not_what_its_manifest_says_stops_the_load(
    serve: Start, models: Path, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    """Before the first request, with the two values that differ."""
    bundle = copy_bundle(models, "tiny-cct", tmp_path)
    expected = damage(bundle.folder)
    with pytest.raises(BundleError, match=expected):
        serve(models=tmp_path)


def test_a_folder_that_is_called_otherwise_stops_the_load(serve: Start, models: Path, tmp_path: Path) -> None:
    """A copy under another name would answer under a name that its manifest does not bear."""
    copied: Any = shutil.copytree(models / "tiny-cct" / "1", tmp_path / "tiny-cct" / "2")
    with pytest.raises(BundleError, match=r"holds 'tiny-cct' version 1; the folder must be called tiny-cct/1"):
        serve(models=copied.parent.parent)

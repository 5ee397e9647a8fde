"""manifest.json: a typo, a later schema or a contradiction fails when it is read, in words."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from saccade.bundle import Bundle
from saccade.manifest import AttentionLayer, ClassMap, Manifest, Maps, Preprocessing, SpecialTokens

PREPROCESSING: dict[str, Any] = {
    "height": 32,
    "width": 24,
    "shortest_edge": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
}
LAYER: dict[str, Any] = {"output": "attention_00", "grid": [2, 3], "heads": 2, "special_tokens": {"count": 1}}
WINDOWS: dict[str, Any] = {"count": [2, 2], "picture": [4, 5]}


def manifest(**fields: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": "made",
        "version": 1,
        "labels": ["cat", "dog"],
        "preprocessing": PREPROCESSING,
        "attention": [LAYER],
        "pooling": {"kind": "class_token"},
        "maps": {"default": ["rollout"], "rollout": "rollout"},
        "tolerance": {"CPUExecutionProvider": {"logits": 1e-4}},
        "provenance": {"recipe": {}, "data": "none", "held_out": "none", "seed": 1, "commit": None, "versions": {}},
        "card": {"summary": "made", "license": "CC0-1.0", "parameters": 6},
        "files": {"model.onnx": {"sha256": "0" * 64, "bytes": 3}},
        **fields,
    }


def test_a_manifest_survives_json(bundle: Bundle) -> None:
    """What is written is what is read, for every kind of net."""
    text = bundle.manifest.model_dump_json()
    assert Manifest.model_validate_json(text) == bundle.manifest
    assert Manifest.model_validate(json.loads(text)) == bundle.manifest


def test_the_file_on_disk_is_the_manifest(bundle: Bundle) -> None:
    on_disk = json.loads((bundle.folder / "manifest.json").read_text())
    assert on_disk == bundle.manifest.model_dump(mode="json")


def test_a_manifest_cannot_be_changed() -> None:
    read = Manifest.model_validate(manifest())
    with pytest.raises(ValidationError, match="frozen"):
        read.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        read.preprocessing.height = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "fields",
    [
        {"colour": "red"},
        {"preprocessing": {**PREPROCESSING, "crop": 3}},
        {"attention": [{**LAYER, "tokens": 7}]},
        {"maps": {"default": [], "gradcam": "x"}},
        {"card": {"summary": "", "license": "", "parameters": 1, "acuracy": []}},
    ],
)
def test_an_unknown_key_is_an_error_at_every_depth(fields: dict[str, Any]) -> None:
    """A misspelt key is not a key left out."""
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Manifest.model_validate(manifest(**fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schema_version": 2}, "Input should be 1"),
        ({"name": "Made"}, "pattern"),
        ({"name": "../made"}, "pattern"),
        ({"name": ""}, "pattern"),
        ({"version": 0}, "greater than or equal to 1"),
        ({"labels": []}, "at least 1"),
        ({"labels": ["cat", "cat"]}, "labels must differ"),
        ({"pooling": None}, "the map rollout needs a model that says how it pools"),
        ({"attention": [], "maps": {"default": []}}, "pooling is said of the last attention layer's tokens"),
        ({"attention": [{**LAYER, "windows": WINDOWS}]}, "attend to the whole picture, not to parts"),
        ({"pooling": {"kind": "class_and_distillation", "index": 6}}, "pooling.index is 6; the last layer has 7"),
        ({"scores": "relu"}, "'softmax' or 'sigmoid'"),
        ({"temperature": 0.049}, "greater than or equal to 0.05"),
        ({"temperature": 20.1}, "less than or equal to 20"),
        ({"attention": []}, "rollout and pooling need attention layers"),
        ({"pooling": {"kind": "learned"}}, "learned pooling needs an output"),
        ({"pooling": {"kind": "class_token", "index": 9999}}, "pooling.index is 9999; the last layer has"),
        ({"attention": [LAYER, LAYER]}, "outputs must differ from each other: logits, attention_00, attention_00"),
        ({"maps": {"default": [], "rollout": "attention_00"}}, "outputs must differ"),
        ({"maps": {"default": ["class"], "rollout": "rollout"}}, r"\['class'\] are not among .*\['rollout'\]"),
        ({"maps": {"default": ["saliency"]}}, "'pooling', 'rollout', 'class', 'relevance'"),
        ({"attention": [{**LAYER, "grid": [0, 3]}]}, "greater than or equal to 1"),
        ({"attention": [{**LAYER, "grid": [6]}]}, "grid"),
        ({"attention": [{**LAYER, "heads": 0}]}, "greater than or equal to 1"),
        ({"files": {"model.onnx": {"sha256": "0" * 63, "bytes": 3}}}, "pattern"),
        ({"files": {"model.onnx": {"sha256": "0" * 64, "bytes": -1}}}, "greater than or equal to 0"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(fields: dict[str, Any], words: str) -> None:
    """Each in words that name what is wrong."""
    with pytest.raises(ValidationError, match=words):
        Manifest.model_validate(manifest(**fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shortest_edge": None}, "shortest_edge of at least 32, not None"),
        ({"stretch_to": [40, 40]}, "no meaning with fit='crop'"),
        ({"fit": "stretch", "shortest_edge": None, "stretch_to": [32, 23]}, "stretch_to must be at least 32 x 24"),
        (
            {"fit": "stretch", "shortest_edge": None, "stretch_to": [40, 40], "interpolation": "nearest"},
            "a crop needs a smooth interpolation",
        ),
        ({"channels": "GBR"}, "'RGB' or 'BGR'"),
        ({"interpolation": "box"}, "needs a smooth interpolation, bilinear or bicubic, not box"),
        ({"interpolation": "nearest"}, "needs a smooth interpolation"),
        ({"shortest_edge": 31}, "shortest_edge of at least 32, not 31"),
        ({"fit": "stretch"}, "no meaning with fit='stretch'"),
        ({"fit": "pad"}, "'stretch' or 'crop'"),
        ({"interpolation": "magic"}, "'bilinear'"),
        ({"std": [0.2, 0.0, 0.2]}, "std must be positive"),
        ({"std": [0.2, -1.0, 0.2]}, "std must be positive"),
        ({"std": [0.2, float("nan"), 0.2]}, "finite"),
        ({"mean": [float("inf"), 0, 0]}, "finite"),
        ({"mean": [0.5]}, "mean"),
        ({"height": 0}, "greater than or equal to 1"),
        ({"background": [0, 0, 256]}, "less than or equal to 255"),
    ],
)
def test_preprocessing_that_means_nothing_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Preprocessing.model_validate({**PREPROCESSING, **fields})


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (SpecialTokens(), (6, slice(0, 6))),
        (SpecialTokens(count=1), (7, slice(1, 7))),
        (SpecialTokens(count=5, place="first"), (11, slice(5, 11))),
        (SpecialTokens(count=2, place="last"), (8, slice(0, 6))),
    ],
)
def test_patches_are_found_among_special_tokens(tokens: SpecialTokens, expected: tuple[int, slice]) -> None:
    """Never by a square root: the grid is 2 x 3."""
    layer = AttentionLayer(output="attention_00", grid=(2, 3), heads=1, special_tokens=tokens)
    assert (layer.patches, layer.tokens, layer.patch_slice) == (6, *expected)


def test_the_shape_of_a_windowed_layer_has_an_axis_of_windows() -> None:
    """Each window has its own softmax weights over its own tokens."""
    layer = AttentionLayer.model_validate({**LAYER, "special_tokens": {}, "windows": WINDOWS})
    assert layer.shape == (4, 2, 6, 6)
    assert AttentionLayer.model_validate(LAYER).shape == (2, 7, 7)


def test_outputs_come_in_the_order_of_the_graph() -> None:
    class_map = ClassMap(tokens="class_tokens", weight="head.weight", bias="head.bias", grid=(2, 3))
    maps = Maps(default=("class",), pooling="pooling", rollout="rollout", class_map=class_map)
    read = Manifest.model_validate(manifest(maps=maps.model_dump()))
    assert read.outputs == ("logits", "attention_00", "pooling", "rollout", "class_tokens")
    assert read.maps.available == ("pooling", "rollout", "class")
    assert read.id == "made@1"


def test_a_model_without_attention_is_a_model() -> None:
    """A CNN has no layer, no pooling and may have no map."""
    read = Manifest.model_validate(manifest(attention=[], pooling=None, maps={"default": []}))
    assert read.outputs == ("logits",)

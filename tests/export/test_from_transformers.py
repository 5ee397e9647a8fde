"""`saccade export --from-transformers`: each family is the framework's own model, and bad checkpoints leave nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from export.explain.relevance import OF_ATTENTION
from export.graph.geometry import window_cells
from export.verify import verify
from saccade.bundle import Bundle, open_bundle
from saccade.cli import main
from saccade.errors import BundleError
from saccade.manifest import AttentionLayer, GradientMapName
from service.app import create_app
from service.settings import Settings
from tests.conftest import ROOT
from tests.export import families, parity
from tests.export.parity import Made

TINY = {"num_hidden_layers": 1}


@pytest.fixture(scope="session")
def exported(_one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A function: family -> its checkpoint and bundle, made once. Only to be read."""
    made: dict[str, Made] = {}

    def of(name: str) -> Made:
        if name not in made:
            made[name] = parity.make(name, tmp_path_factory.mktemp("family"))
        return made[name]

    return of


def export(*words: object, models: Path) -> int:
    return main(["export", "--from-transformers", *map(str, words), "--models", str(models), "--name", "it"])


# family -> (grid and special tokens of the last layer, pooling, maps), worked out by hand from its configuration
FACTS = {
    "ViT": ((4, 6), 1, ("class_token", 0), ("rollout",)),
    "DeiT": ((4, 4), 2, ("class_token", 0), ("rollout",)),
    "DeiT, distilled": ((4, 6), 2, ("class_and_distillation", 0), ("rollout",)),
    "BEiT": ((4, 6), 1, ("mean", 0), ("rollout",)),
    "BEiT, class token": ((4, 4), 1, ("class_token", 0), ("rollout",)),
    "DINOv2": ((4, 4), 1, ("class_and_mean", 0), ("rollout",)),
    "Swin": ((4, 4), 0, None, ("class",)),
    "Swin V2": ((4, 4), 0, ("mean", 0), ("class",)),
    "ResNet": (None, 0, None, ("class",)),
    "ConvNeXt": (None, 0, None, ()),
    "ConvNeXt V2": (None, 0, None, ()),
    "MobileViT": ((1, 2), 0, None, ("class",)),
}


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_bundle_is_the_frameworks_own_model(name: str, exported: Callable[[str], Made]) -> None:
    """On photographs of several sizes: logits within 1e-4 and the attention of every layer within 1e-5 of the model
    that transformers loads by itself, in eager mode; and so stands it in docs/families.md, which this run can write.
    """
    measured = parity.measure(name, exported(name))
    assert measured.logits <= 1e-4
    assert measured.attention is None or measured.attention <= 1e-5
    (shown,) = [line for line in page_rows() if line[0] == name]
    expected = parity.row(measured).strip("| ").split(" | ")
    digits = (4, 5, 7)  # noise of rounding, and a share that hangs on Pillow's version
    for column, (cell, now) in enumerate(zip(shown, expected, strict=True)):
        if column not in digits:
            assert cell.strip() == now.strip()
        assert bool(cell.strip()) == bool(now.strip())


def page_rows() -> list[list[str]]:
    lines = (ROOT / "docs/families.md").read_text(encoding="utf-8").splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and "transformers |" not in line]


def test_the_page_of_families_is_as_it_is_written() -> None:
    """Every family has its row, and the words around the table are the generator's."""
    shown = (ROOT / "docs/families.md").read_text(encoding="utf-8")
    assert [row[0] for row in page_rows()] == list(families.FAMILIES)
    before, after = parity.page([]).split("|---|---|---|---|---|---|---|---|\n")
    assert shown.startswith(before)
    assert shown.endswith(after)


@pytest.mark.parametrize("name", FACTS)
def test_grids_special_tokens_pooling_and_maps_are_those_of_the_architecture(
    name: str, exported: Callable[[str], Made]
) -> None:
    manifest = exported(name).bundle.manifest
    grid, special, pooling, maps = FACTS[name]
    last = manifest.attention[-1] if manifest.attention else None
    assert (last and last.grid, last.special_tokens.count if last else 0) == (grid, special)
    assert (manifest.pooling and (manifest.pooling.kind, manifest.pooling.index)) == pooling
    assert tuple(name for name in manifest.maps.available if name not in get_args(GradientMapName)) == maps
    assert manifest.labels == families.LABELS
    assert manifest.scores == "softmax"


@pytest.mark.parametrize(
    ("name", "windows"),
    [("Swin", "2 x 2 windows of 4 x 4 of its 6 x 8"), ("MobileViT", "2 x 2 interleaved windows of 1 x 2 of its 2 x 4")],
)
def test_a_last_layer_within_windows_has_no_map_of_the_gradient(
    name: str, windows: str, exported: Callable[[str], Made]
) -> None:
    """With the reason of each, in numbers."""
    why_not = exported(name).bundle.manifest.maps.why_not
    reason = f"the last layer attends within {windows} patches, so no row of it reads the whole picture"
    assert {why_not[one] for one in OF_ATTENTION} == {reason}


def test_how_pictures_are_prepared_is_said(exported: Callable[[str], Made]) -> None:
    """DeiT's stretch before its crop, too."""
    (line,) = [line for line in exported("DeiT").said if line.startswith("pictures:")]
    assert line == "pictures: 32 x 32, stretched to 40 x 40, cropped, bicubic, RGB, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"


def framework_windows(layer: AttentionLayer, shift: int) -> NDArray[np.int64]:
    """Numbers of the picture's patches as Swin's own code pads, rolls and partitions them; -1 is padding."""
    from transformers.models.swin.modeling_swin import window_partition

    assert layer.windows is not None
    rows, columns = layer.windows.picture
    edge = layer.grid[0]
    numbers = torch.arange(rows * columns).reshape(1, rows, columns, 1)
    padded = F.pad(numbers, (0, 0, 0, -columns % edge, 0, -rows % edge), value=-1)
    rolled = torch.roll(padded, (-shift, -shift), (1, 2))
    return window_partition(rolled, edge).reshape(-1, edge * edge).numpy()


def test_swins_windows_lie_where_the_framework_partitions(exported: Callable[[str], Made]) -> None:
    """Blocks, every other one shifted by half a window, on 11 x 16 patches that are padded to 12 x 16."""
    layers = exported("Swin").bundle.manifest.attention
    shifts = [0, 2, 0, 2]
    assert [layer.windows and layer.windows.picture for layer in layers] == [(11, 16), (11, 16), (6, 8), (6, 8)]
    for layer, shift in zip(layers, shifts, strict=True):
        assert layer.windows is not None
        np.testing.assert_array_equal(window_cells(layer.windows, layer.grid), framework_windows(layer, shift))


def test_mobilevits_windows_lie_where_the_framework_unfolds(exported: Callable[[str], Made]) -> None:
    """Each of the four attends to every second row and column: the picture's pixels, numbered, through its own code."""
    bundle = exported("MobileViT").bundle
    blocks = [
        m for m in parity.load(exported("MobileViT").checkpoint).modules() if type(m).__name__ == "MobileViTLayer"
    ]
    pictures = []
    for layer in bundle.manifest.attention:
        assert layer.windows is not None
        if layer.windows.picture not in pictures:
            pictures.append(layer.windows.picture)
        block: Any = blocks[pictures.index(layer.windows.picture)]
        rows, columns = layer.windows.picture
        numbers = torch.arange(float(rows * columns)).reshape(1, 1, rows, columns)
        unfolded, _ = block.unfolding(numbers)  # (windows, tokens, 1)
        np.testing.assert_array_equal(window_cells(layer.windows, layer.grid), unfolded[..., 0].numpy())
    assert pictures == [(8, 12), (4, 6), (2, 4)]


@pytest.mark.parametrize("name", ["Swin", "ResNet", "MobileViT"])
def test_the_class_map_is_made_of_the_frameworks_last_features(name: str, exported: Callable[[str], Made]) -> None:
    """Token by token: its last hidden state, divided by their number, and its own classifier's weight."""
    made = exported(name)
    model: Any = parity.load(made.checkpoint)
    pixels = parity.pixels_of(made.bundle)
    class_map = made.bundle.manifest.maps.class_map
    assert class_map is not None
    with torch.no_grad():
        features = getattr(model, model.base_model_prefix)(torch.from_numpy(pixels)).last_hidden_state
    tokens = features if features.ndim == 3 else features.flatten(2).transpose(1, 2)
    seen = parity.open_graph(made.bundle.graph, only=(class_map.tokens,))(pixels)[class_map.tokens]
    assert np.abs(seen - tokens.numpy() / tokens.shape[1]).max() <= 1e-5
    weights = load_file(made.bundle.weights)
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    assert torch.equal(weights[class_map.weight], head.weight)
    assert class_map.bias is not None
    assert torch.equal(weights[class_map.bias], head.bias)


@pytest.mark.parametrize("name", ["DeiT, distilled", "Swin", "ResNet"])
def test_a_bundle_is_verified_from_itself_alone(name: str, exported: Callable[[str], Made], tmp_path: Path) -> None:
    """Without the checkpoint: the model is rebuilt from manifest and weights, which have transformers' own names."""
    made = exported(name)
    shutil.copytree(made.bundle.folder, tmp_path / "it" / "1")
    bundle = open_bundle(tmp_path / "it" / "1")
    assert verify(bundle, None).manifest == made.bundle.manifest
    state = parity.load(made.checkpoint).state_dict()
    weights = load_file(bundle.weights)
    assert all(torch.equal(weights[key], tensor) for key, tensor in state.items())


def test_a_bundle_that_cannot_be_rebuilt_says_why(exported: Callable[[str], Made], tmp_path: Path) -> None:
    made = exported("ResNet")
    shutil.copytree(made.bundle.folder, tmp_path / "it" / "1")
    bundle = Bundle(tmp_path / "it" / "1", made.bundle.manifest)
    weights = load_file(bundle.weights)
    save_file({key: it.clone() for key, it in weights.items() if key != "classifier.1.bias"}, bundle.weights)
    with pytest.raises(BundleError, match=r"it@1: the model cannot be rebuilt from the bundle: .* classifier\.1\.bias"):
        verify(bundle, None)


def test_the_manifest_says_where_the_model_comes_from(exported: Callable[[str], Made]) -> None:
    """Each file that was read, by its sha256, and the configuration; nothing of the machine that it was made on."""
    made = exported("ViT")
    provenance = made.bundle.manifest.provenance
    assert provenance.origin is not None
    assert (provenance.origin.kind, provenance.origin.name) == ("transformers", "checkpoint")
    assert set(provenance.origin.files) == {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert provenance.origin.configuration["architectures"] == ["ViTForImageClassification"]
    assert "transformers" in provenance.versions
    assert str(made.checkpoint.parent) not in (made.bundle.folder / "manifest.json").read_text()


def test_a_multi_label_model_is_served_as_such(tmp_path: Path) -> None:
    """From the checkpoint through the service: the score of each label is the sigmoid of its own logit."""
    made = families.model("ViT", **TINY, problem_type="multi_label_classification")
    checkpoint = families.save("ViT", tmp_path / "tiny", made)
    assert export(checkpoint, models=tmp_path / "models") == 0
    bundle = open_bundle(tmp_path / "models" / "it" / "1")
    assert bundle.manifest.scores == "sigmoid"
    picture = tmp_path / "picture.png"
    parity.photograph(48, 32).save(picture)
    pixels = families.processor("ViT")(parity.photograph(48, 32), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = made(pixel_values=pixels).logits[0].double().numpy()
    with TestClient(create_app(Settings(models=tmp_path / "models"))) as client:
        answer = client.post("/v1/classify?top_k=5&decimals=9", content=picture.read_bytes())
    scores = {label["label"]: label["score"] for label in answer.json()["labels"]}
    expected = dict(zip(families.LABELS, 1 / (1 + np.exp(-logits)), strict=True))
    assert scores == pytest.approx(expected, abs=1e-5)

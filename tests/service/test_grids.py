"""Pictures that are not square, and layers that differ in grid and heads: from the net to the answer, against eager
PyTorch.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from export.publish import publish
from export.recipe import Recipe
from export.train import train
from saccade.bundle import Bundle, open_bundle
from service.app import create_app
from service.selection import offered
from service.settings import Settings
from tests.conftest import tiny_recipe
from tests.export.conftest import FewDigits
from tests.service.reference import PNG, Eager, ask, eager, patches, rollout, softmax

WIDE = {
    "wide-vit": {"kind": "vit", "patch": 16, "layers": 2, "heads": 2, "width": 16, "mlp_ratio": 1.0},
    "wide-hybrid": {"kind": "hybrid", "stem": "imagenet", "block": "bottleneck", "blocks": [1, 1, 1], "width": 4,
                    "heads": [2, 4, 1], "attention_width": 16, "attention_expansion": 2},
}  # fmt: skip
"""For pictures of 192 x 256: by 16 they are 12 x 16 patches, and the hybrid goes on with 6 x 8."""
GRIDS = {
    "wide-vit": [(12, 16), (12, 16)],
    "wide-hybrid": [(12, 16), (6, 8), (6, 8)],
    "tiny-hybrid": [(6, 4), (3, 2)],
}
EVERY_ONE = pytest.mark.parametrize("name", GRIDS)


@pytest.fixture(scope="module")
def bundles(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("wide")
    (folder / "tiny-hybrid").symlink_to(models / "tiny-hybrid")
    for name, net in WIDE.items():
        base = tiny_recipe("tiny-cct" if name == "wide-vit" else "tiny-hybrid").model_dump()
        preprocessing = {**base["preprocessing"], "height": 192, "width": 256}
        recipe = Recipe.model_validate({**base, "net": net, "preprocessing": preprocessing})
        train(recipe, FewDigits(), folder / "runs" / name)
        publish(folder / "runs" / name, folder, name, data=folder)  # on 90 digits and not on 256 made pictures
    return {name: open_bundle(folder / name / "1") for name in GRIDS}


@pytest.fixture(scope="module")
def references(bundles: dict[str, Bundle]) -> dict[str, Eager]:
    """What each net says of PNG in eager PyTorch."""
    return {name: eager(bundle, PNG) for name, bundle in bundles.items()}


@pytest.fixture(scope="module")
def client(bundles: dict[str, Bundle]) -> Any:
    models = bundles["wide-vit"].folder.parent.parent
    with TestClient(create_app(Settings(models=models, default_model="wide-vit"))) as it:
        yield it


@EVERY_ONE
def test_the_manifest_says_the_grid_and_the_heads_of_each_layer(bundles: dict[str, Bundle], name: str) -> None:
    """Rows before columns, layer by layer; rollout where all layers share one grid, and a class map on the last."""
    manifest = bundles[name].manifest
    assert [layer.grid for layer in manifest.attention] == GRIDS[name]
    assert (manifest.maps.rollout is not None) == (len(set(GRIDS[name])) == 1)
    if manifest.maps.class_map is not None:
        assert manifest.maps.class_map.grid == GRIDS[name][-1]
    net = manifest.provenance.recipe["net"]  # type: ignore[index]
    heads = net["heads"]  # type: ignore[index,call-overload]
    assert [layer.heads for layer in manifest.attention] == (heads if isinstance(heads, list) else [heads] * 2)


@EVERY_ONE
def test_all_weights_of_all_layers_are_those_of_the_net(
    client: TestClient, references: dict[str, Eager], name: str
) -> None:
    """attention=all, heads=all: each entry with its own shape and grid, within 1e-5; and the scores within 1e-5."""
    reference = references[name]
    answer = ask(client, model=name, attention="all", heads="all", rows="all", top_k=10, decimals=9)
    scores = softmax(reference.logits)
    for label in answer["labels"]:
        assert label["score"] == pytest.approx(scores[label["index"]], abs=1e-5)
    assert [tuple(entry["grid"]) for entry in answer["attention"]] == GRIDS[name]
    for entry, weights in zip(answer["attention"], reference.attention, strict=True):
        assert entry["shape"] == list(weights.shape)
        assert weights.shape[-1] == np.prod(entry["grid"]) + entry["special_tokens"]["count"]
        np.testing.assert_allclose(entry["weights"], weights, atol=1e-5)
        assert entry["heads"] == list(range(len(weights)))


@EVERY_ONE
def test_chosen_rows_and_the_mean_of_heads_are_those_of_each_layer(
    client: TestClient, references: dict[str, Eager], name: str
) -> None:
    """Layers in the order asked for; row 5 is the fifth token of each layer's own grid."""
    layers = ",".join(map(str, reversed(range(len(GRIDS[name])))))
    answer = ask(client, model=name, attention=layers, heads="mean", rows="5,0", decimals=9)
    for entry, weights in zip(answer["attention"], reversed(references[name].attention), strict=True):
        np.testing.assert_allclose(entry["weights"], weights[:, [5, 0]].mean(0, keepdims=True), atol=1e-5)


@EVERY_ONE
def test_maps_lie_on_the_grid_of_the_last_layer(
    client: TestClient, bundles: dict[str, Bundle], references: dict[str, Eager], name: str
) -> None:
    """Every map of the forward pass, against its formula; a class map's sum and bias are the logit."""
    bundle, reference = bundles[name], references[name]
    available = offered(bundle.manifest, "off")
    answer = ask(client, model=name, maps=",".join(available), classes="4", decimals=9)
    assert [entry["name"] for entry in answer["maps"]] == list(available)
    for entry in answer["maps"]:
        assert tuple(entry["grid"]) == GRIDS[name][-1]
        if entry["name"] == "rollout":
            expected = patches(bundle, rollout(bundle, reference))
        else:
            assert reference.tokens is not None
            expected = (reference.tokens @ reference.weight[4]).reshape(GRIDS[name][-1])
            assert entry["sum"] + entry["bias"] == pytest.approx(reference.logits[4], abs=1e-4)
        np.testing.assert_allclose(entry["values"], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["wide-hybrid", "tiny-hybrid"])
def test_what_needs_one_grid_is_refused_in_words_where_there_are_two(
    client: TestClient, bundles: dict[str, Bundle], references: dict[str, Eager], name: str
) -> None:
    """rows=pool is for layers with the tokens that are pooled; rollout is not offered; a head must be in the layer."""
    first, last = bundles[name].manifest.attention[0], bundles[name].manifest.attention[-1]
    grids = [f"{layer.grid[0]} x {layer.grid[1]} + 0 tokens" for layer in (first, last)]
    pooled = f"layer 0 has {grids[0]}; the pooled row is that of the last layer, {grids[1]}"
    asked = [
        ({"attention": "all", "rows": "pool"}, "invalid_parameter", pooled),
        ({"attention": "0", "rows": "pool"}, "invalid_parameter", pooled),
        ({"maps": "rollout"}, "unsupported_map", "its attention layers do not share one grid"),
        ({"attention": "0", "heads": "3"}, "invalid_parameter", "heads: 3 is outside of 0 to 1, the heads of layer 0"),
        ({"attention": "all", "rows": str(last.tokens)}, "invalid_parameter", f"rows: {last.tokens} is outside of 0"),
    ]
    for query, code, words in asked:
        refusal = client.post("/v1/classify", params={"model": name, **query}, content=PNG).json()
        assert refusal["code"] == code
        assert words in refusal["error"]
    (entry,) = ask(client, model=name, attention="last", heads="all", rows="pool", decimals=9)["attention"]
    np.testing.assert_allclose(entry["weights"], references[name].attention[-1].mean(1, keepdims=True), atol=1e-5)

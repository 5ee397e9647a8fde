"""What a recipe's net costs: counted as the formulas say, for every recipe, without data."""

from pathlib import Path

import pytest

from export.describe import describe
from export.recipe import RECIPES, Recipe, load_recipe
from saccade.cli import main
from saccade.errors import RecipeError
from tests.conftest import ROOT, tiny_recipe

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.toml"))
TEXT = (RECIPES / "imagenet-vit-s.toml").read_text()


def with_net(recipe: Recipe, **net: object) -> Recipe:
    return Recipe.model_validate({**recipe.model_dump(), "net": net})


def encoder(layers: int, tokens: int, width: int, hidden: int) -> int:
    """MACs of a transformer: Q, K, V and W_O; Q Kᵀ and A V over all heads; two linear layers."""
    return layers * (4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden)


def cct(layers: int, width: int, hidden: int, convolutions: int) -> int:
    """At 32 pixels with kernel 3: convolutions before their pooling halves the side; SeqPool's scores and its sum."""
    tokenizer = 32**2 * 9 * 3 * (width if convolutions == 1 else 64)
    if convolutions == 2:
        tokenizer += 16**2 * 9 * 64 * width
    tokens = (32 >> convolutions) ** 2
    return tokenizer + encoder(layers, tokens, width, hidden) + 2 * tokens * width + width * 10


@pytest.mark.parametrize(
    ("layers", "heads", "width", "hidden", "convolutions", "published"),
    [
        pytest.param(2, 2, 128, 128, 2, 0.035, id="CCT-2/3x2"),
        pytest.param(7, 4, 256, 512, 2, 0.289, id="CCT-7/3x2"),
        pytest.param(7, 4, 256, 512, 1, 1.18, id="CCT-7/3x1"),
    ],
)
def test_the_macs_of_a_cct_are_those_of_the_formula(
    layers: int, heads: int, width: int, hidden: int, convolutions: int, published: float
) -> None:
    """One for one, the products of attention included, and the figure that the literature rounds it to."""
    recipe = with_net(
        load_recipe("cifar10-cct"), kind="cct", layers=layers, heads=heads, width=width, mlp_ratio=hidden / width,
        kernel=3, convolutions=convolutions,
    )  # fmt: skip
    seen = describe(recipe).macs
    assert seen == cct(layers, width, hidden, convolutions)
    assert seen / 1e9 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("patch", "size", "layers", "heads", "width", "mlp_ratio", "pooling", "registers"),
    [
        pytest.param(4, (32, 32), 7, 4, 256, 2.0, "class_token", 0, id="ViT-Lite-7/4"),
        pytest.param(16, (224, 224), 12, 6, 384, 4.0, "class_token", 4, id="ViT-S/16 with registers"),
        pytest.param(16, (192, 256), 12, 3, 192, 4.0, "mean", 0, id="ViT-Ti/16, 192 x 256, mean"),
    ],
)
def test_the_macs_of_a_vit_are_those_of_the_formula(
    patch: int, size: tuple[int, int], layers: int, heads: int, width: int, mlp_ratio: float, pooling: str,
    registers: int,
) -> None:  # fmt: skip
    """Special tokens are tokens: they cost what a patch costs, in every layer."""
    base = load_recipe("imagenet-vit-s").model_dump()
    preprocessing = {**base["preprocessing"], "height": size[0], "width": size[1]}
    net = {"kind": "vit", "patch": patch, "layers": layers, "heads": heads, "width": width, "mlp_ratio": mlp_ratio,
           "pooling": pooling, "registers": registers}  # fmt: skip
    default = ["class"] if pooling == "mean" else ["rollout"]
    seen = describe(
        Recipe.model_validate({**base, "preprocessing": preprocessing, "net": net, "default_maps": default})
    )
    patches = size[0] // patch * (size[1] // patch)
    tokens = patches + registers + (pooling == "class_token")
    hidden = int(mlp_ratio * width)
    assert seen.macs == 3 * patch**2 * patches * width + encoder(layers, tokens, width, hidden) + width * 1000
    if size == (32, 32):
        assert seen.macs / 1e9 == pytest.approx(0.26, abs=0.01)  # 0.24 where A V and Q Kᵀ are left out


@pytest.mark.parametrize(
    ("recipe", "published"),
    [("cifar10-resnet20", 0.0406), ("cifar10-resnet18", 0.556), ("imagenet-resnet50", 4.09), ("imagenet-vit-s", 4.6)],
)
def test_the_macs_of_published_nets_are_the_published_ones(recipe: str, published: float) -> None:
    """Of ResNets, and of DeiT-S, as their authors and later tables give them."""
    assert describe(load_recipe(recipe)).macs / 1e9 == pytest.approx(published, rel=0.005)


def test_relative_positions_and_their_attention_are_counted() -> None:
    """The fused path with a bias hides no product: q · r_height, q · r_width, Q Kᵀ and A V of both layers."""
    description = describe(tiny_recipe("tiny-hybrid"))
    assert description.parts[-3].name == "attention_blocks.0"
    rows, columns, inner, before, after = 6, 4, 16, 32, 32
    tokens = rows * columns
    qkv, products = 3 * tokens * inner**2, 2 * tokens**2 * inner
    positions = tokens * (rows + columns) * inner
    outside = tokens * before * inner + tokens // 4 * (inner * after + before * after)  # 1 x 1, and a stride's shortcut
    assert description.parts[-3].macs == qkv + products + positions + outside


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_is_described(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By its name and without data: parts add up to the whole, and the recipe's own comment has the right number."""
    assert main(["describe", name]) == 0
    shown = capsys.readouterr().out
    description = describe(load_recipe(name))
    assert sum(part.parameters for part in description.parts) == description.parameters
    assert sum(part.macs for part in description.parts) == description.macs
    assert f"{description.parameters:,} parameters, {description.macs:,} MACs" in shown
    comment = (RECIPES / f"{name}.toml").read_text().split("seed =")[0]
    assert f"{description.parameters:,} parameters" in comment
    assert f"maps: {', '.join(description.maps.available)};" in shown
    assert ("attention: none" in shown) == (not description.attention)


def test_layers_of_different_grids_and_heads_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reader sees how large each layer's weights are before a request for them."""
    (tmp_path / "mine.toml").write_text(
        (RECIPES / "cifar10-hybrid.toml").read_text().replace("[4, 4]", "[2, 4, 4]").replace("stride = 1", "stride = 2")
    )
    assert main(["describe", str(tmp_path / "mine.toml")]) == 0
    shown = capsys.readouterr().out
    assert "mine: hybrid, 32 x 32 pixels, 10 classes" in shown
    assert "attention, layer 0: 2 heads over 8 x 8 patches, 64 x 64 weights each" in shown
    assert "attention, layers 1 to 2: 4 heads over 4 x 4 patches, 16 x 16 weights each" in shown
    assert "maps: class;" in shown


def test_an_image_folder_needs_its_number_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the one thing that no recipe without data can know."""
    (tmp_path / "mine.toml").write_text(TEXT.replace("classes = 1000\n", ""))
    with pytest.raises(RecipeError, match=r"add classes = N to the recipe's \[data\]"):
        describe(load_recipe(str(tmp_path / "mine.toml")))
    assert main(["describe", str(tmp_path / "mine.toml")]) == 2
    assert capsys.readouterr().err.startswith(f"saccade: {tmp_path / 'mine.toml'}: how many classes")


def test_a_number_of_classes_that_the_data_set_has_itself_is_refused(tmp_path: Path) -> None:
    """Two words for one thing could differ."""
    (tmp_path / "mine.toml").write_text(TEXT.replace('kind = "folder"', 'kind = "cifar10"'))
    with pytest.raises(RecipeError, match="classes is said of an image folder only; cifar10 has its own"):
        load_recipe(str(tmp_path / "mine.toml"))


def test_the_table_of_the_documents_is_what_is_counted() -> None:
    """docs/nets.md has every recipe with its parameters, MACs, grids and maps as they are."""
    rows = [line for line in (ROOT / "docs/nets.md").read_text().splitlines() if line.startswith("| `")]
    expected = []
    for name in SHIPPED:
        it = describe(load_recipe(name))
        grids = sorted({f"{layer.grid[0]} x {layer.grid[1]}" for layer in it.attention})
        attention = f"{len(it.attention)} layers, {', '.join(grids)}" if grids else "none"
        expected.append(
            f"| `{name}` | {it.size[0]} x {it.size[1]} | {it.parameters:,} | {it.macs / 1e9:.3g} G | {attention} "
            f"| {', '.join(it.maps.available)} |"
        )
    assert rows == expected

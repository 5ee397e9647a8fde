"""Recipes: one typo is one sentence that names the file and the key."""

import re
from pathlib import Path

import pytest
import torch

from export.nets import build
from export.recipe import RECIPES, TrainingConfig, load_recipe
from saccade.errors import RecipeError
from tests.conftest import ROOT

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.toml"))
TEXT = (RECIPES / "digits-cct.toml").read_text()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_loads_by_name_and_by_path_and_builds(name: str) -> None:
    """Every recipe of the project is ready to be trained."""
    recipe = load_recipe(name)
    assert recipe == load_recipe(str(RECIPES / f"{name}.toml"))
    net = build(recipe.net, recipe.size, 10).eval()
    assert net(torch.zeros(1, 3, *recipe.size)).shape == (1, 10)


def test_the_shipped_recipes_are_those_of_the_readme() -> None:
    """On CIFAR-10 attention nets and the CNNs to hold them against, one of each on ImageNet, one for a folder of
    photographs, two without a download.
    """
    assert SHIPPED == [
        "cifar10-cct", "cifar10-cct-7-3x1", "cifar10-convmixer", "cifar10-hybrid", "cifar10-hybrid-s",
        "cifar10-resnet-s", "cifar10-resnet18", "cifar10-resnet20", "digits-cct", "digits-finetune",
        "imagenet-resnet50", "imagenet-vit-s", "imagenette-hybrid",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("heads = 2", "heads = 2\nlairs = 3", r"net\.cct\.lairs: Extra inputs are not permitted"),
        ("seed = 1", "seed = 1\nspeed = 2", r"speed: Extra inputs are not permitted"),
        ("epochs = 12", "", r"training\.epochs: Field required"),
        ("epochs = 12", "epochs = 0", r"training\.epochs: .*greater than or equal to 1"),
        ("learning_rate = 3e-3", "learning_rate = inf", r"training\.learning_rate: .*finite"),
        ('optimizer = "adamw"', 'optimizer = "adam"', r"training\.optimizer: .*'adamw' or 'sgd'"),
        ("seed = 1", "seed = -1", r"seed: .*greater than or equal to 0"),
        ("epochs = 12", "epochs = 12\nmixupp = 0.8", r"training\.mixupp: Extra inputs are not permitted"),
        ("epochs = 12", "epochs = 12\nfinal_rate = 0.1", r"training: .*final_rate is 0\.1; learning_rate, 0\.003, is"),
        ("warmup_epochs = 0.5", "warmup_epochs = 13", r"training: .*warmup_epochs is 13; there are 12 epochs"),
        ('kind = "cct"', 'kind = "cnn"', r"net: .*'cct', 'vit', 'hybrid', 'resnet', 'convmixer'"),
        ('kind = "digits"', 'kind = "mnist"', r"data\.kind: .*'cifar10', 'folder' or 'digits'"),
    ],
)
def test_a_typo_is_named_by_file_and_key(tmp_path: Path, old: str, new: str, says: str) -> None:
    """An unknown key is an error: it would otherwise be a setting that silently does nothing."""
    path = tmp_path / "mine.toml"
    assert TEXT.count(old) == 1
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(RecipeError, match=rf"{path}: {says}"):
        load_recipe(str(path))


@pytest.mark.parametrize("content", [b"seed = = 1", b"seed = 1\nseed = 2", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    """The message says which file, and where in it where the parser knows."""
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=f"{path}: "):
        load_recipe(str(path))


@pytest.mark.parametrize("name", ["cifar11", "no/such/file.toml"])
def test_an_unknown_name_lists_the_recipes_there_are(name: str) -> None:
    """Whoever mistypes a name sees the right ones."""
    with pytest.raises(RecipeError, match=f"no recipe '{name}': .*{', '.join(SHIPPED)}"):
        load_recipe(name)


def test_a_shift_as_large_as_the_picture_is_refused(tmp_path: Path) -> None:
    """The reflected edge would be longer than what it reflects."""
    text = (RECIPES / "digits-cct.toml").read_text().replace("shift = 1", "shift = 16")
    (tmp_path / "far.toml").write_text(text)
    with pytest.raises(RecipeError, match="shift is 16; it must be smaller than the picture"):
        load_recipe(str(tmp_path / "far.toml"))


PAGE = (ROOT / "docs/training.md").read_text(encoding="utf-8")


def test_every_key_of_training_is_documented_with_its_default() -> None:
    """docs/training.md has each, in the recipe's order, and none that is not one."""

    def shown(default: object) -> str:
        return "absent" if default is None else str(default)

    fields = {
        name: "required" if field.is_required() else shown(field.default)
        for name, field in TrainingConfig.model_fields.items()
    }
    assert re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", PAGE, flags=re.M) == list(fields.items())


def test_the_recipe_of_a_run_folder_is_one(tmp_path: Path) -> None:
    """recipe.json is read as it was written, and a typo in it is named."""
    recipe = load_recipe("cifar10-cct")
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json(indent=2))
    assert load_recipe(str(tmp_path / "recipe.json")) == recipe
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json().replace('"seed"', '"sead"'))
    with pytest.raises(RecipeError, match=r"recipe\.json: "):
        load_recipe(str(tmp_path / "recipe.json"))

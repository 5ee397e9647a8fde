"""A recipe: everything that decides a training run, read from TOML into frozen types. An unknown key is an error."""

import json
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from export.nets import NetConfig
from saccade.errors import BundleError, RecipeError, first_problem
from saccade.frozen import Frozen
from saccade.manifest import Manifest, MapName, Preprocessing

RECIPES = Path(__file__).parent / "recipes"


class DataConfig(Frozen):
    """Where pictures come from: CIFAR-10 in its binary layout, an image folder, or scikit-learn's digits."""

    kind: Literal["cifar10", "folder", "digits"]
    classes: int | None = Field(None, ge=2)
    """Of an image folder, where the recipe is meant for one data set: what the folder is held to."""

    @model_validator(mode="after")
    def _consistent(self) -> "DataConfig":
        if self.classes is not None and self.kind != "folder":
            raise ValueError(f"classes is said of an image folder only; {self.kind} has its own")
        return self


class TrainingConfig(Frozen):
    """How the weights are found. docs/training.md has each key with its source."""

    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    """Pictures a step, over all processes that train together."""
    optimizer: Literal["adamw", "sgd"]
    """`sgd` has Nesterov's momentum."""
    momentum: float = Field(0.9, gt=0, lt=1)
    """Of sgd."""
    weight_decay: float = Field(ge=0)
    """Of matrices and convolutions; norms, biases, positions and special tokens have none."""
    learning_rate: float = Field(gt=0)
    """The highest, for the batch that is given."""
    final_rate: float = Field(0.0, ge=0)
    """Where the learning rate ends, after the last step."""
    schedule: Literal["cosine", "one_cycle"] = "cosine"
    """After the warm-up: half a cosine down to `final_rate`, or a straight line."""
    warmup_epochs: float = Field(ge=0)
    """The rate rises in a straight line; `one_cycle` begins at a 25th of the highest."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    ema: float = Field(0.999, ge=0, lt=1)
    """Decay a step of the moving average of the weights, which is what is evaluated and kept; 0 switches it off."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor of the learning rate from each layer to the one before it, for fine-tuning."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    shift: int = Field(0, ge=0)
    """Random translation by up to this many pixels, edges reflected."""
    flip: bool = False
    """Horizontal flips, alternating from epoch to epoch."""
    crop_area: float | None = Field(None, gt=0, le=1)
    """Least share of a picture that a random resized crop takes; absent: the whole, as in evaluation."""
    randaugment: int = Field(0, ge=0)
    """How many operations of RandAugment a picture goes through."""
    randaugment_magnitude: float = Field(9.0, ge=0, le=10)
    randaugment_std: float = Field(0.5, ge=0)
    """Spread of the magnitude from picture to picture."""
    erase: float = Field(0.0, ge=0, le=1)
    """Share of the pictures in which a random rectangle is blanked."""
    mixup: float = Field(0.0, ge=0)
    """Alpha of the beta distribution that pictures are blended by; 0 switches it off."""
    cutmix: float = Field(0.0, ge=0)
    """The same for the area of a rectangle cut out of another picture. With mixup, a coin decides for each batch."""
    mix_epochs: int | None = Field(None, ge=0)
    """Mixup and cutmix end after so many epochs; absent: never."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the forward and backward pass, under autocast; weights and optimizer stay float32."""
    compile: bool = False
    """The forward and backward pass through torch.compile."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingConfig":
        if self.final_rate > self.learning_rate:
            raise ValueError(
                f"final_rate is {self.final_rate:g}; learning_rate, {self.learning_rate:g}, is the highest"
            )
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs:g}; there are {self.epochs} epochs")
        return self


class CardConfig(Frozen):
    """The words of the card that no measurement gives."""

    summary: str
    license: str
    limits: str = ""


class Recipe(Frozen):
    seed: int = Field(ge=0)
    default_maps: tuple[MapName, ...]
    card: CardConfig
    data: DataConfig
    preprocessing: Preprocessing
    net: NetConfig
    training: TrainingConfig

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.training.shift >= min(self.size):
            raise ValueError(
                f"training.shift is {self.training.shift}; it must be smaller than the picture, {self.size}"
            )
        return self

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the net's input."""
        return self.preprocessing.height, self.preprocessing.width


def load_recipe(name_or_path: str) -> Recipe:
    """Reads a recipe by path, or by the name of one in export/recipes. Raises RecipeError naming file and key.

    A path is a TOML file, or recipe.json of a run folder.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = RECIPES / f"{name_or_path}.toml"
    try:
        text = path.read_text(encoding="utf-8")
        return Recipe.model_validate(json.loads(text) if path.suffix == ".json" else tomllib.loads(text))
    except FileNotFoundError:
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
        raise RecipeError(f"no recipe {name_or_path!r}: give a TOML file or one of {known}") from None
    except ValidationError as error:
        raise RecipeError(f"{path}: {first_problem(error)}") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: {error}") from error


def recipe_of(manifest: Manifest) -> Recipe:
    """The recipe that a bundle was made by. Raises BundleError."""
    if manifest.provenance.recipe is None:
        raise BundleError(f"{manifest.id} was not trained here: it has no recipe")
    try:
        return Recipe.model_validate(manifest.provenance.recipe)
    except ValidationError as error:
        raise BundleError(f"{manifest.id}: its recipe is none: {first_problem(error)}") from error

"""A run folder: recipe.json, metrics.jsonl, checkpoint.safetensors (the last epoch), best.safetensors.

The best are the averaged weights that did best on the held-out pictures. Every file is replaced whole.
"""

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from export import checkpoint
from export.nets import Net
from export.recipe import Recipe
from saccade.errors import DataError
from saccade.manifest import Initialisation

RECIPE_FILE = "recipe.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "checkpoint.safetensors"
BEST_FILE = "best.safetensors"


@dataclass(frozen=True)
class Learner:
    """All that an epoch changes."""

    net: Net
    average: checkpoint.State
    optimizer: torch.optim.Optimizer


class Run:
    """Written by training, one epoch at a time."""

    def __init__(self, folder: Path, recipe: Recipe, classes: tuple[str, ...], data: str) -> None:
        self.folder = folder
        self._recipe = recipe
        self.classes = classes
        self._identity = {"recipe": recipe.model_dump(mode="json"), "classes": list(classes), "data": data}
        self.init: Initialisation | None = None
        self.epoch = 0
        self.best = -1.0

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run to go on with."""
        return (self.folder / CHECKPOINT_FILE).exists()

    def open(self, learner: Learner) -> None:
        """Restores the last checkpoint, or writes the first: an interrupted run always has one. Raises DataError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.begun:
                self._restore(learner)
            else:
                (self.folder / RECIPE_FILE).write_text(self._recipe.model_dump_json(indent=2) + "\n")
                (self.folder / METRICS_FILE).write_text("")
                self._write_checkpoint(learner)
        except OSError as error:
            raise DataError(f"could not write to {self.folder}: {error}") from error

    def read_init(self) -> Initialisation | None:
        """What the run in the folder began with; None for random weights. Raises DataError."""
        recorded = checkpoint.read(self.folder / CHECKPOINT_FILE)[1].get("init")
        return Initialisation.model_validate(recorded) if recorded else None

    def save(self, learner: Learner, metrics: dict[str, Any]) -> None:
        """Ends an epoch. `metrics` holds its number and held_out_accuracy among others."""
        self.epoch = metrics["epoch"]
        better = metrics["held_out_accuracy"] > self.best
        self.best = max(self.best, metrics["held_out_accuracy"])
        try:
            with (self.folder / METRICS_FILE).open("a") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise DataError(f"could not write to {self.folder}: {error}") from error
        if better:
            checkpoint.write(self.folder / BEST_FILE, learner.average, self._state(learner))
        self._write_checkpoint(learner)

    def _write_checkpoint(self, learner: Learner) -> None:
        tensors = {
            **checkpoint.with_prefix("net", learner.net.state_dict()),
            **checkpoint.with_prefix("average", learner.average),
            **checkpoint.with_prefix("optimizer", checkpoint.optimizer_tensors(learner.optimizer)),
        }
        checkpoint.write(self.folder / CHECKPOINT_FILE, tensors, self._state(learner))

    def _state(self, learner: Learner) -> dict[str, Any]:
        return {
            **self._identity,
            "init": self.init and self.init.model_dump(mode="json"),
            "epoch": self.epoch,
            "best": self.best,
            "torch": torch.__version__,
            "hardware": _hardware(learner.net),
        }

    def _restore(self, learner: Learner) -> None:
        tensors, state = checkpoint.read(self.folder / CHECKPOINT_FILE)
        _check_recipe(self.folder, state, self._recipe)
        if state["classes"] != self._identity["classes"]:
            raise DataError(f"{self.folder} holds a run with the classes {state['classes']}: give another folder")
        self.init = self.read_init()
        learner.net.load_state_dict(checkpoint.without_prefix("net", tensors))
        for name, tensor in checkpoint.without_prefix("average", tensors).items():
            learner.average[name].copy_(tensor)
        checkpoint.restore_optimizer(learner.optimizer, checkpoint.without_prefix("optimizer", tensors))
        self.epoch, self.best = state["epoch"], state["best"]
        lines = (self.folder / METRICS_FILE).read_text().splitlines()[: self.epoch]  # no checkpoint of the rest
        (self.folder / METRICS_FILE).write_text("".join(f"{line}\n" for line in lines))


def read_run(folder: Path) -> tuple[Recipe, checkpoint.State, dict[str, Any], list[dict[str, Any]]]:
    """(recipe, best weights, their state, metrics of all epochs). Raises DataError where the folder holds no run."""
    try:
        recipe = Recipe.model_validate_json((folder / RECIPE_FILE).read_text())
        metrics = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    except (OSError, ValidationError, ValueError) as error:
        raise DataError(f"{folder} is not a run folder: {error}") from error
    weights, state = checkpoint.read(folder / BEST_FILE)
    _check_recipe(folder, state, recipe)
    return recipe, weights, state, metrics


def _check_recipe(folder: Path, state: dict[str, Any], recipe: Recipe) -> None:
    try:
        same = Recipe.model_validate(state["recipe"]) == recipe
    except (KeyError, ValidationError):
        same = False
    if not same:
        raise DataError(f"{folder} holds a run of another recipe: give another folder, or the recipe it was begun with")


def _hardware(net: Net) -> str:
    device = next(net.parameters()).device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, threads: {torch.get_num_threads()}"

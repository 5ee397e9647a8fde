"""A run folder: all that is needed to go on with a run, to export it, to look at it, and to repeat it.

recipe.json, run.json (data, versions, commit, command), metrics.jsonl and tensorboard/ (a line and a point an epoch),
checkpoint.safetensors (the last epoch), best.safetensors (the averaged weights that did best on the held-out pictures).
Checkpoints are replaced whole.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from export import checkpoint, environment
from export.board import FILE, plot
from export.distributed import World
from export.examples import Examples, Source
from export.nets import Net
from export.optimize import Average
from export.recipe import Recipe
from saccade.errors import DataError
from saccade.manifest import Initialisation

RECIPE_FILE = "recipe.json"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "checkpoint.safetensors"
BEST_FILE = "best.safetensors"
TENSORBOARD_FOLDER = "tensorboard"


@dataclass(frozen=True)
class Learner:
    """All that an epoch changes."""

    net: Net
    average: Average
    optimizer: torch.optim.Optimizer


class Run:
    """One recipe on one set of pictures, an epoch at a time. Every process opens it, the first alone writes."""

    def __init__(self, folder: Path, recipe: Recipe, source: Source, examples: Examples, world: World) -> None:
        self.folder = folder
        self._recipe = recipe
        self._world = world
        self.writes = world.rank == 0
        self.classes = source.classes
        self.init: Initialisation | None = None
        self._identity = {
            "recipe": recipe.model_dump(mode="json"),
            "classes": list(source.classes),
            "data": source.name,
            "data_sha256": examples.fingerprint(),
        }
        self.epoch = 0
        self.best = -1.0

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run to go on with."""
        return (self.folder / CHECKPOINT_FILE).exists()

    def open(self, learner: Learner) -> None:
        """Restores the last checkpoint, or writes the first: an interrupted run always has one. Raises DataError."""
        try:
            if self.begun:
                self._restore(learner)
            elif self.writes:
                self._begin(learner)
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
        if self.writes:
            self._write_epoch(learner, metrics, better=better)
        self._world.wait()  # nobody opens the run again before it is written

    def _write_epoch(self, learner: Learner, metrics: dict[str, Any], *, better: bool) -> None:
        try:
            with (self.folder / METRICS_FILE).open("a") as file:
                file.write(json.dumps(metrics) + "\n")
            plot(self.folder / TENSORBOARD_FOLDER, [metrics])
        except OSError as error:
            raise DataError(f"could not write to {self.folder}: {error}") from error
        if better:
            checkpoint.write(self.folder / BEST_FILE, learner.average.net.state_dict(), self._state())
        self._write_checkpoint(learner)

    def _begin(self, learner: Learner) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / RECIPE_FILE).write_text(self._recipe.model_dump_json(indent=2) + "\n")
        made = {
            "data": self._identity["data"],
            "data_sha256": self._identity["data_sha256"],
            "init": self.init and self.init.model_dump(mode="json"),
            "seed": self._recipe.seed,
            "commit": environment.commit(),
            "versions": environment.training_versions(),
            "hardware": environment.hardware(self._world.device),
            "processes": self._world.size,
            "command": environment.command(),
            "repeat": f"at that commit and with those versions, the same command with {RECIPE_FILE} of this folder as "
            "recipe and another folder after --out",
        }
        (self.folder / RUN_FILE).write_text(json.dumps(made, indent=2) + "\n")
        (self.folder / METRICS_FILE).write_text("")
        self._write_checkpoint(learner)

    def _write_checkpoint(self, learner: Learner) -> None:
        tensors = {
            **checkpoint.with_prefix("net", learner.net.state_dict()),
            **checkpoint.with_prefix("average", learner.average.net.state_dict()),
            **checkpoint.with_prefix("optimizer", checkpoint.optimizer_tensors(learner.optimizer)),
        }
        checkpoint.write(self.folder / CHECKPOINT_FILE, tensors, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            **self._identity,
            "init": self.init and self.init.model_dump(mode="json"),
            "epoch": self.epoch,
            "best": self.best,
            "torch": torch.__version__,
            "hardware": environment.hardware(self._world.device),
        }

    def _restore(self, learner: Learner) -> None:
        path = self.folder / CHECKPOINT_FILE
        tensors, state = checkpoint.read(path)
        _check_recipe(self.folder, state, self._recipe)
        if state["classes"] != self._identity["classes"]:
            raise DataError(f"{self.folder} holds a run with the classes {state['classes']}: give another folder")
        if state.get("data_sha256") != self._identity["data_sha256"]:
            raise DataError(
                f"{self.folder} holds a run on other pictures: their sha256 is {state.get('data_sha256')}, "
                f"that of {self._identity['data']} is {self._identity['data_sha256']} now"
            )
        self.init = self.read_init()
        try:
            learner.net.load_state_dict(checkpoint.without_prefix("net", tensors))
            learner.average.net.load_state_dict(checkpoint.without_prefix("average", tensors))
            checkpoint.restore_optimizer(learner.optimizer, checkpoint.without_prefix("optimizer", tensors))
        except (RuntimeError, IndexError, ValueError) as error:
            raise DataError(f"{path} does not fit its recipe: {' '.join(str(error).split())[:300]}") from error
        self.epoch, self.best = state["epoch"], state["best"]
        if self.writes:
            lines = (self.folder / METRICS_FILE).read_text().splitlines()[: self.epoch]  # no checkpoint of the rest
            (self.folder / METRICS_FILE).write_text("".join(f"{line}\n" for line in lines))
            (self.folder / TENSORBOARD_FOLDER / FILE).unlink(missing_ok=True)
            plot(self.folder / TENSORBOARD_FOLDER, map(json.loads, lines))


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

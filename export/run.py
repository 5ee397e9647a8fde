"""A run folder: all that is needed to go on with a run, to export it, to look at it, and to repeat it.

recipe.json, run.json (data, versions, commit, command), metrics.jsonl and tensorboard/ (a line and a point an epoch),
checkpoint.safetensors (the last epoch), best.safetensors (the averaged weights that did best on the held-out pictures).
Checkpoints are replaced whole.
"""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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

    def tensors(self) -> checkpoint.State:
        """All of them, as a checkpoint holds them."""
        return {
            **checkpoint.with_prefix("net", self.net.state_dict()),
            **checkpoint.with_prefix("average", self.average.net.state_dict()),
            **checkpoint.with_prefix("optimizer", checkpoint.optimizer_tensors(self.optimizer)),
        }


class Run:
    """One recipe on one set of pictures, an epoch at a time. Every process opens it, the first alone writes.

    A run of which no epoch was finished has not begun: it is written anew, on whatever pictures there are now.
    """

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
        """Whether the folder holds a run to go on with. Raises DataError where its checkpoint cannot be read."""
        path = self.folder / CHECKPOINT_FILE
        return path.exists() and checkpoint.read_metadata(path)["epoch"] > 0

    @contextmanager
    def open(self, learner: Learner) -> Iterator[None]:
        """Restores the last checkpoint, or writes the first, and keeps other processes out until it is closed.

        Raises DataError where it cannot write, the folder holds another run, or another process trains into it.
        """
        with self._alone() if self.writes else nullcontext():
            try:
                if self.begun:
                    self._restore(learner)
                    if self.writes:
                        self._write_recipe()
                elif self.writes:
                    self._begin(learner)
            except OSError as error:
                raise DataError(f"could not write to {self.folder}: {error}") from error
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Locks the folder itself: no file is left behind, and the kernel unlocks it however this process ends."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"could not write to {self.folder}: {error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise DataError(
                f"another process trains into {self.folder}: give another folder, or wait for it"
            ) from error
        except OSError:
            pass  # NFS has no locks on folders
        try:
            yield
        finally:
            os.close(descriptor)

    def read_init(self) -> Initialisation | None:
        """What the run in the folder began with; None for random weights. Raises DataError."""
        recorded = checkpoint.read_metadata(self.folder / CHECKPOINT_FILE).get("init")
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
            _append(self.folder / METRICS_FILE, json.dumps(metrics) + "\n")
            plot(self.folder / TENSORBOARD_FOLDER, [metrics])
        except OSError as error:
            raise DataError(f"could not write to {self.folder}: {error}") from error
        if better:
            checkpoint.write(self.folder / BEST_FILE, learner.average.net.state_dict(), self._state())
        self._write_checkpoint(learner)

    def _begin(self, learner: Learner) -> None:
        self._write_recipe()
        made = {
            "data": self._identity["data"],
            "data_sha256": self._identity["data_sha256"],
            "init": self.init and self.init.model_dump(mode="json"),
            "seed": self._recipe.seed,
            "commit": environment.commit(),
            "versions": environment.training_versions(),
            "hardware": environment.hardware(self._world.device),
            "processes": self._world.size,
            "command": environment.command(self._world.size),
            "repeat": f"at that commit and with those versions, the same command with {RECIPE_FILE} of this folder as "
            "recipe and another folder after --out; its paths are relative to the folder where it ran",
        }
        checkpoint.replace(self.folder / RUN_FILE, (json.dumps(made, indent=2) + "\n").encode())
        checkpoint.replace(self.folder / METRICS_FILE, b"")
        self._write_checkpoint(learner)

    def _write_recipe(self) -> None:
        checkpoint.replace(self.folder / RECIPE_FILE, (self._recipe.model_dump_json(indent=2) + "\n").encode())

    def _write_checkpoint(self, learner: Learner) -> None:
        checkpoint.write(self.folder / CHECKPOINT_FILE, learner.tensors(), self._state())

    def _state(self) -> dict[str, Any]:
        return {
            **self._identity,
            "init": self.init and self.init.model_dump(mode="json"),
            "epoch": self.epoch,
            "best": self.best,
            **self._surroundings(),
        }

    def _surroundings(self) -> dict[str, Any]:
        """What the last bits of the weights depend on besides the identity of the run."""
        return {
            "processes": self._world.size,
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
                f"that of {self._identity['data']} is {self._identity['data_sha256']} now: give another folder"
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
            self._restore_metrics()
            self._say_what_differs(state)

    def _restore_metrics(self) -> None:
        """Takes back the epochs that no checkpoint was written of."""
        path = self.folder / METRICS_FILE
        text = path.read_text()
        lines = text.splitlines(keepends=True)[: self.epoch]
        metrics = _parsed(path, lines)
        if "".join(lines) != text:
            checkpoint.replace(path, "".join(lines).encode())
        (self.folder / TENSORBOARD_FOLDER / FILE).unlink(missing_ok=True)
        plot(self.folder / TENSORBOARD_FOLDER, metrics)

    def _say_what_differs(self, state: dict[str, Any]) -> None:
        now = self._surroundings()
        changed = [f"{name} {state.get(name)}, now {now[name]}" for name in now if state.get(name) != now[name]]
        if changed:
            said = f"epoch {self.epoch} was trained with {'; '.join(changed)}"
            print(f"{said}: from here on not bit for bit what it would have been", file=sys.stderr)


def read_run(folder: Path) -> tuple[Recipe, checkpoint.State, dict[str, Any], list[dict[str, Any]]]:
    """(recipe, best weights, their state, metrics of all epochs). Raises DataError where the folder holds no run."""
    try:
        recipe = Recipe.model_validate_json((folder / RECIPE_FILE).read_text())
        metrics = _parsed(folder / METRICS_FILE, (folder / METRICS_FILE).read_text().splitlines())
    except (OSError, ValidationError, ValueError) as error:
        raise DataError(f"{folder} is not a run folder: {error}") from error
    weights, state = checkpoint.read(folder / BEST_FILE)
    _check_recipe(folder, state, recipe)
    return recipe, weights, state, metrics


def _append(path: Path, line: str) -> None:
    """The whole line or nothing. Raises OSError."""
    size = path.stat().st_size
    try:
        with path.open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        os.truncate(path, size)
        raise


def _parsed(path: Path, lines: list[str]) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise DataError(f"{path} is not a line of JSON an epoch: {error}") from error


def _check_recipe(folder: Path, state: dict[str, Any], recipe: Recipe) -> None:
    """The words of the card and the default maps may change at any time: no weight depends on them."""
    words = {"card": recipe.card, "default_maps": recipe.default_maps}
    try:
        same = Recipe.model_validate(state["recipe"]).model_copy(update=words) == recipe
    except (KeyError, ValidationError):
        same = False
    if not same:
        raise DataError(f"{folder} holds a run of another recipe: give another folder, or the recipe it was begun with")

"""Fine-tuning: the weights of a bundle, or of a safetensors file, in a net freshly built by a recipe.

Everything must match by name and shape, but for what a new task or a new size changes: the head is new where the
classes are others, and position embeddings are interpolated to the new grid.
"""

import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from export.nets import Net, build
from export.nets.attention import RelativePositions
from export.recipe import Recipe, recipe_of
from export.run import BEST_FILE, RECIPE_FILE, Run
from saccade.bundle import open_bundle, resolve_bundle
from saccade.errors import DataError, SaccadeError
from saccade.manifest import Initialisation

HEAD = ("head.weight", "head.bias")
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
NAMED = 4
"""How many parameters a message names."""


class Noted(BaseModel):
    """What a checkpoint of a run says of itself, as far as it is wanted here."""

    recipe: Recipe | None = None
    classes: tuple[str, ...] | None = None


class Weights(NamedTuple):
    """What a net is initialised from."""

    name: str
    """Of the bundle (name@version) or of the file."""
    sha256: str
    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None
    """In the order of the logits; None where the file does not say."""
    position_grid: tuple[int, int] | None
    """Of the parameter `position`; None where there is none, or the file does not say."""


def read_weights(source: str, models: Path) -> Weights:
    """Reads NAME, NAME@VERSION or a path of a bundle, FILE.safetensors, or a run folder's best weights.

    A `best.safetensors` of a run says its classes and its recipe, another file neither. Raises DataError, BundleError.
    """
    path = Path(source)
    if (path / RECIPE_FILE).is_file():
        path /= BEST_FILE
    if path.suffix.lower() == ".safetensors" or path.is_file():
        sha256, tensors, note = _read_file(path)
        name = path.name
    else:
        bundle = open_bundle(resolve_bundle(models, source))
        name = bundle.manifest.id
        if bundle.manifest.parent is not None:
            raise DataError(
                f"{name} is a variant in {bundle.manifest.precision}: begin with {bundle.manifest.parent.id}"
            )
        sha256, tensors, _ = _read_file(bundle.weights)
        note = Noted(recipe=recipe_of(bundle.manifest), classes=bundle.manifest.labels)
    return Weights(name, sha256, tensors, note.classes, _position_grid(note))


def initialise(net: Net, weights: Weights, classes: tuple[str, ...]) -> Initialisation:
    """Puts the weights into the net, whose own classes are given, and says what was changed on the way.

    Raises DataError naming what is missing, too much, or of another shape.
    """
    target = net.state_dict()
    taken, changes = dict(weights.tensors), []
    if _needs_new_head(target, weights, classes):
        for name in HEAD:
            taken[name] = target[name]
        changes.append(f"new head for {len(classes)} classes")
    for name, resized in _resized_positions(net, target, weights):
        changes.append(f"{name} {_shape(taken[name])} interpolated to {_shape(resized)}")
        taken[name] = resized
    _check(target, taken, weights.name)
    net.load_state_dict(taken)
    return Initialisation(name=weights.name, sha256=weights.sha256, changes=tuple(changes))


def begin(net: Net, run: Run, read: Callable[[], Weights]) -> None:
    """Initialises the net of a run that has not begun yet; a run that has is held to the weights it began with.

    Those need not be there any more: a run goes on by itself. Raises DataError where they are there and others.
    """
    if not run.begun:
        run.init = initialise(net, read(), run.classes)
        if run.writes:
            print(f"initialised from {run.init.name}: {', '.join(run.init.changes) or 'every weight'}", file=sys.stderr)
        return
    begun_with = run.read_init()
    if begun_with is None:
        raise DataError(f"{run.folder} holds a run that began with random weights: give another folder, or no --init")
    try:
        now = read()
    except SaccadeError:
        return
    if now.sha256 != begun_with.sha256:
        raise DataError(
            f"{run.folder} holds a run that began with {begun_with.name} of sha256 {begun_with.sha256}; "
            f"{now.name} has {now.sha256}: give another folder"
        )


def _needs_new_head(target: Mapping[str, Tensor], weights: Weights, classes: tuple[str, ...]) -> bool:
    if weights.classes is not None and weights.classes != classes:
        return True
    return any(name not in weights.tensors or weights.tensors[name].shape != target[name].shape for name in HEAD)


def _resized_positions(net: Net, target: Mapping[str, Tensor], weights: Weights) -> list[tuple[str, Tensor]]:
    """(name, tensor) of each embedding of positions that has the width of the net's and another grid."""
    found = []
    for name, module in net.named_modules():
        if isinstance(module, RelativePositions):
            for axis in ("height", "width"):
                key = f"{name}.{axis}"
                if _differ_in(0, weights.tensors.get(key), target[key]):
                    found.append((key, _along_one_axis(weights.tensors[key], len(target[key]))))
    if net.position_grid is not None and weights.tensors.get("position") is not None:
        same_grid = weights.position_grid in (None, net.position_grid)
        if not same_grid or _differ_in(1, weights.tensors["position"], target["position"]):
            if weights.position_grid is None:
                seen, wanted = (_shape(tensor) for tensor in (weights.tensors["position"], target["position"]))
                raise DataError(
                    f"{weights.name}: position is {seen} and the net's is {wanted}; the file does not say which grid "
                    "its tokens lie on: give a bundle or the best.safetensors of a run"
                )
            resized = _on_new_grid(weights.tensors["position"], weights.position_grid, net.position_grid)
            found.append(("position", resized))
    return found


def _differ_in(axis: int, seen: Tensor | None, wanted: Tensor) -> bool:
    """Whether two tensors have other lengths in this axis and the same everywhere else."""
    if seen is None or seen.ndim != wanted.ndim:
        return False
    return [place for place in range(wanted.ndim) if seen.shape[place] != wanted.shape[place]] == [axis]


def _along_one_axis(embedding: Tensor, count: int) -> Tensor:
    """(2 n - 1, width) -> (count, width), linear; the middle, which is no step at all, stays where it is."""
    across = embedding.float().T.unsqueeze(0)  # (1, width, 2 n - 1)
    return F.interpolate(across, size=count, mode="linear", align_corners=True)[0].T.contiguous()


def _on_new_grid(position: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """(1, special + old patches, width) -> (1, special + new patches, width): bicubic, as in DeiT."""
    position = position.float()
    special = position.shape[1] - old[0] * old[1]
    patches = position[:, special:].transpose(1, 2).unflatten(2, old)  # (1, width, rows, columns)
    resized = F.interpolate(patches, size=new, mode="bicubic", align_corners=False)
    return torch.cat([position[:, :special], resized.flatten(2).transpose(1, 2)], dim=1)


def _check(target: Mapping[str, Tensor], taken: Mapping[str, Tensor], source: str) -> None:
    missing = [name for name in target if name not in taken]
    extra = [name for name in taken if name not in target]
    shapes = [
        f"{name} ({_shape(taken[name])}, the net's is {_shape(target[name])})"
        for name in target
        if name in taken and taken[name].shape != target[name].shape
    ]
    kinds = (("it lacks", missing), ("the net has no", extra), ("of another shape are", shapes))
    problems = [f"{what} {_few(names)}" for what, names in kinds if names]
    if problems:
        raise DataError(f"{source} does not fit the recipe's net: {'; '.join(problems)}")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def _position_grid(note: Noted) -> tuple[int, int] | None:
    """Grid of `position` in the net that the recipe builds; None where there is no recipe or no such parameter."""
    if note.recipe is None:
        return None
    with torch.device("meta"):
        return build(note.recipe.net, note.recipe.size, classes=1).position_grid


def _read_file(path: Path) -> tuple[str, dict[str, Tensor], Noted]:
    """(sha256, tensors, what a run noted in it). Raises DataError."""
    try:
        with path.open("rb") as file:
            start = file.read(2)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with safe_open(path, framework="pt") as opened:
            note = _note((opened.metadata() or {}).get("saccade", "{}"))
            return sha256, {name: opened.get_tensor(name) for name in opened.keys()}, note  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        if path.suffix.lower() in PICKLES or start == b"PK" or start[:1] == b"\x80":
            raise DataError(
                f"{path} is a pickle, and nothing is unpickled here, for that can run any code: write its tensors with "
                "safetensors.torch.save_file and give that file"
            ) from error
        raise DataError(f"{path} is no safetensors file: {error}") from error
    except OSError as error:
        raise DataError(f"could not read {path}: {error}") from error


def _note(text: str) -> Noted:
    """Nothing, where somebody else wrote the file or it is older than today's recipes."""
    try:
        return Noted.model_validate_json(text)
    except ValidationError:
        return Noted()

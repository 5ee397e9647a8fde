"""What a recipe's net has and costs, before anything is trained: parameters, multiply-accumulates, grids and maps.

MACs are counted by torch's FlopCounterMode, which knows convolutions and matrix products, in one forward pass of one
picture. The net lies on the meta device: nothing is computed, and attention is not fused there, so that Q Kᵀ and A V
are counted, which published figures often leave out.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from export.cifar10 import CIFAR10_CLASSES
from export.data import Digits
from export.nets import Net, build
from export.nets.maps import checked_maps
from export.recipe import DataConfig, Recipe
from saccade.errors import RecipeError
from saccade.manifest import AttentionLayer, Maps


class Part(NamedTuple):
    """A step of `Net.depths`: a block, or what stands before or after the blocks."""

    name: str
    parameters: int
    macs: int


class Description(NamedTuple):
    kind: str
    size: tuple[int, int]
    classes: int
    parameters: int
    macs: int
    parts: tuple[Part, ...]
    attention: tuple[AttentionLayer, ...]
    maps: Maps


def describe(recipe: Recipe, classes: int | None = None) -> Description:
    """Builds the net without weights and counts; `classes` where the data have not been said to have so many.

    Raises RecipeError where it cannot be built or the number of classes is unknown.
    """
    classes = classes or _class_count(recipe.data)
    with torch.device("meta"):
        net = build(recipe.net, recipe.size, classes).eval()
        pictures = torch.empty(1, 3, *recipe.size)
    macs = _macs(net, pictures)
    return Description(
        kind=recipe.net.kind,
        size=recipe.size,
        classes=classes,
        parameters=net.parameter_count,
        macs=macs[""],
        parts=tuple(_parts(net, macs)),
        attention=net.attention_layers,
        maps=checked_maps(net, recipe.default_maps),
    )


def to_text(name: str, it: Description) -> str:
    """The description as the command line prints it."""
    height, width = it.size
    rows = [("part", "parameters", "MACs"), *_merged(it.parts)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{name}: {it.kind}, {height} x {width} pixels, {it.classes} classes",
        f"{it.parameters:,} parameters, {it.macs:,} MACs ({it.macs / 1e9:.3g} G) a picture",
        "",
        *(f"  {row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}" for row in rows),
        "",
        *_attention_lines(it.attention),
        f"maps: {', '.join(it.maps.available) or 'none'}; without a word: {', '.join(it.maps.default) or 'none'}",
    ]
    return "\n".join(lines)


def _class_count(data: DataConfig) -> int:
    if data.kind == "folder":
        if data.classes is None:
            raise RecipeError(
                "how many classes an image folder has is not known: add classes = N to the recipe's [data]"
            )
        return data.classes
    return len(CIFAR10_CLASSES if data.kind == "cifar10" else Digits.classes)


def _macs(net: Net, pictures: torch.Tensor) -> dict[str, int]:
    """MACs of each module by its name in the net, submodules included; "" is the whole net."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(pictures)
    root = type(net).__name__
    counted = {path: sum(operations.values()) // 2 for path, operations in counter.get_flop_counts().items()}
    return {path.removeprefix(root).removeprefix("."): macs for path, macs in counted.items() if path != "Global"}


def _parts(net: Net, macs: dict[str, int]) -> Iterator[Part]:
    """What a net multiplies outside of its modules is pooling, and counted with the last part."""
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    counted = 0
    for depth, beginnings in enumerate(net.depths):
        names = [beginning.rstrip(".") for beginning in beginnings]
        here = sum(macs.get(name, 0) for name in names)
        if depth == len(net.depths) - 1:
            here = macs[""] - counted
        counted += here
        parameters = sum(count for name, count in sizes.items() if name.startswith(beginnings))
        yield Part(", ".join(names), parameters, here)


def _merged(parts: tuple[Part, ...]) -> Iterator[tuple[str, str, str]]:
    """Rows of the table; neighbours of the same size become one."""
    for (parameters, macs), group in groupby(parts, key=lambda part: part[1:]):
        names = [part.name for part in group]
        times = f"{len(names)} x " if len(names) > 1 else ""
        name = names[0] if len(names) == 1 else f"{names[0]} to {names[-1].rpartition('.')[2]}"
        yield name, f"{times}{parameters:,}", f"{times}{macs:,}"


def _attention_lines(layers: tuple[AttentionLayer, ...]) -> Iterator[str]:
    if not layers:
        yield "attention: none"
    first = 0
    for layer, group in groupby(layers, key=lambda layer: layer.model_copy(update={"output": ""})):
        last = first + len(list(group)) - 1
        which = f"layer {first}" if first == last else f"layers {first} to {last}"
        special = layer.special_tokens.count
        grid = f"{layer.grid[0]} x {layer.grid[1]} patches{f' and {special} special' if special else ''}"
        yield f"attention, {which}: {layer.heads} heads over {grid}, {layer.tokens} x {layer.tokens} weights each"
        first = last + 1

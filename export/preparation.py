"""What a command says of how pictures become the input of a model from elsewhere: labels, size, preprocessing."""

import argparse
import ast
import json
from collections import Counter
from pathlib import Path

from pydantic import ValidationError

from saccade.errors import DataError, first_problem
from saccade.manifest import Preprocessing

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SHORTEST_EDGE = 256 / 224
"""Of the crop's longer side: the usual evaluation on ImageNet."""


def preprocessing_of(options: argparse.Namespace, size: tuple[int, int]) -> tuple[Preprocessing, list[str]]:
    """(how pictures are prepared, what of it nobody said and was taken as on ImageNet). Raises DataError."""
    height, width = size
    fit = options.fit or "crop"
    fields = {
        "height": height,
        "width": width,
        "fit": fit,
        "interpolation": options.interpolation or "bilinear",
        "channels": options.channels or "RGB",
        "mean": options.mean or IMAGENET_MEAN,
        "std": options.std or IMAGENET_STD,
    }
    given = ("fit", "interpolation", "channels", "mean", "std")
    assumed = [f"{name} {_shown(fields[name])}" for name in given if getattr(options, name) is None]
    if options.shortest_edge is not None:
        fields["shortest_edge"] = options.shortest_edge
    elif fit == "crop":
        fields["shortest_edge"] = round(max(size) * SHORTEST_EDGE)
        assumed.append(f"shortest edge {fields['shortest_edge']}")
    try:
        return Preprocessing.model_validate(fields), assumed
    except ValidationError as error:
        raise DataError(f"preprocessing: {first_problem(error)}") from error


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def labels_of(path: Path) -> tuple[str, ...]:
    """One a line; or JSON: a list, an object from index to label, or one with such an `id2label`. Raises DataError."""
    try:
        content = path.read_text(encoding="utf-8-sig")  # Windows writes a mark first
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"could not read labels from {path}: {error}") from error
    if not content.lstrip().startswith(("[", "{")):
        labels = tuple(line.strip() for line in content.splitlines() if line.strip())
    else:
        try:
            labels = from_table(json.loads(content))
        except ValueError as error:
            raise DataError(f"{path} holds no labels: {error}") from error
    if not labels:
        raise DataError(f"{path} holds no labels: it is empty")
    return labels


def distinct(labels: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """(the labels, what was done to them): equal ones (ImageNet has two cranes) get their numbers behind them, all of
    them, since a manifest's labels differ from each other.
    """
    several = {label for label, times in Counter(labels).items() if times > 1}
    if not several:
        return labels, []
    renamed = tuple(f"{label} ({number})" if label in several else label for number, label in enumerate(labels))
    shown = ", ".join(new for old, new in zip(labels, renamed, strict=True) if old in several)
    again, said = distinct(renamed)
    return again, [f"equal labels got their numbers behind them: {shown}", *said]


def from_metadata(metadata: dict[str, str]) -> tuple[str, ...] | None:
    """The labels that an exporter left in a graph: under `id2label`, `labels`, `names` or `classes`; None for none."""
    for key in ("id2label", "labels", "names", "classes"):
        if key not in metadata:
            continue
        try:
            return from_table(ast.literal_eval(metadata[key]))  # reads literals only: JSON of strings, or Python's repr
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


def from_table(table: object) -> tuple[str, ...]:
    """A list of labels, an object from index to label, or one that has such an `id2label`. Raises ValueError."""
    if isinstance(table, dict) and isinstance(table.get("id2label"), dict):
        table = table["id2label"]
    if isinstance(table, dict):
        try:
            by_index = {int(index): label for index, label in table.items()}
        except (TypeError, ValueError):
            raise ValueError("its keys are no numbers from 0") from None
        if sorted(by_index) != list(range(len(by_index))):
            raise ValueError(f"its keys are not the numbers from 0 to {len(by_index) - 1}")
        table = [by_index[index] for index in range(len(by_index))]
    if not isinstance(table, list) or not all(isinstance(label, str) for label in table):
        raise ValueError("it is neither a list of texts nor an object from index to text")
    return tuple(table)

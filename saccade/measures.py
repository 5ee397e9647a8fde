"""The commands that measure a bundle on labelled pictures: what each takes and prints; `export` does the work."""

import argparse
from collections.abc import Callable
from pathlib import Path

from saccade.bundle import Bundle, open_bundle, resolve_bundle
from saccade.needs import needs

Command = Callable[[str, Callable[[argparse.Namespace], int | None]], argparse.ArgumentParser]
"""Adds a command by name; what it does is said by the function's docstring."""


def add_commands(command: Command) -> None:
    one = command("evaluate", evaluate)
    _add_bundle(one)
    one.add_argument("--split", choices=("test", "held-out"), default="test", help="which pictures (default: test)")


def evaluate(options: argparse.Namespace) -> None:
    """Measures accuracy through ONNX Runtime and writes it onto the card."""
    (evaluation,) = needs("export", "export.evaluation.evaluate")
    for figure in evaluation.evaluate(_bundle(options), options.data, options.split).manifest.card.evaluation:
        low, high = figure.interval95
        print(f"{figure.split}: {figure.top1:.2%} of {figure.pictures} (95 % interval {low:.2%} to {high:.2%})")


def _add_bundle(one: argparse.ArgumentParser) -> None:
    one.add_argument("bundle", help="models/NAME/VERSION, or NAME or NAME@VERSION in --models")
    one.add_argument("--models", type=Path, default=Path("models"), help="folder of bundles (default: models)")
    one.add_argument("--data", type=Path, metavar="DIR", help="folder of CIFAR-10, or of test/LABEL/* (see the docs)")


def _bundle(options: argparse.Namespace) -> Bundle:
    return open_bundle(resolve_bundle(options.models, options.bundle))

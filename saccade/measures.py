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

    one = command("robustness", robustness)
    one.add_argument("bundles", nargs="+", metavar="BUNDLE", help="each models/NAME/VERSION, NAME or NAME@VERSION")
    _add_places(one)
    one.add_argument("--split", choices=("test", "held-out"), default="test", help="which pictures (default: test)")
    one.add_argument(
        "--only",
        metavar="TESTS",
        help="some of rotation,zoom,translation,patchdrop,corruptions,mosaics, joined by commas (default: all)",
    )
    one.add_argument(
        "--pictures", type=int, default=1000, metavar="N", help="so many, spread over the classes (default: 1000)"
    )
    one.add_argument("--seed", type=int, default=0, metavar="N", help="of everything that is drawn (default: 0)")
    one.add_argument(
        "--out",
        type=Path,
        default=Path("evaluations/robustness"),
        metavar="FOLDER",
        help="where results and plots are written (default: evaluations/robustness)",
    )


def evaluate(options: argparse.Namespace) -> None:
    """Measures accuracy through ONNX Runtime and writes it onto the card."""
    (evaluation,) = needs("export", "export.evaluation.evaluate")
    for figure in evaluation.evaluate(_bundle(options), options.data, options.split).manifest.card.evaluation:
        low, high = figure.interval95
        print(f"{figure.split}: {figure.top1:.2%} of {figure.pictures} (95 % interval {low:.2%} to {high:.2%})")


def robustness(options: argparse.Namespace) -> None:
    """Measures bundles side by side on pictures that are turned, hidden, spoilt or put together."""
    measuring, tables, report = needs(
        "export", *(f"export.evaluation.robustness.{name}" for name in ("measure", "tables", "report"))
    )
    order = measuring.Order(measuring.families_of(options.only), options.pictures, options.seed)
    bundles = [open_bundle(resolve_bundle(options.models, bundle)) for bundle in options.bundles]
    report.make_folder(options.out)
    result = measuring.measure(bundles, options.data, options.split, order)
    report.write_report(result, options.out)
    print(f"{result.split}: {result.pictures:,} of {result.pictures_of_split:,} pictures, seed {result.seed}\n")
    print(tables.summary(result))
    print(f"\n{options.out} has every number and the plots")


def _add_bundle(one: argparse.ArgumentParser) -> None:
    one.add_argument("bundle", help="models/NAME/VERSION, or NAME or NAME@VERSION in --models")
    _add_places(one)


def _add_places(one: argparse.ArgumentParser) -> None:
    one.add_argument("--models", type=Path, default=Path("models"), help="folder of bundles (default: models)")
    one.add_argument("--data", type=Path, metavar="DIR", help="folder of CIFAR-10, or of test/LABEL/* (see the docs)")


def _bundle(options: argparse.Namespace) -> Bundle:
    return open_bundle(resolve_bundle(options.models, options.bundle))

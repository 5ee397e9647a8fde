"""The commands that measure a bundle on labelled pictures: what each takes and prints; `export` does the work."""

import argparse
from collections.abc import Callable
from pathlib import Path

from saccade.bundle import Bundle, check_place, open_bundle, resolve_bundle
from saccade.needs import needs

Command = Callable[[str, Callable[[argparse.Namespace], int | None]], argparse.ArgumentParser]
"""Adds a command by name; what it does is said by the function's docstring."""


def add_commands(command: Command) -> None:
    one = command("evaluate", evaluate)
    _add_bundle(one)
    one.add_argument("--split", choices=("test", "held-out"), default="test", help="which pictures (default: test)")

    one = command("quantize", quantize)
    _add_bundle(one)
    precision = one.add_mutually_exclusive_group(required=True)
    precision.add_argument("--int8", action="store_const", const="int8", dest="precision", help="for CPUs")
    precision.add_argument("--float16", action="store_const", const="float16", dest="precision", help="for CUDA")
    one.add_argument("--name", help="of the variant, written beside its parent (default: PARENT-int8, PARENT-float16)")
    one.add_argument(
        "--pictures", type=_pictures, default=256, metavar="N", help="held-out pictures to calibrate on (default: 256)"
    )
    one.add_argument("--anyway", action="store_true", help="write it whatever it loses")


def evaluate(options: argparse.Namespace) -> None:
    """Measures accuracy through ONNX Runtime and writes it onto the card."""
    (evaluation,) = needs("export", "export.evaluation.evaluate")
    for figure in evaluation.evaluate(_bundle(options), options.data, options.split).manifest.card.evaluation:
        low, high = figure.interval95
        print(f"{figure.split}: {figure.top1:.2%} of {figure.pictures} (95 % interval {low:.2%} to {high:.2%})")


def quantize(options: argparse.Namespace) -> None:
    """Writes a variant of lower precision beside the bundle, and says what it loses."""
    (quantizing,) = needs("export", "export.quantize.quantize")
    bundle = _bundle(options)
    check_place(bundle.folder.parent.parent, options.name or f"{bundle.manifest.name}-{options.precision}")
    manifest = quantizing.quantize(
        bundle, options.precision, options.data, options.name, pictures=options.pictures, anyway=options.anyway
    ).manifest
    found = manifest.card.variant
    assert found is not None
    print(f"{manifest.id}: {found.bytes / found.parent_bytes:.0%} of the bytes of {bundle.manifest.id}")
    print(
        f"right on {found.top1:.2%} of {found.pictures} pictures, its parent on {found.parent_top1:.2%} ({found.split})"
    )
    print(f"same label as its parent on {found.same_label:.2%}")
    for name, value in found.maps.items():
        print(f"rank correlation of {name} with its parent's: {value:.4f}")
    print(f"left in float: {', '.join(found.in_float) or 'nothing but the head'}")


def _pictures(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 100000, not {text!r}")
    return int(text)


def _add_bundle(one: argparse.ArgumentParser) -> None:
    one.add_argument("bundle", help="models/NAME/VERSION, or NAME or NAME@VERSION in --models")
    one.add_argument("--models", type=Path, default=Path("models"), help="folder of bundles (default: models)")
    one.add_argument("--data", type=Path, metavar="DIR", help="folder of CIFAR-10, or of test/LABEL/* (see the docs)")


def _bundle(options: argparse.Namespace) -> Bundle:
    return open_bundle(resolve_bundle(options.models, options.bundle))

"""The commands that measure a bundle on labelled pictures: what each takes and prints; `export` does the work."""

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from saccade.bundle import Bundle, check_place, find_bundles, open_bundle, resolve_bundle
from saccade.errors import BundleError
from saccade.manifest import Manifest
from saccade.needs import needs

Command = Callable[[str, Callable[[argparse.Namespace], int | None]], argparse.ArgumentParser]
"""Adds a command by name; what it does is said by the function's docstring."""


def add_commands(command: Command) -> None:
    one = command("evaluate", evaluate)
    _add_bundle(one)
    one.add_argument("--split", choices=("test", "held-out"), default="test", help="which pictures (default: test)")
    one.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for results (default: evaluations/NAME@VERSION/DATA-SPLIT)"
    )
    one.add_argument("--mistakes", type=count, default=25, metavar="N", help="wrong answers to show (default: 25)")
    one.add_argument("--no-card", dest="card", action="store_false", help="leave the bundle as it is")
    where = one.add_mutually_exclusive_group()
    where.add_argument("--cost", action="store_true", help="measure time a picture too; wants a quiet machine")
    where.add_argument("--url", help="ask the service there, which serves the same bundle")
    one.add_argument(
        "--concurrency", type=count, default=16, metavar="N", help="of --url: pictures on their way (default: 16)"
    )

    one = command("calibrate", calibrate)
    _add_bundle(one)
    one.add_argument("--anyway", action="store_true", help="on however few pictures")

    one = command("quantize", quantize)
    _add_bundle(one)
    precision = one.add_mutually_exclusive_group(required=True)
    precision.add_argument("--int8", action="store_const", const="int8", dest="precision", help="for CPUs")
    precision.add_argument("--float16", action="store_const", const="float16", dest="precision", help="for CUDA")
    one.add_argument("--name", help="of the variant, written beside its parent (default: PARENT-int8, PARENT-float16)")
    one.add_argument(
        "--pictures",
        type=count,
        default=256,
        metavar="N",
        help="held-out pictures to calibrate on, and beyond 1000 to choose by as well (default: 256)",
    )
    one.add_argument("--anyway", action="store_true", help="write it whatever it loses")

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
        "--pictures", type=count, default=1000, metavar="N", help="so many, spread over the classes (default: 1000)"
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
    """Measures accuracy, calibration and cost; writes figures, plots and the card."""
    evaluation, card, pictures, output = needs(
        "export", *(f"export.evaluation.{name}" for name in ("evaluate", "card", "pictures", "output"))
    )
    bundle = _bundle(options)
    chosen = pictures.choose_pictures(bundle.manifest, options.data, options.split)
    out = options.out or Path("evaluations") / bundle.manifest.id / chosen.folder
    output.make_folder(out)
    found = evaluation.evaluate(
        bundle,
        chosen,
        cost=options.cost,
        url=options.url,
        concurrency=options.concurrency,
        mistakes=options.mistakes,
    )
    print(card.summary(found.findings, bundle.manifest.card.calibration))
    found.write(out)
    written = [f"{out}/"]
    if options.card and options.url is None:
        try:
            found.write_card()
            written.append(f"the card of {bundle.folder}")
        except BundleError as error:
            print(f"saccade: the card stays as it was: {error}", file=sys.stderr)
    print(f"written: {' and '.join(written)}")


def calibrate(options: argparse.Namespace) -> None:
    """Fits the temperature of the scores on held-out pictures and writes it into the bundle."""
    (calibration,) = needs("export", "export.evaluation.calibrate")
    before = _bundle(options)
    manifest = calibration.calibrate(before, options.data, anyway=options.anyway).manifest
    it = manifest.card.calibration
    assert it is not None
    print(f"{manifest.id}: temperature {manifest.temperature:.4f}, of {it.pictures:,} pictures: {it.split}")
    print(f"  NLL  {it.served.nll:.4f}  {it.raw.nll:.4f} with temperature 1")
    print(f"  ECE  {it.served.ece:.4f}  {it.raw.ece:.4f}")
    dropped = [one.split for one in before.manifest.card.evaluation if one not in manifest.card.evaluation]
    if dropped:
        print(f"off the card, for they were of another temperature: {'; '.join(dropped)} (saccade evaluate)")
    stale = [one.id for one in _variants(before) if one.temperature != manifest.temperature]
    if stale:
        print(f"made of it, and of another temperature now: {', '.join(stale)} (saccade quantize makes them anew)")


def robustness(options: argparse.Namespace) -> None:
    """Measures bundles side by side on pictures that are turned, hidden, spoilt or put together."""
    output, measuring, tables, report = needs(
        "export",
        "export.evaluation.output",
        *(f"export.evaluation.robustness.{name}" for name in ("measure", "tables", "report")),
    )
    order = measuring.Order(measuring.families_of(options.only), options.pictures, options.seed)
    bundles = [open_bundle(resolve_bundle(options.models, bundle)) for bundle in options.bundles]
    output.make_folder(options.out)
    result = measuring.measure(bundles, options.data, options.split, order)
    report.write_report(result, options.out)
    print(f"{result.split}: {result.pictures:,} of {result.pictures_of_split:,} pictures, seed {result.seed}\n")
    print(tables.summary(result))
    print(f"\n{options.out} has every number and the plots")


def count(text: str) -> int:
    """A whole number from 1 to 1,000,000 of a command line."""
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 1000000, not {text!r}")
    return int(text)


def quantize(options: argparse.Namespace) -> None:
    """Writes a variant of lower precision beside the bundle, and says what it loses."""
    (quantizing,) = needs("export", "export.quantize.quantize")
    bundle = _bundle(options)
    name = f"{bundle.manifest.name}-{options.precision}" if options.name is None else options.name
    check_place(bundle.folder.parent.parent, name)
    manifest = quantizing.quantize(
        bundle, options.precision, options.data, name, pictures=options.pictures, anyway=options.anyway
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
    print(f"distance of the logits from its parent's, relative: {found.logits:.4f}")
    print(f"left in float: {', '.join(found.in_float) or 'nothing but the head'}")
    if found.anyway:
        print("more is lost than is allowed: the card says that it was written all the same (--anyway)")


def _variants(bundle: Bundle) -> list[Manifest]:
    """Manifests of the bundles beside it that name it as their parent; a damaged one is nobody's."""
    found = []
    for folder in find_bundles(bundle.folder.parent.parent):
        with suppress(BundleError):
            manifest = open_bundle(folder).manifest
            if manifest.parent is not None and manifest.parent.id == bundle.manifest.id:
                found.append(manifest)
    return found


def _add_bundle(one: argparse.ArgumentParser) -> None:
    one.add_argument("bundle", help="models/NAME/VERSION, or NAME or NAME@VERSION in --models")
    _add_places(one)


def _add_places(one: argparse.ArgumentParser) -> None:
    one.add_argument("--models", type=Path, default=Path("models"), help="folder of bundles (default: models)")
    one.add_argument("--data", type=Path, metavar="DIR", help="folder of CIFAR-10, or of test/LABEL/* (see the docs)")


def _bundle(options: argparse.Namespace) -> Bundle:
    return open_bundle(resolve_bundle(options.models, options.bundle))

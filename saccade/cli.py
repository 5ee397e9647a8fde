"""The `saccade` command. Each command imports what it needs, so that a base install stays small.

Bad input is one line on stderr and exit code 2.
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from saccade import __version__
from saccade.api import ClassifyOptions
from saccade.bundle import open_bundle, resolve_bundle
from saccade.client import Client, picture_bytes
from saccade.decode import decode
from saccade.errors import DataError, SaccadeError, SetupError
from saccade.geometry import Region
from saccade.manifest import Manifest
from saccade.overlay import overlay


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
        sys.stdout.flush()
    except SaccadeError as error:
        print(f"saccade: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\nsaccade: interrupted", file=sys.stderr)
        return 130
    return 0


def train(options: argparse.Namespace) -> None:
    """Trains a recipe, or goes on where the run folder stands."""
    recipes, data, training = _needs("export", "export.recipe", "export.data", "export.train")
    recipe = recipes.load_recipe(options.recipe)
    if options.download and recipe.data.kind == "cifar10":
        if options.data is None:
            raise DataError("--download needs --data DIR to put CIFAR-10 into")
        data.download_cifar10(options.data)
    source = data.open_source(recipe.data, options.data, recipe.preprocessing)
    try:
        training.train(recipe, source, options.out, device=options.device)
    except KeyboardInterrupt:
        print(f"\nsaccade: stopped; the same command resumes from the last epoch in {options.out}", file=sys.stderr)
        raise


def export(options: argparse.Namespace) -> None:
    """Turns a run into the next version of a bundle, verified."""
    (publishing,) = _needs("export", "export.publish")
    _report(publishing.publish(options.run_folder, options.models, options.name, options.data).manifest)


def verify(options: argparse.Namespace) -> None:
    """Holds a bundle to its promises and writes what was measured into it."""
    (verification,) = _needs("export", "export.verify")
    _report(verification.verify(open_bundle(resolve_bundle(options.models, options.bundle)), options.data).manifest)


def evaluate(options: argparse.Namespace) -> None:
    """Measures accuracy through ONNX Runtime and writes it onto the card."""
    (evaluation,) = _needs("export", "export.evaluate")
    bundle = open_bundle(resolve_bundle(options.models, options.bundle))
    for figure in evaluation.evaluate(bundle, options.data, options.split).manifest.card.accuracy:
        low, high = figure.interval95
        print(f"{figure.split}: {figure.top1:.2%} of {figure.pictures} (95 % interval {low:.2%} to {high:.2%})")


def overlay_picture(options: argparse.Namespace) -> None:
    """Draws a map over a picture, in this process and without a server."""
    (local,) = _needs("cpu", "service.local")
    folder = resolve_bundle(options.models, options.model)
    manifest = open_bundle(folder).manifest
    if options.class_ is not None and options.map not in (None, "class"):
        raise DataError(f"--class belongs to the class map, not to --map {options.map}")
    name = options.map or (None if options.class_ is None else "class")
    asked = ClassifyOptions.from_query(
        [
            ("top_k", "1"),
            ("decimals", "9"),
            ("classes", "top1" if options.class_ is None else options.class_),
            *([("maps", name)] if name else []),
        ]
    )
    picture = picture_bytes(options.picture)
    answer = local.classify(folder, picture, asked)
    if len(answer.maps) != 1:
        raise DataError(f"one map is drawn, and there are {len(answer.maps)}: give --map and one --class")
    upright = decode(picture, manifest.preprocessing.background)
    seen = Region(**answer.geometry.region.model_dump())
    drawn = overlay(upright, np.asarray(answer.maps[0].values, np.float32), seen)
    _write_picture(drawn, options.out)
    top = answer.labels[0]
    print(f"{options.out}: {top.label} {top.score:.3f}, {answer.maps[0].name} map of {manifest.id}")


def classify(options: argparse.Namespace) -> None:
    """Asks a service and prints its answer."""
    query = [(name, getattr(options, name)) for name in ("model", "maps", "attention", "heads", "rows")]
    asked = ClassifyOptions.from_query(
        [*((name, value) for name, value in query if value is not None), ("top_k", options.top_k)]
    )
    with Client(options.url, key=os.environ.get("SACCADE_API_KEY")) as client:
        answer = client.classify(options.picture, **asked.model_dump())
    print(answer.model_dump_json(indent=1))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; `--help` has the usage."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (--help says more)", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="saccade", description="Image classifiers that show where they looked.")
    parser.add_argument("--version", action="version", version=f"saccade {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        added.set_defaults(run=run)
        return added

    one = command("train", train)
    one.add_argument("recipe", help="a TOML file, or the name of one in export/recipes")
    one.add_argument("--data", type=Path, metavar="DIR", help="folder of the data set")
    one.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder, made or resumed")
    one.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    one.add_argument("--download", action="store_true", help="fetch CIFAR-10 into DIR first, checksum checked")

    one = command("export", export)
    one.add_argument("run_folder", type=Path, metavar="RUN", help="run folder of `saccade train`")
    one.add_argument("--models", type=Path, default=Path("models"), help="folder of bundles (default: models)")
    one.add_argument("--name", required=True, help="name of the model")
    one.add_argument("--data", type=Path, metavar="DIR", help="compare on pictures of this data set, not on made ones")

    one = command("verify", verify)
    one.add_argument("bundle", help="models/NAME/VERSION, or NAME or NAME@VERSION in --models")
    one.add_argument("--models", type=Path, default=Path("models"), help="folder of bundles (default: models)")
    one.add_argument("--data", type=Path, metavar="DIR", help="compare on pictures of this data set, not on made ones")

    one = command("evaluate", evaluate)
    one.add_argument("bundle", help="models/NAME/VERSION, or NAME or NAME@VERSION in --models")
    one.add_argument("--models", type=Path, default=Path("models"), help="folder of bundles (default: models)")
    one.add_argument("--data", type=Path, metavar="DIR", help="folder of the data set")
    one.add_argument("--split", choices=("test", "held-out"), default="test", help="which pictures (default: test)")

    one = command("overlay", overlay_picture)
    one.add_argument("picture", type=Path)
    one.add_argument("--model", required=True, help="NAME, NAME@VERSION or models/NAME/VERSION")
    one.add_argument("--out", type=Path, required=True, metavar="FILE", help="picture to write")
    one.add_argument("--models", type=Path, default=Path("models"), help="folder of bundles (default: models)")
    one.add_argument("--map", help="rollout, class or pooling (default: the model's)")
    one.add_argument("--class", dest="class_", help="class of the class map: top1 (default), an index or a label")

    one = command("classify", classify)
    one.add_argument("picture", type=Path)
    one.add_argument("--url", default="http://127.0.0.1:8000", help="the service (default: http://127.0.0.1:8000)")
    one.add_argument("--top-k", default="5", help=ClassifyOptions.model_fields["top_k"].description)
    for name in ("model", "maps", "attention", "heads", "rows"):
        one.add_argument(f"--{name}", help=ClassifyOptions.model_fields[name].description)
    return parser


def _needs(extra: str, *modules: str) -> list[Any]:
    """Imports modules of `service` or `export` by name: this package must not depend on them."""
    try:
        return [importlib.import_module(name) for name in modules]
    except ModuleNotFoundError as error:
        raise SetupError(
            f"this command needs {error.name}: install the extra, pip install -e '.[{extra}]', in a checkout"
        ) from error


def _report(manifest: Manifest) -> None:
    assert manifest.parity is not None
    width = max(map(len, manifest.parity.checks))
    print(f"{manifest.id}: {manifest.parity.source}, batches of {', '.join(map(str, manifest.parity.batches))}")
    for name, check in manifest.parity.checks.items():
        print(f"  {name:{width}}  {check.largest:.2e}  (allowed {check.allowed:.0e})")


def _write_picture(picture: Image.Image, path: Path) -> None:
    """Whole or not at all; the format follows the file's name."""
    kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path} must end in .png, .jpg, .jpeg or .webp")
    buffer = io.BytesIO()
    try:
        picture.save(buffer, kind, quality=90)
    except (OSError, ValueError) as error:  # JPEG ends at 65,500 pixels a side, WebP at 16,383
        raise DataError(f"{kind} cannot hold {picture.width} x {picture.height} pixels: {error}") from error
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(buffer.getvalue())
        part.replace(path)
    except OSError as error:
        if part.is_file():
            part.unlink()
        raise DataError(f"could not write {path}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())

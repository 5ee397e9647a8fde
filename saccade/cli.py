"""The `saccade` command. Each command imports what it needs, so that a base install stays small.

Bad input is one line on stderr and exit code 2; of many pictures, errors of some are exit code 1.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn, get_args

from saccade import __version__, bulk, explanations, measures
from saccade.api import Answer, ClassifyOptions
from saccade.bundle import check_place, find_bundles, open_bundle, resolve_bundle
from saccade.client import Client, Effort
from saccade.errors import DataError, RecipeError, SaccadeError
from saccade.manifest import Manifest, MapName
from saccade.needs import needs
from saccade.overlay import picture_file, write_whole
from saccade.picture import picture_bytes
from saccade.reasons import report
from saccade.sources import add_arguments, source_of


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int | None] = options.run
    try:
        code = run(options)
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
    return code or 0


def train(options: argparse.Namespace) -> None:
    """Trains a recipe, or goes on where the run folder stands."""
    recipes, data, cifar10, training, init = needs(
        "export", "export.recipe", "export.data", "export.cifar10", "export.train", "export.init"
    )
    recipe = recipes.load_recipe(options.recipe)
    if options.data is not None and recipe.data.kind == "digits":
        raise DataError(f"the recipe's data (digits) is part of scikit-learn: --data {options.data} would not be read")
    if options.download:
        if recipe.data.kind != "cifar10":
            raise DataError(f"--download fetches CIFAR-10; the recipe's data is {recipe.data.kind}")
        if options.data is None:
            raise DataError("--download needs --data DIR to put CIFAR-10 into")
        cifar10.download_cifar10(options.data)
    source = data.open_source(recipe.data, options.data, recipe.preprocessing)
    read = options.init and partial(init.read_weights, options.init, options.models)
    try:
        training.train(
            recipe,
            source,
            options.out,
            device=options.device,
            init=read,
            resident=options.resident,
            workers=_cpus() if options.workers is None else options.workers,
        )
    except KeyboardInterrupt:
        print(f"\nsaccade: stopped; the same command resumes from the last epoch in {options.out}", file=sys.stderr)
        raise


def describe(options: argparse.Namespace) -> None:
    """Prints what a recipe's net has and costs; needs no data."""
    recipes, describing = needs("export", "export.recipe", "export.describe")
    recipe = recipes.load_recipe(options.recipe)
    try:
        description = describing.describe(recipe)
    except RecipeError as error:
        raise RecipeError(f"{options.recipe}: {error}") from error
    print(describing.to_text(Path(options.recipe).stem, description))


def export(options: argparse.Namespace) -> None:
    """Turns a run, or a model from elsewhere, into the next version of a bundle, verified."""
    source = source_of(options)
    check_place(options.models, options.name)
    if source == "run":
        (publishing,) = needs("export", "export.publish")
        published = publishing.publish(
            options.run_folder, options.models, options.name, options.data, relevance=options.relevance
        )
        report(published.manifest)
        return
    (adopting,) = needs("export", f"export.from_{source}")
    bundle, said = adopting.adopt(options)
    report(bundle.manifest, said)


def verify(options: argparse.Namespace) -> None:
    """Holds a bundle to its promises and writes what was measured into it."""
    (verification,) = needs("export", "export.verify")
    bundle = open_bundle(resolve_bundle(options.models, options.bundle))
    verified = verification.verify(bundle, options.data, file=options.from_onnx, function=options.from_torch)
    report(verified.manifest)


def overlay_picture(options: argparse.Namespace) -> None:
    """Draws a map over a picture, in this process and without a server."""
    (local,) = needs("cpu", "service.local")
    folder = resolve_bundle(options.models, options.model)
    manifest = open_bundle(folder).manifest
    if options.class_ is not None and options.map in ("pooling", "rollout"):
        raise DataError(f"--class belongs to the class map and to maps of the gradient, not to --map {options.map}")
    if options.class_ == "topk":
        raise DataError("one map is drawn: --class must be top1, an index or a label, not 'topk'")
    kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(options.out.suffix.lower())
    if kind is None:
        raise DataError(f"{options.out} must end in .png, .jpg, .jpeg or .webp")
    name = options.map or (None if options.class_ is None else _of_a_class(manifest))
    asked = ClassifyOptions.from_query(
        [
            ("top_k", "1"),
            ("decimals", "9"),
            ("classes", "top1" if options.class_ is None else options.class_),
            *([("maps", name)] if name else []),
        ]
    )
    picture = picture_bytes(options.picture)
    with local.Local(folder) as model:
        answer = Answer.model_validate_json(model.asking(asked)(picture, Effort()))
    if len(answer.maps) != 1:
        raise DataError(f"one map is drawn, and there are {len(answer.maps)}: give --map and one --class")
    drawn = answer.overlay(picture=picture, background=manifest.preprocessing.background)
    write_whole(options.out, picture_file(drawn, kind))
    top, (drawn_map,) = answer.labels[0], answer.maps
    whose = "" if drawn_map.class_index is None else f" for {manifest.labels[drawn_map.class_index]}"
    note = f"; {drawn_map.note}" if drawn_map.note else ""
    print(f"{options.out}: {top.label} {top.score:.3f}, {drawn_map.name} map of {manifest.id}{whose}{note}")


def _of_a_class(manifest: Manifest) -> MapName:
    """The map that is meant where a class is given and none is named."""
    maps = manifest.maps
    return "class" if maps.class_map or not maps.gradients else maps.gradients.names[0]


def classify(options: argparse.Namespace) -> int:
    """Asks a service about pictures and writes one line of JSON each, in their order."""
    given = [(name, getattr(options, name)) for name in ClassifyOptions.model_fields if name != "model"]
    query = [
        (name, one)
        for name, value in given
        if value is not None
        for one in (value if isinstance(value, list) else [value])
    ]
    if options.timeout_ms is None:  # many at a time wait for each other, longer than the service lets a single one wait
        query.append(("timeout_ms", str(round(min(options.timeout, 3600) * 1000))))
    order = bulk.Order(
        options.pictures,
        b"\0" if options.null else b"\n",
        options.concurrency,
        options.out,
        options.resume,
        options.overlay,
    )
    if options.local:
        (local,) = needs("cpu", "service.local")
        asked = ClassifyOptions.from_query(query)
        with local.Local(resolve_bundle(options.models, options.model or _only(options.models))) as model:
            return int(bulk.classify(order, model.asking(asked)) > 0)
    if options.model is not None:
        query.append(("model", options.model))
    asked = ClassifyOptions.from_query(query)
    with Client(options.url, key=os.environ.get("SACCADE_API_KEY") or None, timeout=options.timeout) as client:
        return int(bulk.classify(order, client.asking(asked)) > 0)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; `--help` has the usage."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (--help says more)", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="saccade", description="Image classifiers that show where they looked.")
    parser.add_argument("--version", action="version", version=f"saccade {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        added.set_defaults(run=run)
        return added

    _training_options(command("train", train))

    one = command("describe", describe)
    one.add_argument("recipe", help="a TOML file, or the name of one in export/recipes")

    add_arguments(command("export", export))

    one = command("verify", verify)
    one.add_argument("bundle", help="models/NAME/VERSION, or NAME or NAME@VERSION in --models")
    one.add_argument("--models", type=Path, default=Path("models"), help="folder of bundles (default: models)")
    one.add_argument("--data", type=Path, metavar="DIR", help="compare on pictures of this data set, not on made ones")
    one.add_argument(
        "--from-torch", metavar="MODULE:FUNCTION", help="hold it to the module that this makes: its code is run"
    )
    one.add_argument(
        "--from-onnx", type=Path, metavar="FILE", help="hold a bundle to the ONNX file that it is taken from"
    )

    measures.add_commands(command)
    explanations.add_commands(command)

    one = command("overlay", overlay_picture)
    one.add_argument("picture", type=Path)
    one.add_argument("--model", required=True, help="NAME, NAME@VERSION or models/NAME/VERSION")
    one.add_argument("--out", type=Path, required=True, metavar="FILE", help="picture to write")
    one.add_argument("--models", type=Path, default=Path("models"), help="folder of bundles (default: models)")
    one.add_argument(
        "--map", help=f"{', '.join(get_args(MapName))} (default: the model's, or with --class one of these)"
    )
    one.add_argument(
        "--class", dest="class_", help="of a class map or a map of the gradient: top1 (default), an index or a label"
    )

    one = command("classify", classify)
    one.add_argument(
        "pictures", nargs="+", metavar="PATH", help="files, folders, globs in quotes, or - for a list of paths on stdin"
    )
    one.add_argument("--url", default="http://127.0.0.1:8000", help="the service (default: http://127.0.0.1:8000)")
    one.add_argument("--out", type=Path, metavar="FILE", help="file for the lines (default: standard output)")
    one.add_argument("--resume", action="store_true", help="go on with FILE after whatever stopped the command")
    one.add_argument("--overlay", type=Path, metavar="DIR", help="also draw each picture's map over it, below DIR")
    one.add_argument("--concurrency", type=int, default=16, metavar="N", help="pictures on their way (default: 16)")
    one.add_argument("--timeout", type=_seconds, default=60.0, metavar="S", help="seconds for an answer (default: 60)")
    one.add_argument("--null", "-0", action="store_true", help="paths on stdin end with NUL, as of find -print0")
    one.add_argument("--local", action="store_true", help="without a service: run the model in this process")
    one.add_argument("--models", type=Path, default=Path("models"), help="for --local: folder of bundles")
    for name, field in ClassifyOptions.model_fields.items():
        # of classes several, since a label may hold a comma
        action = "append" if name == "classes" else "store"
        one.add_argument(f"--{name.replace('_', '-')}", action=action, help=field.description)
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 1e6:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, at most 1000000, not {text!r}")
    return seconds


def _training_options(one: argparse.ArgumentParser) -> None:
    one.add_argument("recipe", help="a TOML file, or the name of one in export/recipes")
    one.add_argument("--data", type=Path, metavar="DIR", help="folder of the data set")
    one.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder, made or resumed")
    one.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    one.add_argument(
        "--init",
        metavar="WEIGHTS",
        help="fine-tune: a bundle (NAME, NAME@VERSION, a path), a run folder or a safetensors file",
    )
    one.add_argument("--models", type=Path, default=Path("models"), help="for --init: folder of bundles")
    one.add_argument(
        "--resident",
        choices=("auto", "always", "never"),
        default="auto",
        help="keep all pictures on the device, or read them anew in each epoch (default: as memory allows)",
    )
    one.add_argument("--workers", type=_count, metavar="N", help="processes that read pictures (default: one a CPU)")
    one.add_argument("--download", action="store_true", help="fetch CIFAR-10 into DIR first, checksum checked")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > 1024:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 1024, not {text!r}")
    return int(text)


def _cpus() -> int:
    """Of this process, which shares them with those that torchrun started beside it."""
    return max(len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def _only(models: Path) -> str:
    """The model that is meant where none is named. Raises DataError where there are several."""
    names = {folder.parent.name for folder in find_bundles(models)}
    if len(names) != 1:
        raise DataError(f"give --model, one of {', '.join(sorted(names)) or 'none'}")
    return names.pop()


if __name__ == "__main__":
    sys.exit(main())

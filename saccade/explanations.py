"""The command that adds maps of the gradient to a classifier: what it takes and prints; `export` does the work."""

import argparse
from pathlib import Path

from saccade.bundle import open_bundle, resolve_bundle
from saccade.errors import DataError
from saccade.measures import Command
from saccade.needs import needs
from saccade.reasons import report
from saccade.sources import pair


def add_commands(command: Command) -> None:
    one = command("relevance", relevance)
    one.add_argument(
        "source", metavar="SOURCE", help="a classifier in ONNX, FILE.onnx; or a bundle (NAME, NAME@VERSION, a path)"
    )
    add = one.add_argument_group("of FILE.onnx").add_argument
    add("--logits", metavar="NAME", help="output or inner value (default: the output logits, or the first)")
    add("--grid", type=pair, metavar="RxC", help="rows and columns of patches, where they are not found")
    add("--size", type=pair, metavar="HxW", help="height and width of the input, where they are open")
    add("--out", type=Path, metavar="FILE", help="where to write it (default: NAME-relevance.onnx beside)")
    add = one.add_argument_group("of a bundle, which gets relevance.onnx").add_argument
    add("--models", type=Path, metavar="DIR", help="folder of bundles (default: models)")
    add("--from-torch", metavar="MODULE:FUNCTION", help="hold it to the module that this makes: its code is run")
    add("--from-onnx", type=Path, metavar="FILE", help="hold a bundle to the ONNX file that it is taken from")


_OF_A_FILE, _OF_A_BUNDLE = ("logits", "grid", "size", "out"), ("models", "from_torch", "from_onnx")


def relevance(options: argparse.Namespace) -> None:
    """Adds maps of what argued for any class asked for, to an ONNX file of anybody's or to a bundle."""
    is_file = options.source.endswith(".onnx")
    if not is_file and Path(options.source).is_file():
        raise DataError(f"{options.source} is a file and does not end in .onnx: give ONNX, or a bundle")
    for name in _OF_A_BUNDLE if is_file else _OF_A_FILE:
        if getattr(options, name) is not None:
            kind = "an ONNX file" if is_file else "a bundle"
            raise DataError(f"--{name.replace('_', '-')} says nothing of {kind}, {options.source}")
    if is_file:
        (bare,) = needs("export", "export.explain.bare")
        path = Path(options.source)
        out = options.out or path.with_name(f"{path.stem}-relevance.onnx")
        print("\n".join(bare.explain_file(path, out, logits=options.logits, size=options.size, grid=options.grid)))
        return
    (adding,) = needs("export", "export.explain.add")
    bundle = open_bundle(resolve_bundle(options.models or Path("models"), options.source))
    report(adding.add(bundle, file=options.from_onnx, function=options.from_torch).manifest)

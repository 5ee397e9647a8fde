"""The command that adds maps of the gradient to a classifier: what it takes and prints; `export` does the work."""

import argparse
from pathlib import Path

from saccade.errors import DataError
from saccade.measures import Command
from saccade.needs import needs
from saccade.sources import pair


def add_commands(command: Command) -> None:
    one = command("relevance", relevance)
    one.add_argument("source", type=Path, metavar="FILE.onnx", help="a classifier in ONNX, from anywhere")
    one.add_argument(
        "--logits", metavar="NAME", help="output or inner value (default: the output logits, or the first)"
    )
    one.add_argument("--grid", type=pair, metavar="RxC", help="rows and columns of patches, where they are not found")
    one.add_argument("--size", type=pair, metavar="HxW", help="height and width of the input, where they are open")
    one.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: NAME-relevance.onnx beside)")


def relevance(options: argparse.Namespace) -> None:
    """Writes a graph that gives, beside what it gave, maps of what argued for any class asked for."""
    path: Path = options.source
    if path.suffix != ".onnx":
        raise DataError(f"{path} must be an ONNX file and end in .onnx")
    (bare,) = needs("export", "export.explain.bare")
    out = options.out or path.with_name(f"{path.stem}-relevance.onnx")
    print("\n".join(bare.explain_file(path, out, logits=options.logits, size=options.size, grid=options.grid)))

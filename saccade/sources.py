"""`saccade export`: its options, and which of them belong to which source of a model."""

import argparse
from pathlib import Path

from saccade.errors import DataError

SOURCES = ("transformers", "torch", "onnx")
"""Beside a run of our own. `export.from_<source>.adopt(options)` gives the bundle and lines that say what was found."""

_PICTURES = ("labels", "size", "mean", "std", "interpolation", "fit", "shortest_edge", "channels", "scores")
_TAKEN = {
    "run": ("data",),
    "transformers": ("revision", "grid"),
    "torch": (*_PICTURES, "grid", "weights"),
    "onnx": (*_PICTURES, "grid", "output"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Exactly one source, and what can be said of it."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("run_folder", type=Path, metavar="RUN", nargs="?", help="run folder of `saccade train`")
    source.add_argument("--from-transformers", metavar="DIR_OR_NAME", help="a classifier saved by transformers")
    source.add_argument("--from-torch", metavar="MODULE:FUNCTION", help="a function that makes a torch.nn.Module")
    source.add_argument("--from-onnx", type=Path, metavar="FILE", help="a classifier in ONNX")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of bundles (default: models)")
    parser.add_argument("--name", required=True, help="name of the model")
    parser.add_argument(
        "--no-relevance", dest="relevance", action="store_false", help="without relevance.onnx: no maps of the gradient"
    )
    add = parser.add_argument_group("of a run").add_argument
    add("--data", type=Path, metavar="DIR", help="compare on pictures of this data set, not on made ones")
    add = parser.add_argument_group("of --from-transformers").add_argument
    add("--revision", help="branch, tag or commit of a name on the hub")
    add = parser.add_argument_group("of --from-transformers, --from-torch and --from-onnx").add_argument
    add("--grid", type=pair, metavar="RxC", help="rows and columns of patches, where they are not found")
    add = parser.add_argument_group("of --from-torch").add_argument
    add("--weights", type=Path, metavar="FILE", help="its state dict, safetensors")
    add = parser.add_argument_group("of --from-onnx").add_argument
    add("--output", help="the output that holds the logits (default: the one called logits, or the first)")
    add = parser.add_argument_group("of --from-torch and --from-onnx").add_argument
    add("--labels", type=Path, metavar="FILE", help="one a line, or JSON: a list or an object from index to label")
    add("--size", type=pair, metavar="HxW", help="height and width of the input (default: what the model fixes)")
    add("--mean", type=float, nargs=3, help="of values from 0 to 1, in the model's order of channels")
    add("--std", type=float, nargs=3, help="of values from 0 to 1")
    add("--fit", choices=("crop", "stretch"), help="resize the shorter side and crop (default), or stretch")
    add(
        "--shortest-edge", type=int, metavar="PIXELS", help="of the picture before the crop (default: 8/7 of the input)"
    )
    add("--interpolation", choices=("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"))
    add("--channels", choices=("RGB", "BGR"), help="their order in the model (default: RGB)")
    add("--scores", choices=("softmax", "sigmoid"), help="one label of all (default), or each by itself")


def source_of(options: argparse.Namespace) -> str:
    """`run`, or one of SOURCES. Raises DataError for an option that means nothing there."""
    source = next((name for name in SOURCES if getattr(options, f"from_{name}") is not None), "run")
    known = {name for names in _TAKEN.values() for name in names}
    strange = sorted(name for name in known - set(_TAKEN[source]) if getattr(options, name) is not None)
    if strange:
        given = "a run" if source == "run" else f"--from-{source}"
        raise DataError(f"--{strange[0].replace('_', '-')} says nothing of {given}")
    return source


def pair(text: str) -> tuple[int, int]:
    """Two lengths of a command line, as 224x224 or 224."""
    parts = text.lower().split("x")
    if len(parts) == 1:
        parts *= 2
    if len(parts) != 2 or not all(part.isdecimal() and 1 <= int(part) <= 4096 for part in parts):
        raise argparse.ArgumentTypeError(
            f"must be two numbers from 1 to 4096 as 224x224, or one for a square, not {text!r}"
        )
    return int(parts[0]), int(parts[1])

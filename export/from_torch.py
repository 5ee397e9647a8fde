"""`saccade export --from-torch module:function`: a PyTorch module of one's own -> a bundle.

The function is called without arguments and gives the module; its weights come from a safetensors file. Both are the
user's own code and file, named by hand; nothing that came over a network is run.
"""

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file
from torch import nn

from export.adopt import Facts
from export.eager import Eager
from export.module import adopt_module
from export.onnx_file import OnnxGraph
from export.preparation import distinct, labels_of, preprocessing_of
from export.pretrained.checkpoint import State, read_weights, sha256, unlike, widened
from export.table import lines
from export.timm_settings import with_settings_of
from saccade.bundle import Bundle
from saccade.card import Card
from saccade.errors import BundleError, DataError
from saccade.manifest import Origin


def adopt(options: argparse.Namespace) -> tuple[Bundle, list[str]]:
    """The bundle, and what is said of it (see `export.table`).

    Raises DataError for a target, weights or labels that are not there or do not fit, BundleError where a promise does
    not hold. Then nothing is written.
    """
    target: str = options.from_torch
    weights: Path | None = options.weights
    if weights is None or options.labels is None:
        raise DataError("--from-torch needs --weights, a safetensors file, and --labels, a file with one a line")
    labels, said = distinct(labels_of(options.labels))
    state = read_weights((weights,))
    module = make(target)
    fill(module, state, weights)
    options = with_settings_of(module, options)
    if options.size is None:
        raise DataError(f"{target} does not say how large its pictures are: give --size HxW")
    preprocessing, assumed = preprocessing_of(options, options.size)
    card = Card(
        summary=f"{type(module).__name__} of {target}; not trained and not evaluated here.",
        license="that of the source",
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )
    origin = Origin(kind="torch", name=target, files={weights.name: sha256(weights)})
    facts = Facts(labels, preprocessing, origin, card, options.scores or "softmax", relevance=options.relevance)
    bundle, exposed = adopt_module(
        module, facts, lambda written: module_of(written, target), options.models, options.name, options.grid
    )
    return bundle, lines(exposed, facts, [*said, *widened((weights,))], assumed)


def reference_of(bundle: Bundle) -> OnnxGraph:
    """The bundle's graph alone: a manifest may come from anybody, and the code that it names is not run."""
    assert bundle.manifest.provenance.origin is not None
    graph = OnnxGraph(bundle)
    graph.said += (
        f"; the module itself ({bundle.manifest.provenance.origin.name}) is asked where --from-torch names it, which "
        "runs its code"
    )
    return graph


def module_of(bundle: Bundle, target: str) -> Eager:
    """The module that `target` makes, filled from the bundle. Raises BundleError where that cannot be done."""
    manifest = bundle.manifest
    assert manifest.provenance.origin is not None
    named = manifest.provenance.origin.name
    try:
        module = make(target)
        fill(module, {key: tensor for key, tensor in load_file(bundle.weights).items() if key in module.state_dict()},
             bundle.weights)  # fmt: skip
    except DataError as error:
        raise BundleError(
            f"{manifest.id} is held to {target}, which cannot be made here: {error}; it is looked for from the working "
            "directory"
        ) from error
    instead = "" if target == named else f", which the manifest calls {named},"
    return Eager(f"{type(module).__name__} of {target}{instead} in eager PyTorch {torch.__version__}", bundle, module)


def make(target: str) -> nn.Module:
    """What `module:function` or `file.py:function` gives, in evaluation mode and float32. Raises DataError."""
    place, _, function = target.rpartition(":")
    if not place or not function.isidentifier():
        raise DataError(f"{target!r} must be of the form module:function, or file.py:function")
    with _found_first(Path.cwd(), *([Path(place).parent.resolve()] if place.endswith(".py") else [])):
        source = _import(place, target)
        found = getattr(source, function, None)
        if not callable(found):
            raise DataError(f"{place} has no function {function}")
        try:
            module = found()
        except Exception as error:  # of the user's own code
            raise DataError(f"{target}() failed with {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise DataError(f"{target}() must give a torch.nn.Module, not a {type(module).__name__}")
    return module.float().eval()


def fill(module: nn.Module, state: State, source: Path) -> None:
    """Loads all parameters and buffers. Raises DataError naming what is missing, left over, or of another shape or
    kind of number.
    """
    own = module.state_dict(keep_vars=True)
    loaded = {own[key].data_ptr() for key in state if key in own}
    problems = [
        f"{key} is missing"
        for key in own
        if key not in state and own[key].data_ptr() not in loaded  # or tied
    ]
    problems += [f"{key} is not in the module" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        for key in state
        if key in own and state[key].shape != own[key].shape
    ]
    problems += [f"{key} is {kind}" for key in state if key in own and (kind := unlike(state[key], own[key]))]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise DataError(f"{source} does not fit the module: {shown}")
    module.load_state_dict(state, strict=False)  # what is missing is tied to what is there


def _import(place: str, target: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place)
        if not path.is_file():
            raise DataError(f"there is no file {place}")
        return _run(path)
    except DataError:
        raise
    except ModuleNotFoundError as error:
        raise DataError(f"{target} cannot be imported from {Path.cwd()}: no module named {error.name}") from error
    except Exception as error:  # of the user's own code
        raise DataError(f"{target} cannot be imported: {type(error).__name__}: {error}") from error


def _run(path: Path) -> ModuleType:
    """A file as a module, known to Python as one, which dataclasses ask for; the prefix hides none of the same name."""
    spec = importlib.util.spec_from_file_location(f"given_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


@contextmanager
def _found_first(*folders: Path) -> Iterator[None]:
    """The working directory as `python -m` has it, which a command that is installed has not, and a file's folder."""
    before = list(sys.path)
    sys.path[:0] = map(os.fspath, folders)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before

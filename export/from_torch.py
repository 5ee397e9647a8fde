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
from export.preparation import distinct, labels_of, preprocessing_of
from export.pretrained.checkpoint import State, read_weights, sha256
from export.table import lines
from export.timm_settings import with_settings_of
from saccade.bundle import Bundle
from saccade.errors import BundleError, DataError
from saccade.manifest import Card, Origin


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
    facts = Facts(labels, preprocessing, origin, card, options.scores or "softmax")
    bundle, exposed = adopt_module(module, facts, reference_of, options.models, options.name, options.grid)
    return bundle, lines(exposed, facts, said, assumed)


def reference_of(bundle: Bundle) -> Eager:
    """The module, made by the same function, filled from the bundle. Raises BundleError where that cannot be done."""
    manifest = bundle.manifest
    assert manifest.provenance.origin is not None
    target = manifest.provenance.origin.name
    try:
        module = make(target)
        fill(module, {key: tensor for key, tensor in load_file(bundle.weights).items() if key in module.state_dict()},
             bundle.weights)  # fmt: skip
    except DataError as error:
        raise BundleError(
            f"{manifest.id} is held to {target}, which cannot be made here: {error}; it is looked for from the working "
            "directory"
        ) from error
    return Eager(f"{type(module).__name__} of {target} in eager PyTorch {torch.__version__}", manifest, module)


def make(target: str) -> nn.Module:
    """What `module:function` or `file.py:function` gives, in evaluation mode and float32. Raises DataError."""
    place, _, function = target.rpartition(":")
    if not place or not function.isidentifier():
        raise DataError(f"{target!r} must be of the form module:function, or file.py:function")
    with _working_directory_first():
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
    """Loads all parameters and buffers. Raises DataError naming what is missing, left over or of another shape."""
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
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except DataError:
        raise
    except ModuleNotFoundError as error:
        raise DataError(f"{target} cannot be imported from {Path.cwd()}: no module named {error.name}") from error
    except Exception as error:  # of the user's own code
        raise DataError(f"{target} cannot be imported: {type(error).__name__}: {error}") from error


@contextmanager
def _working_directory_first() -> Iterator[None]:
    """As `python -m` has it, which a command that is installed has not."""
    before = list(sys.path)
    sys.path.insert(0, os.fspath(Path.cwd()))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before

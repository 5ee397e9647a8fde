"""The source model that a bundle is held to: what it answers for pictures, by the names of the bundle's outputs."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from export.convert import Exported
from export.nets import Net, build
from export.recipe import recipe_of
from saccade.bundle import Bundle
from saccade.errors import BundleError, DataError

Outputs = dict[str, NDArray[np.float32]]


class Limits(NamedTuple):
    """How far a bundle may be from its source model: largest absolute difference."""

    logits: float = 1e-4
    attention: float = 1e-5
    pooling: float = 1e-5
    sums: float = 1e-4
    """Of what the bundle says twice: a class map and the logit that it sums to."""
    batch: float = 1e-5
    """Of attention, alone and in a batch."""
    layers: Mapping[str, float] = MappingProxyType({})
    """Of attention outputs that are held each to a limit of its own."""


class Reference(Protocol):
    """A source model."""

    said: str
    """What it is, for the manifest: `the net rebuilt in eager PyTorch`."""
    pictures: int
    """On how many of them it is worth asking: an evaluator in Python takes seconds for one."""

    def arrays(self, pixels: NDArray[np.float32]) -> Outputs:
        """(n, 3, H, W) -> logits, each attention output, and the weights of learned pooling where there are any.

        Rollout is worked out from these, and the tokens of the class map are held to the logits.
        """
        ...

    def limits(self, pixels: NDArray[np.float32]) -> Limits:
        """What float32 allows for these pictures; never less than the limits that stand above."""
        ...


class RecipeNet:
    """A net of our own, rebuilt from the bundle alone."""

    said = "the net rebuilt in eager PyTorch"
    pictures = 256

    def __init__(self, bundle: Bundle) -> None:
        self._exported = Exported(rebuild(bundle)).eval()

    def arrays(self, pixels: NDArray[np.float32]) -> Outputs:
        return self._exported.arrays(pixels)

    def limits(self, pixels: NDArray[np.float32]) -> Limits:  # noqa: ARG002 - our own nets keep the limits as they are
        return Limits()


def reference_of(bundle: Bundle, *, file: Path | None = None, function: str | None = None) -> Reference:
    """The source model, by where the bundle says that it comes from. Raises BundleError where it cannot be had.

    `file` is the ONNX file, where it is at hand, and `function` makes the module of PyTorch: code is not run because a
    manifest names it. Raises DataError where one is given for a bundle from elsewhere, or is another.
    """
    if bundle.manifest.parent is not None:
        variants = importlib.import_module("export.quantize.reference")
        variants.check_options(bundle, from_onnx=file, from_torch=function)
        variant: Reference = variants.VariantOf(bundle)
        return variant
    origin = bundle.manifest.provenance.origin
    kind = "a run" if origin is None else origin.kind
    for given, option, wanted in ((file, "--from-onnx", "onnx"), (function, "--from-torch", "torch")):
        if given is not None and kind != wanted:
            raise DataError(f"{option} says nothing of {bundle.manifest.id}, which comes from {kind}")
    if origin is None:
        return RecipeNet(bundle)
    source = importlib.import_module(f"export.from_{origin.kind}")
    reference: Reference
    if function is not None:
        reference = source.module_of(bundle, function)
    elif file is not None:
        reference = source.file_of(bundle, file)
    else:
        reference = source.reference_of(bundle)
    return reference


def rebuild(bundle: Bundle) -> Net:
    """The net from the manifest's recipe and weights.safetensors, in evaluation mode."""
    manifest = bundle.manifest
    recipe = recipe_of(manifest)
    try:
        net = build(recipe.net, recipe.size, len(manifest.labels))
        net.load_state_dict(load_file(bundle.weights))
    except (ValueError, RuntimeError) as error:
        raise BundleError(f"{manifest.id}: the net cannot be rebuilt from the bundle: {error}") from error
    return net.eval()

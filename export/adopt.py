"""A model that was trained elsewhere -> a bundle."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.assemble import assemble, gives_manifest
from export.environment import commit
from export.graph.expose import Exposed
from export.graph.narrow import narrow
from export.reference import Reference
from export.weights import TOLERANCE, versions, write_files
from saccade.bundle import Bundle
from saccade.card import Card
from saccade.errors import DataError
from saccade.manifest import Origin, Preprocessing, Provenance, Scores

LARGE = 1024
"""Initializers of so many bytes go into weights.safetensors."""


_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)


@dataclass(frozen=True)
class Facts:
    """What a bundle says beside what its graph says."""

    labels: tuple[str, ...]
    preprocessing: Preprocessing
    origin: Origin
    card: Card
    scores: Scores = "softmax"
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of what else the source is made with."""
    relevance: bool = True
    """Whether relevance.onnx is made, where it can be."""


def adopt(
    model: ir.Model,
    exposed: Exposed,
    facts: Facts,
    reference: Callable[[Bundle], Reference],
    models: Path,
    name: str,
    parameters: Mapping[str, NDArray[Any]] | None = None,
) -> Bundle:
    """The next version of `name` from an exposed graph (see `expose`), held to the source model, or nothing at all.

    `model` is changed. `reference` gets the bundle as it will be: its graph and weights are there, its parity is not.
    `parameters` are in weights.safetensors whole, where a source is rebuilt from them; initializers of their names are
    they. Raises DataError where labels and logits differ in number, BundleError where a promise does not hold.
    """
    check_labels(facts.labels, exposed.classes)
    narrow(model, (facts.preprocessing.height, facts.preprocessing.width))
    with gives_manifest(facts.origin.name):
        fields = {
            "labels": facts.labels,
            "scores": facts.scores,
            "preprocessing": facts.preprocessing,
            "attention": exposed.layers,
            "pooling": exposed.pooling,
            "maps": exposed.maps,
            "tolerance": TOLERANCE,  # of the draft; `assemble` has the final one
            "provenance": Provenance(origin=facts.origin, commit=commit(), versions={**versions(), **facts.versions}),
            "card": facts.card,
        }
        return assemble(
            models,
            name,
            fields,
            lambda folder: _write(model, exposed, parameters or {}, folder),
            reference,
            relevance=facts.relevance,
        )


def check_labels(labels: tuple[str, ...], logits: int) -> None:
    """For as soon as the number of logits is known. Raises DataError where there are not as many labels."""
    if len(labels) != logits:
        raise DataError(f"there are {len(labels)} labels and the model gives {logits} logits")


def parameter_count(model: ir.Model) -> int:
    """Numbers of all initializers of floating point or 8 bits, each once: weights, running averages, scales."""
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    return sum(tensor.size for tensor in tensors if tensor.dtype.is_floating_point() or tensor.dtype in _BYTES)


def _write(model: ir.Model, exposed: Exposed, parameters: Mapping[str, NDArray[Any]], folder: Path) -> None:
    class_map = exposed.maps.class_map
    named = {class_map.weight, class_map.bias} if class_map else set()
    _bring_home(model)
    initializers = {
        name: np.asarray(value.const_value.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and (value.const_value.nbytes >= LARGE or name in named or name in parameters)
    }
    write_files(model, {**initializers, **parameters}, {name: name for name in initializers}, folder)


def _bring_home(model: ir.Model) -> None:
    """What is in files beside the source's comes into memory: the bundle has a file of its own."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.Tensor(value.const_value.numpy(), dtype=value.const_value.dtype, name=value.name)

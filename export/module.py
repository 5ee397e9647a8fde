"""A PyTorch module of anybody's -> a bundle that holds its parameters under their own names: enough to rebuild it."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn
from torch._dynamo.exc import UserError

from export.adopt import Facts, adopt, check_labels
from export.eager import Logits
from export.graph.batch import open_batch
from export.graph.decompose import decompose
from export.graph.expose import Exposed, expose
from export.graph.prepare import logits_of
from export.names import LOGITS
from export.reference import Reference
from export.trace import name_after_modules, plain_attention, simplify, trace
from saccade.bundle import Bundle
from saccade.errors import DataError

_WRAPPED = "model."
"""What `Logits` puts before the names of a module's parameters."""


def adopt_module(
    module: nn.Module,
    facts: Facts,
    reference: Callable[[Bundle], Reference],
    models: Path,
    name: str,
    grid: tuple[int, int] | None = None,
) -> tuple[Bundle, Exposed]:
    """The next version of `name`, held to `reference`, and what was found in the module.

    `module` takes (batch, 3, H, W) in evaluation mode, float32. Raises DataError for one that cannot be traced or is no
    classifier, BundleError where a promise does not hold; nothing is left behind then.
    """
    size = (facts.preprocessing.height, facts.preprocessing.width)
    try:
        with plain_attention(), torch.no_grad():  # takes moments; what follows takes minutes
            check_labels(facts.labels, Logits(module)(torch.zeros(2, 3, *size)).shape[1])
        graph = _traced(Logits(module), size)
    except DataError:
        raise
    except Exception as error:  # of the module's own code, of torch.export, of the exporter
        raise DataError(
            f"{facts.origin.name} cannot be exported for pictures of {size[0]} x {size[1]}: {_reason(error)}"
        ) from error
    name_after_modules(graph)
    _unwrap(graph)
    _check_logits(graph, facts.origin.name)
    exposed = expose(graph, size, grid=grid)
    parameters = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    return adopt(graph, exposed, facts, reference, models, name, parameters), exposed


def _traced(module: nn.Module, size: tuple[int, int]) -> ir.Model:
    try:
        graph = trace(module, size, [LOGITS])
    except UserError as error:
        if "specialized" not in str(error):
            raise
        # Code that counts its pictures as a Python number, as `len(x)` does, is traced for one and opened afterwards.
        graph = trace(module, size, [LOGITS], alone=True)
        simplify(graph)
        open_batch(graph, size)
    simplify(graph)
    decompose(graph, size, only=("Einsum",))  # torch.einsum, which attention may be written with
    return graph


def _check_logits(graph: ir.Model, source: str) -> None:
    """What the module gives is compared with the bundle's logits, so it must be them. Raises DataError."""
    said: list[str] = []
    logits_of(graph, LOGITS, said)
    if said:
        raise DataError(f"{source} must give its logits, and no probabilities: {said[0]}")


def _unwrap(graph: ir.Model) -> None:
    """Initializers get the names that the module itself has for them."""
    initializers = graph.graph.initializers
    for wrapped in [name for name in initializers if name.startswith(_WRAPPED)]:
        value = initializers.pop(wrapped)
        value.name = wrapped.removeprefix(_WRAPPED)
        initializers[value.name] = value


def _reason(error: Exception) -> str:
    """torch.export wraps what went wrong; the innermost error says it."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__

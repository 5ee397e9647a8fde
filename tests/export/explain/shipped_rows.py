"""The tables of the shipped models: how near they are to float64 autograd, and the checks of sanity, in numbers."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from export.explain.relevance import GRAD_CAM, LEGRAD
from export.nets import Net
from export.reference import rebuild
from saccade.bundle import Bundle, open_bundle
from tests.conftest import ROOT
from tests.export.explain import sanity
from tests.export.explain.proofs import (
    GRADIENT,
    OF_MAPS,
    Array,
    Error,
    gradient_error,
    graph_gradients,
    legrad,
    map_errors,
    of_net,
    published,
)

NAMES = ("cifar10-cct", "cifar10-hybrid-s", "cifar10-resnet-s")
PICTURES = 100
FOR_SANITY = 32


class Row(NamedTuple):
    """How near a model is to autograd."""

    model: str
    gradient: Error | None
    errors: Mapping[str, Error]

    def cells(self) -> list[str]:
        found = {"∇A": self.gradient, **self.errors}
        return [f"`{self.model}`", *(said(found.get(name)) for name in COLUMNS)]

    def failing(self) -> list[str]:
        limits = {"∇A": GRADIENT}
        found = {"∇A": self.gradient, **self.errors}
        return [f"{self.model}: {name} {one}" for name, one in found.items()
                if one is not None and not one.holds(limits.get(name, OF_MAPS))]  # fmt: skip


COLUMNS = ("∇A", "relevance", "grad_attention", "legrad", "grad_cam")


class Sane(NamedTuple):
    """What the checks say of a model."""

    model: str
    across: float
    """Rank correlation of the maps of the first class and the second."""
    steps: list[sanity.Step]
    one_weight: float | None
    alone: float
    finite: bool

    def cells(self) -> list[str]:
        steps = ", ".join(f"{step.part} {step.correlation:.2f}" for step in self.steps)
        weight = "no attention" if self.one_weight is None else f"{self.one_weight:.0e}"
        finite = "finite" if self.finite else "not finite"
        return [f"`{self.model}`", f"{self.across:.2f}", steps, weight, f"{self.alone:.0e}", finite]


def said(error: Error | None) -> str:
    """1e-07 (2e-07)."""
    return "" if error is None else f"{error.ours:.0e} ({error.autograd:.0e})"


def opened(name: str) -> Bundle:
    """A shipped model."""
    return open_bundle(ROOT / "models" / name / "1")


def measure(bundle: Bundle, count: int = PICTURES) -> Row:
    """Of every class, on so many made pictures."""
    pixels, ask = sanity.pictures(bundle, count), of_net(lambda: rebuild(bundle))

    def maps(kind: torch.dtype, part: Array) -> dict[str, Array]:
        if not bundle.manifest.attention:
            return {GRAD_CAM: _exact_map(rebuild(bundle).to(kind), part, kind)}
        found = published(bundle.manifest, ask(kind, part))
        return {**found, LEGRAD: legrad(lambda: _Weighing(rebuild(bundle)), _blocks, bundle, part, kind)}

    errors = map_errors(bundle, maps, pixels)
    return Row(bundle.manifest.name, gradient_error(bundle, ask, pixels), errors)


def check(bundle: Bundle, count: int = FOR_SANITY) -> Sane:
    """The checks of sanity on so many made pictures."""
    weight = None
    if bundle.manifest.attention:
        explain = graph_gradients(bundle)
        weight = sanity.one_weight(rebuild(bundle), explain, sanity.pictures(bundle, 1))
    with tempfile.TemporaryDirectory() as place:
        steps = sanity.randomised(bundle, count, Path(place))
    return Sane(
        bundle.manifest.name, sanity.across_classes(bundle, count), steps, weight,
        sanity.alone(bundle, min(count, 8)), sanity.constant(bundle),
    )  # fmt: skip


class _Weighing(nn.Module):
    """The net's logits by way of its softmax weights."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net.explain(pixels).logits
        return logits


def _blocks(module: nn.Module) -> tuple[list[nn.Module], str, tuple[int, ...]]:
    net = module.net
    if hasattr(net, "encoder"):
        return [*net.encoder.blocks], "weigh", (1,)
    return [*net.attention_blocks], "weigh", (2, 3)


def _exact_map(net: Net, pixels: Array, kind: torch.dtype) -> Array:
    """(k, B, P): of a head behind a mean, the exact class map's positive part: so Grad-CAM must be."""
    with torch.inference_mode():
        tokens = net.explain(torch.from_numpy(pixels).to(kind)).class_tokens
        assert tokens is not None
        return np.maximum(torch.einsum("bpw,cw->cbp", tokens, net.head.weight).numpy(), 0)

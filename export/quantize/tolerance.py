"""How far a variant's answers may be from those of its own graph on another machine: found by moving its constants.

An activation half-way between two codes falls to one side or the other by the last bit of what came before, and that
bit is another on other processors. What a difference of a whole code does to the answers is measured.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.runtime import PROVIDER, open_graph
from export.weights import TOLERANCE
from saccade.bundle import Bundle
from saccade.errors import BundleError
from saccade.golden import PICTURES, SEED, kind_of, made_pictures
from saccade.manifest import Precision
from saccade.preprocess import normalize

ROUNDING: dict[Precision, float] = {"int8": 1e-6, "float16": 2**-11}
"""Relative: sixteen roundings of float32, and one of float16."""
SEEDS = range(4)
SHARE = 0.2
"""Of the numbers' span, at most: with a wider tolerance a map that is upside down might pass for the right one."""


class Movement(NamedTuple):
    """Of the outputs of one kind."""

    far: float
    """The largest difference that moved constants made."""
    span: float
    """Greatest less least number."""

    @property
    def limit(self) -> float:
        """Twice as far: so few draws do not find the worst."""
        return 2 * self.far


def movements(bundle: Bundle, pixels: NDArray[np.float32]) -> dict[str, Movement]:
    """Kind of output -> how far its answers for (n, 3, H, W) move when every constant of the graph is off by some
    roundings, and how far they reach.
    """
    manifest = bundle.manifest
    exact = open_graph(bundle.graph, only=manifest.outputs)(pixels)
    far: dict[str, float] = {}
    for seed in SEEDS:
        near = open_graph(shaken(bundle.graph, ROUNDING[manifest.precision], seed), only=manifest.outputs)(pixels)
        for name, values in exact.items():
            kind = kind_of(name)
            far[kind] = max(far.get(kind, 0.0), float(np.abs(near[name] - values).max()))
    outputs = {kind: [values for name, values in exact.items() if kind_of(name) == kind] for kind in far}
    return {
        kind: Movement(far[kind], float(max(map(np.max, values)) - min(map(np.min, values))))
        for kind, values in outputs.items()
    }


def tolerance_of(bundle: Bundle) -> dict[str, dict[str, float]]:
    """The `tolerance` of a variant's manifest: of each kind of output its own, on the pictures of golden.npz alone.

    Another provider may be as far away as the parent's may, and moves as far besides. Raises BundleError where a kind
    would need more than SHARE of the span of its numbers.
    """
    manifest, spec = bundle.manifest, bundle.manifest.preprocessing
    golden = normalize(made_pictures(PICTURES, spec.height, spec.width, SEED), spec)
    usual = TOLERANCE[PROVIDER]
    limits = dict(usual)
    for kind, found in movements(bundle, golden).items():
        limits[kind] = max(usual[kind], found.limit)
        if limits[kind] > usual[kind] and not limits[kind] <= SHARE * found.span:
            raise BundleError(
                f"{manifest.precision} rounds the {kind} of {manifest.id} so roughly that {limits[kind]:.3g} would be "
                f"allowed of numbers that span {found.span:.3g}; it may be {SHARE:.0%} of that at most"
            )
    others = {name: kinds for name, kinds in TOLERANCE.items() if name != PROVIDER}
    return {PROVIDER: limits} | {
        name: {kind: limits[kind] + most for kind, most in kinds.items()} for name, kinds in others.items()
    }


def shaken(graph: Path, size: float, seed: int) -> bytes:
    """The graph with every constant of floating point off by a random share of itself, `size` as standard deviation.

    What is finite stays so: masks are the largest number that there is.
    """
    model, generator = ir.load(graph), np.random.default_rng(seed)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        values = np.array(value.const_value.numpy())
        if value.const_value.dtype.is_floating_point():
            noise = 1 + size * generator.standard_normal(values.shape)
            limit = np.where(np.isfinite(values), float(np.finfo(values.dtype).max), np.inf)
            values = np.asarray(np.clip(values * noise, -limit, limit)).astype(values.dtype)
        value.const_value = ir.Tensor(values, name=value.name)
    content: bytes = ir.to_proto(model).SerializeToString()
    return content

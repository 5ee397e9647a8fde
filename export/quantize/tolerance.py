"""How far a variant's answers may be from those of its own graph on another machine: found by moving its constants.

An activation half-way between two codes falls to one side or the other by the last bit of what came before, and that
bit is another on other processors. What a difference of a whole code does to the answers is measured.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.runtime import PROVIDER, open_graph, open_relevance
from export.weights import TOLERANCE
from saccade.bundle import Bundle
from saccade.errors import BundleError
from saccade.golden import PICTURES, SEED, Arrays, kind_of, made_pictures
from saccade.manifest import Precision
from saccade.preprocess import normalize

ROUNDING: dict[Precision, float] = {"int8": 1e-6, "float16": 2**-11}
"""Relative: sixteen roundings of float32, and one of float16."""
SEEDS = range(4)
SHARE = 0.2
"""Of the numbers' span, at most: with a wider tolerance a map that is upside down might pass for the right one."""


class Movement(NamedTuple):
    """Of one output."""

    far: float
    """The largest difference that moved constants made."""
    span: float
    """Greatest less least number."""

    @property
    def limit(self) -> float:
        """Twice as far: so few draws do not find the worst."""
        return 2 * self.far


def movements(bundle: Bundle, pixels: NDArray[np.float32]) -> dict[str, Movement]:
    """Output -> how far its answers for (n, 3, H, W) move when every constant of the graph is off by some roundings.

    Each layer of attention by itself: one may span five times what another does.
    """
    manifest = bundle.manifest
    exact = open_graph(bundle.graph, only=manifest.outputs)(pixels)
    moved = _farthest(bundle, bundle.graph, exact, lambda graph: open_graph(graph, only=manifest.outputs)(pixels))
    return {name: Movement(float(moved[name].max()), float(np.ptp(values))) for name, values in exact.items()}


def map_movements(bundle: Bundle, pixels: NDArray[np.float32], classes: NDArray[np.int64]) -> Arrays:
    """The same of relevance.onnx, each number by itself: output -> absolute differences in its shape."""
    exact = open_relevance(bundle.relevance)(pixels, classes)
    return _farthest(bundle, bundle.relevance, exact, lambda graph: open_relevance(graph)(pixels, classes))


def _farthest(bundle: Bundle, graph: Path, exact: Arrays, answer: Callable[[bytes], Arrays]) -> Arrays:
    """Of some draws, the largest difference of each number; inf where one is not finite."""
    far = {name: np.zeros_like(values) for name, values in exact.items()}
    for seed in SEEDS:
        near = answer(shaken(graph, ROUNDING[bundle.manifest.precision], seed))
        for name, values in exact.items():
            moved = np.abs(near[name] - values)
            far[name] = np.maximum(far[name], np.where(np.isfinite(moved), moved, np.inf))
    return far


def tolerance_of(bundle: Bundle) -> dict[str, dict[str, float]]:
    """The `tolerance` of a variant's manifest: of each output its own, on the pictures of golden.npz alone.

    Another provider may be as far away as the parent's may, and moves as far besides. Raises BundleError where an
    output would need more than SHARE of the span of its numbers.
    """
    manifest, spec = bundle.manifest, bundle.manifest.preprocessing
    golden = normalize(made_pictures(PICTURES, spec.height, spec.width, SEED), spec)
    limits: dict[str, float] = {}
    for name, found in movements(bundle, golden).items():
        usual = TOLERANCE[PROVIDER][kind_of(name)]
        limits[name] = max(usual, found.limit)
        if limits[name] > usual and not limits[name] <= SHARE * found.span:
            raise BundleError(
                f"{manifest.precision} rounds the {name} of {manifest.id} so roughly that {limits[name]:.3g} would be "
                f"allowed of numbers that span {found.span:.3g}; it may be {SHARE:.0%} of that at most"
            )
    others = {provider: kinds for provider, kinds in TOLERANCE.items() if provider != PROVIDER}
    return {PROVIDER: limits} | {
        provider: {name: limit + kinds[kind_of(name)] for name, limit in limits.items()}
        for provider, kinds in others.items()
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

"""A differentiated graph is held to finite differences in float64, through onnx's own evaluator: no PyTorch needed."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.explain.float64 import Array, Float64, Values
from export.explain.known import said
from saccade.errors import BundleError

LIMIT = 1e-6
"""Largest relative error of a derivative along a direction."""
_STEPS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
"""Large ones are rounded less, small ones cross fewer kinks: one of them has to agree."""
_KINK = 1e-5
"""By so much, relatively, slopes to the left and to the right may differ from one step on without being a kink."""
_DIRECTIONS = 3
_DRAWS, _ATTEMPTS = 3, 4
"""Of pictures, for one that lies on a kink lies there whatever the direction; and of directions with each of them."""
_LOUDER = 1e3
"""A layer with a small gradient is changed more than others, up to so many times, for its share to count."""
_BATCH, _CLASSES = 2, 2


class Derivative(NamedTuple):
    """Gradients of a value, as a graph has them."""

    value: ir.Value
    """(parts * batch, classes), as the logits are, with one part."""
    seed: ir.Value
    """(k, batch, classes)."""
    gradients: Mapping[ir.Value, ir.Value]
    """Value of shape (batch, …) -> (k, batch, …): d sum(seed * that part of the value) / d value."""
    part: int = 0
    parts: int = 1
    fixed: Collection[ir.Value] = ()
    """What these give counts as it is, whatever changes before them."""


def check_gradients(model: ir.Model, derivatives: Sequence[Derivative], *, seed: int = 0) -> float:
    """The largest relative error seen.

    Two pictures of noise, and for each its top class and another, chosen by `seed`. For each derivative, all that it is
    taken by is changed together, each along a random direction, and the change of its value is held to the sum of the
    inner products of direction and gradient. Nothing is rounded to 8 bits but weights, for rounding is a staircase.
    Raises BundleError where one is off, naming the value that is.
    """
    generator = np.random.default_rng(seed)
    graph, pixels = Float64(model, straight=True), model.graph.inputs[0]
    assert pixels.shape is not None
    size = [length for length in pixels.shape[1:] if isinstance(length, int)]
    wanted = dict.fromkeys(value for one in derivatives for value in (one.value, *one.gradients))
    draws: list[Values] = []

    def values(draw: int) -> Values:
        if draw == len(draws):
            pictures = generator.standard_normal((_BATCH, *size))
            draws.append(graph.run({pixels: pictures}, wanted, keep=True))
        return draws[draw]

    return max(
        _checked(one, (_Check(model, graph, values(draw), one, generator) for draw in range(_DRAWS)))
        for one in derivatives
    )


def _checked(derivative: Derivative, draws: Iterable["_Check"]) -> float:
    worst, done = 0.0, 0
    for check in draws:
        for _ in range(_ATTEMPTS):
            error = check.direction()
            if error is not None:
                worst, done = max(worst, error), done + 1
            if done == _DIRECTIONS:
                return worst
    tried = _DRAWS * _ATTEMPTS
    raise BundleError(
        f"the gradients of {derivative.value.name} could not be checked: {tried - done} of {tried} directions lead "
        "over a kink, where no derivative is"
    )


class _Found(NamedTuple):
    error: float
    """Of the worse of the two classes, at the step that agrees best."""
    kink: bool
    """Whether one was met on the way to a step that agrees."""


class _Check:
    def __init__(
        self,
        model: ir.Model,
        graph: Float64,
        values: Values,
        derivative: Derivative,
        generator: np.random.Generator,
    ) -> None:
        """`values`: all of the forward pass."""
        self._graph, self._derivative, self._generator = graph, derivative, generator
        self.name, gradients = derivative.value.name, derivative.gradients
        self._here = self._part(values[derivative.value])
        self._seed = _one_hot(self._here, generator)
        found = self._graph.run({**values, derivative.seed: self._seed}, list(gradients.values()))
        self._gradients = {value: found[gradient] for value, gradient in gradients.items()}
        self._shapes = {value: values[value].shape for value in gradients}
        self._given = _unmoved(model, values, set(gradients), derivative.fixed)
        for value, array in self._gradients.items():
            shape = (_CLASSES, *self._shapes[value])
            if array.shape != shape:
                raise BundleError(f"the gradient by {said(value)} must have the shape {shape}; it has {array.shape}")
            if not np.isfinite(array).all():
                raise BundleError(f"the gradient of {self.name} by {said(value)} is not finite")
        norms = {value: float(np.linalg.norm(array)) for value, array in self._gradients.items()}
        loudest = max(norms.values())
        if loudest == 0:
            raise BundleError(f"all gradients of {self.name} are 0")
        self._sizes = {value: min(loudest / norm, _LOUDER) if norm else 1.0 for value, norm in norms.items()}

    def direction(self) -> float | None:
        """The relative error along a new direction; None: there is a kink. Raises BundleError."""
        direction = {value: size * self._generator.standard_normal(self._shapes[value])
                     for value, size in self._sizes.items()}  # fmt: skip
        found = self._along(direction)
        if found.error < LIMIT:
            return found.error
        if found.kink:
            return None
        alone = {value: self._along({value: one}) for value, one in direction.items()}
        worst = max(alone, key=lambda value: alone[value].error)
        raise BundleError(
            f"the gradient of {self.name} by {said(worst)} is off by {alone[worst].error:.2g} of finite "
            f"differences in float64; {LIMIT:.0e} is allowed"
        )

    def _along(self, direction: Values) -> _Found:
        """Compares each class by itself, over both pictures together."""
        expected, squares = np.zeros(_CLASSES), np.full(_CLASSES, np.finfo(np.float64).tiny)
        for value, one in direction.items():
            rows = self._gradients[value].reshape(_CLASSES, -1)
            expected += rows @ one.ravel()
            squares += np.sum((rows * self._sizes[value]) ** 2, axis=1)
        size = np.sqrt(squares)  # that the inner product has on the whole, for one may be near 0 by chance
        best, kink = np.inf, False
        for step in _STEPS:
            near, far = ([self._change(direction, sign * many * step) for sign in (1, -1)] for many in (1, 2))
            slope = (8 * (near[0] - near[1]) - (far[0] - far[1])) / (12 * step)
            bends = [np.abs(ahead + back) / (many * step) / size for many, (ahead, back) in ((1, near), (2, far))]
            # At half the step a curve bends half as much.
            if np.any((bends[0] > _KINK) & (bends[0] > 0.75 * bends[1])):
                kink = True
                continue
            best = min(best, float(np.max(np.abs(slope - expected) / size)))
            if best < LIMIT:
                break
        return _Found(best, kink)

    def _change(self, direction: Values, step: float) -> NDArray[np.float64]:
        """(k,): how the seeded value changes."""
        value, changes = self._derivative.value, {value: step * one for value, one in direction.items()}
        moved = self._graph.run(self._given, [value], changes)
        return np.einsum("kbc,bc->k", self._seed, self._part(moved[value]) - self._here)

    def _part(self, array: Array) -> Array:
        """(batch, classes)."""
        return np.split(array, self._derivative.parts)[self._derivative.part]


def _one_hot(logits: Array, generator: np.random.Generator) -> NDArray[np.float64]:
    """(k, B, classes): of each picture its top class, and another one."""
    classes = logits.shape[1]
    top = logits.argmax(1)
    other = (top + generator.integers(1, max(classes, 2), len(top))) % classes
    return np.eye(classes)[np.stack([top, other])]


def _unmoved(model: ir.Model, values: Values, changed: set[ir.Value], fixed: Collection[ir.Value]) -> Values:
    """Values that no change of those reaches, and these themselves where nothing of them is before them."""
    behind = set(changed)
    moved: set[ir.Value] = set()
    for node in model.graph:
        if any(value in behind for value in node.inputs):
            outputs = {value for value in node.outputs if value not in fixed}
            behind |= outputs
            moved |= outputs
    return {value: array for value, array in values.items() if value not in moved}

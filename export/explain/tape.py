"""What gradient rules write with: nodes behind a graph, and gradients that are summed where a value has several uses.

The gradient of a value of shape (B, …) has the shape (k, B, …), one for each of k logits: an axis in front of all
others. The values of the forward pass broadcast against it as they are, so that nothing of it is repeated k times.
Wherever axes are counted from the front, that of the gradient is one more.

Gradients are float32 whatever the forward pass computes in: half precision would lose those below 6e-8, and round all
below 6e-5. What is of another type is cast where a gradient meets it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.explain.known import Known, Shape, said
from export.graph.adder import Adder
from export.graph.nodes import describe
from saccade.errors import BundleError


class Part(NamedTuple):
    """A gradient that is zero but for a range of one axis, which is kept short as long as it may be."""

    axis: int
    """Of the value; that of the gradient is one more."""
    start: int
    stop: int
    gradient: ir.Value


Contribution = ir.Value | Part
Operand = ir.Value | NDArray[Any] | list[int] | float | None


class Tape:
    """Makes nodes at the end of a graph and keeps the gradients made so far."""

    def __init__(self, model: ir.Model, known: Known, seeds: Mapping[ir.Value, ir.Value]) -> None:
        """`seeds`: values of the forward pass and their gradients, (k, *shape) each."""
        self._add = Adder(model)
        self._known = known
        self._made: dict[Any, ir.Value] = {}
        self._contributions: dict[ir.Value, list[Contribution]] = {value: [seed] for value, seed in seeds.items()}
        self.k = self("Shape", next(iter(seeds.values())), start=0, end=1)
        """How many gradients each value has, int64 (1,)."""

    def __call__(self, operator: str, *inputs: Operand, **attributes: Any) -> ir.Value:
        """The node's one output; the same node is never made twice. Lists become int64, numbers float32, and so does
        what the forward pass has in another type of floating point.
        """
        values = [self._value(operand) for operand in inputs]
        if operator == "Transpose" and values[0] is not None:
            return self._transpose(values[0], list(attributes["perm"]))
        if operator not in ("Cast", "Shape"):
            values = [value if value is None else self.wide(value) for value in values]
        return self._node(operator, values, attributes)

    def unscaled(self, gradient: ir.Value) -> tuple[ir.Value, float]:
        """(what a gradient is a multiple of, how many times), for operators that multiply by a number as well."""
        node = gradient.producer()
        factor = None if node is None or node.op_type != "Mul" else self.constant(node.inputs[1])
        if node is None or node.inputs[0] is None or factor is None or factor.ndim:
            return gradient, 1.0
        return node.inputs[0], float(factor)

    def wide(self, value: ir.Value) -> ir.Value:
        """The value in float32, if it is of another type of floating point."""
        return self("Cast", value, to=ir.DataType.FLOAT) if self._known.is_other_float(value) else value

    def further(self, value: ir.Value, place: int) -> ir.Value:
        """Another output of the node that gives the value."""
        node = value.producer()
        assert node is not None
        return self._add.output(node, place)

    def shape(self, value: ir.Value | None) -> Shape:
        assert value is not None
        return self._known.shape(value)

    def rank(self, value: ir.Value | None) -> int:
        return len(self.shape(value))

    def lengths(self, value: ir.Value | None, start: int = 0, stop: int | None = None) -> list[int]:
        """Of axes that must not grow with the batch. Raises BundleError where one does."""
        lengths = self.shape(value)[start:stop]
        if None in lengths:
            raise BundleError(f"axes of {said(value)} grow with the batch, which no gradient is known for")
        return [length for length in lengths if length is not None]

    def constant(self, value: ir.Value | None) -> NDArray[Any] | None:
        return self._known.constant(value)

    def numbers(self, node: ir.Node, index: int) -> list[int] | None:
        """An input of whole numbers that no picture may change; None: it is left out. Raises BundleError."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return None
        array = self.constant(value)
        if array is None:
            raise BundleError(f"input {index} of {describe(node)} is no constant: no gradient can be taken through it")
        return [int(number) for number in array.ravel()]

    def part(self, value: ir.Value) -> Part | None:
        """Its gradient, if all that was given for it is one part."""
        given = self._contributions.get(value, [])
        return given[0] if len(given) == 1 and isinstance(given[0], Part) else None

    def rows(self, value: ir.Value, part: Part) -> ir.Value:
        """Of a value of the forward pass what belongs to a part of that axis; that which it has made already, if so."""
        for user, _ in value.uses():
            given = [self.constant(one) for one in user.inputs[1:]]
            numbers = [None if one is None else one.tolist() for one in given]
            if user.op_type == "Slice" and numbers == [[part.start], [part.stop], [part.axis]]:
                return user.outputs[0]
        return self("Slice", value, [part.start], [part.stop], [part.axis])

    def gradient(self, value: ir.Value) -> ir.Value | None:
        """The sum of all that was given for it, (k, *its shape); None: there was nothing."""
        given = self._contributions.get(value)
        if not given:
            return None
        whole = [one for one in given if isinstance(one, ir.Value)]
        whole += self._joined(value, [one for one in given if isinstance(one, Part)])
        total = whole[0]
        for one in whole[1:]:
            total = self("Add", total, one)
        self._contributions[value] = [total]
        return total

    def give(self, value: ir.Value, contribution: Contribution) -> None:
        self._contributions.setdefault(value, []).append(contribution)

    def sum_to(self, gradient: ir.Value, value: ir.Value | None, broadcast: Shape) -> ir.Value:
        """Undoes a broadcast of `value` to that shape: (k, *broadcast) -> (k, *shape of value)."""
        shape = self.shape(value)
        lead = len(broadcast) - len(shape)
        axes = [axis for axis, length in enumerate(broadcast)
                if axis < lead or (shape[axis - lead] == 1 and length != 1)]  # fmt: skip
        if not axes:
            return gradient
        summed = self("ReduceSum", gradient, [axis + 1 for axis in axes], keepdims=0 if axes[-1] < lead else 1)
        return self.as_shape(summed, value) if lead and axes[-1] >= lead else summed

    def as_shape(self, gradient: ir.Value, value: ir.Value | None) -> ir.Value:
        """As many numbers in another shape: (k, …) -> (k, *shape of value)."""
        assert value is not None
        shape = self.shape(value)
        if shape.count(None) < 2:
            return self("Reshape", gradient, [0, *(-1 if length is None else length for length in shape)])
        return self("Reshape", gradient, self("Concat", [0], self("Shape", value), axis=0))

    def expand(self, gradient: ir.Value, shape: Sequence[int | None], value: ir.Value | None) -> ir.Value:
        """Broadcasts (k, *shape) to (k, *shape of value)."""
        wanted = self.shape(value)
        if tuple(shape) == wanted:
            return gradient
        missing = [length is None and shape[axis] is not None for axis, length in enumerate(wanted)]
        if any(missing):
            return self("Expand", gradient, self("Concat", [1], self("Shape", value), axis=0))
        return self("Expand", gradient, [1, *(1 if length is None else length for length in wanted)])

    def fold(self, gradient: ir.Value, value: ir.Value | None) -> ir.Value:
        """(k, B, …) -> (k * B, …), for operators that know one axis of pictures."""
        return self("Reshape", gradient, [-1, *self.lengths(value, 1)])

    def unfold(self, folded: ir.Value, value: ir.Value | None) -> ir.Value:
        """Undoes a fold: any shape of as many numbers -> (k, *shape of value)."""
        assert value is not None
        shape = self.shape(value)
        if shape.count(None) > 1:
            return self("Reshape", folded, self("Concat", self.k, self("Shape", value), axis=0))
        behind = [-1 if length is None else length for length in shape]
        return self("Reshape", folded, self("Concat", self.k, behind, axis=0))

    def pad(self, gradient: ir.Value, axis: int, before: int, after: int, rank: int) -> ir.Value:
        """Zeros around an axis of a value of that rank; negative lengths cut off.

        All axes are said: where Pad names some alone, ONNX Runtime 1.31 moves it wrongly past a Transpose.
        """
        if before < 0 or after < 0:
            end = after if after < 0 else np.iinfo(np.int64).max
            gradient = self("Slice", gradient, [max(-before, 0)], [end], [axis + 1])
        if before <= 0 and after <= 0:
            return gradient
        around = [[0] * (axis + 1) + [max(length, 0)] + [0] * (rank - 1 - axis) for length in (before, after)]
        return self("Pad", gradient, [*around[0], *around[1]])

    def transposed(self, value: ir.Value | None) -> ir.Value:
        """With its last two axes exchanged."""
        rank = self.rank(value)
        return self("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])

    def swapped(self, gradient: ir.Value, value: ir.Value | None) -> ir.Value:
        """A gradient of the value, or one of as many axes, with its last two exchanged."""
        rank = self.rank(value)
        return self("Transpose", gradient, perm=[*range(rank - 1), rank, rank - 1])

    def _transpose(self, value: ir.Value, order: list[int]) -> ir.Value:
        """One Transpose does what two in a row do, or none."""
        node = value.producer()
        if node is not None and node.op_type == "Transpose" and node.inputs[0] is not None:
            turns = node.attributes.get("perm")
            before = range(len(order))[::-1] if turns is None else turns.as_ints()
            value, order = node.inputs[0], [before[axis] for axis in order]
        return value if order == sorted(order) else self._node("Transpose", [self.wide(value)], {"perm": order})

    def _node(self, operator: str, values: list[ir.Value | None], attributes: dict[str, Any]) -> ir.Value:
        key = (operator, *values, *((name, str(value)) for name, value in sorted(attributes.items())))
        if key not in self._made:
            self._made[key] = self._add(operator, *values, **attributes)
        return self._made[key]

    def _value(self, operand: Operand) -> ir.Value | None:
        if operand is None or isinstance(operand, ir.Value):
            return operand
        array = np.asarray(operand)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._made:
            self._made[key] = self._add.constant(array)
        return self._made[key]

    def _joined(self, value: ir.Value, parts: list[Part]) -> list[ir.Value]:
        """Parts of one axis stand side by side where they can: queries, keys and values of one product."""
        joined = []
        for axis in sorted({part.axis for part in parts}):
            ordered = sorted((part for part in parts if part.axis == axis), key=lambda part: part.start)
            (length,) = self.lengths(value, axis, axis + 1)
            ends = [part.start for part in ordered[1:]] + [length]
            if any(part.stop > end for part, end in zip(ordered, ends, strict=True)):
                joined += [self._padded(part, part.start, length - part.stop, value) for part in ordered]
                continue
            padded = [self._padded(part, 0 if index else part.start, end - part.stop, value)
                      for index, (part, end) in enumerate(zip(ordered, ends, strict=True))]  # fmt: skip
            joined.append(padded[0] if len(padded) == 1 else self("Concat", *padded, axis=axis + 1))
        return joined

    def _padded(self, part: Part, before: int, after: int, value: ir.Value) -> ir.Value:
        return self.pad(part.gradient, part.axis, before, after, self.rank(value))

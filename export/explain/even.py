"""A gradient that is the same for every token, as that of their mean is: carried as one token as far as it goes."""

from collections.abc import Callable, Collection

import onnx_ir as ir

from export.explain.gradients.linear import as_stored
from export.explain.known import widened
from export.graph.adder import Adder
from export.graph.places import Places

_ALONE = ("Gelu", "Relu", "HardSwish", "Tanh", "Sigmoid", "Erf", "Elu", "LeakyRelu", "Softplus", "Mul")
"""Rules of these multiply the gradient by something of each token, so that it may come as one."""
_SAME = ("Identity", "Dropout", "Cast", "QuantizeLinear", "DequantizeLinear")


class Even:
    """Carries gradients of one token, (k, batch, …, 1, …), back through what treats each token alike: sums, products
    by weights, scales. Where that ends they are seeds for `differentiate`.
    """

    def __init__(
        self,
        add: Adder,
        places: Places,
        axes: tuple[int, ...],
        on_the_way: Collection[ir.Value],
        others: Collection[ir.Value],
    ) -> None:
        """`axes`: of the tokens. `on_the_way`: values whose gradient is wanted by somebody. `others`: see `widened`."""
        self._add, self._places, self._axes, self._way = add, places, axes, on_the_way
        self._others = others
        self._passed: set[ir.Node] = set()
        self.seeds: dict[ir.Value, ir.Value] = {}

    def carry(self, value: ir.Value, gradient: ir.Value, *, first: bool = True) -> None:
        """`first`: of a value from which on all ways are known to be followed from here, whoever else uses it."""
        node = value.producer()
        if value not in self._way or node is None:
            return
        inputs = self._through(node, gradient) if first or len(self._users(value)) == 1 else None
        if inputs is None:
            seed = gradient if self._may_stay(value) else self._spread(value, gradient)
            self.seeds[value] = self._add("Add", self.seeds[value], seed) if value in self.seeds else seed
            return
        self._passed.add(node)
        for given, carried in inputs.items():
            self.carry(given, carried(), first=False)

    def _through(self, node: ir.Node, gradient: ir.Value) -> dict[ir.Value, Callable[[], ir.Value]] | None:
        """Inputs and their gradients; None: the tokens part here."""
        result, shape = node.outputs[0], self._places.shape_of(node.outputs[0])
        moved = [one for one in node.inputs if one is not None and one in self._places.labels]
        if any(self._places.shape_of(one)[:-1] != shape[:-1] for one in moved) or len(set(moved)) < len(moved):
            return None
        if node.op_type in _SAME or (node.op_type == "Add" and all(self._alike(one, result) for one in moved)):
            return {one: lambda: gradient for one in moved}
        other = node.inputs[1] if len(node.inputs) == 2 and [node.inputs[0]] == moved else None
        constant = self._places.constant(other)
        if other is None or constant is None or len(shape) - 1 in self._axes:
            return None
        if node.op_type == "MatMul" and constant.ndim == 2:
            return {moved[0]: lambda: self._by_weight(gradient, other, constant.shape[0], len(shape))}
        scales = constant.ndim < 2 or constant.size == constant.shape[-1]
        if node.op_type in ("Mul", "Div") and scales and self._alike(moved[0], result):
            return {moved[0]: lambda: self._add(node.op_type, gradient, self._wide(other))}
        return None

    def _by_weight(self, gradient: ir.Value, weight: ir.Value, width: int, rank: int) -> ir.Value:
        """`rank`: of the value, which may have axes of length 1 beside those of tokens and channels."""
        stored, turn = as_stored(weight)
        flat = self._add("Flatten", gradient, axis=rank)
        shape = self._add("Concat", self._add("Shape", gradient, end=rank), [width], axis=0)
        return self._add("Reshape", self._add("Gemm", flat, self._wide(stored), transB=turn), shape)

    def _wide(self, value: ir.Value) -> ir.Value:
        return widened(self._add, value, self._others)

    def _spread(self, value: ir.Value, gradient: ir.Value) -> ir.Value:
        shape = self._places.shape_of(value)
        return self._add("Expand", gradient, [1, *(shape[at] if at in self._axes else 1 for at in range(len(shape)))])

    def _may_stay(self, value: ir.Value) -> bool:
        """Whether it is met by a gradient of all tokens before it is used."""
        node = value.producer()
        assert node is not None
        if any(user not in self._passed for user in self._users(value)):
            return True
        return node.op_type in _ALONE and all(self._alike(one, value) for one in node.inputs)

    def _alike(self, value: ir.Value | None, other: ir.Value) -> bool:
        return value is not None and self._places.shape_of(value) == self._places.shape_of(other)

    def _users(self, value: ir.Value) -> list[ir.Node]:
        return [user for user, _ in value.uses() if self._way_goes(user)]

    def _way_goes(self, node: ir.Node) -> bool:
        return any(value in self._way for value in node.outputs)

"""What a rule is."""

from collections.abc import Callable

import onnx_ir as ir

from export.explain.tape import Contribution, Tape
from export.graph.nodes import describe
from saccade.errors import BundleError

Rule = Callable[[Tape, ir.Node, int, ir.Value], Contribution | list[Contribution]]
"""(tape, node, i, gradient of its first output) -> gradient of its input i, or what is to be summed for it.

A rule is asked only for inputs whose gradient somebody wants. Raises BundleError where it has no answer.
"""


def first(rule: Callable[[Tape, ir.Node, ir.Value], Contribution | list[Contribution]]) -> Rule:
    """A rule of an operator that is differentiated by its first input only."""

    def checked(tape: Tape, node: ir.Node, index: int, gradient: ir.Value) -> Contribution | list[Contribution]:
        if index:
            raise BundleError(
                f"input {index} of {describe(node)} hangs on attention: its gradient is known by input 0 only"
            )
        return rule(tape, node, gradient)

    return checked

"""Convolutions and pools. Batch and k are one axis there, as these operators are of one rank."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.explain.gradients.rule import Rule, first
from export.explain.tape import Tape
from export.graph.nodes import describe, integer, words
from saccade.errors import BundleError


def _list(node: ir.Node, name: str, default: list[int]) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else default


class _Window:
    """Kernel, strides, dilations and pads of a node, and the lengths of the axes that it slides over."""

    def __init__(self, tape: Tape, node: ir.Node, kernel: list[int]) -> None:
        rank = len(kernel)
        self.kernel = kernel
        self.strides, self.dilations = (_list(node, name, [1] * rank) for name in ("strides", "dilations"))
        self.before, self.after = tape.lengths(node.inputs[0], 2), tape.lengths(node.outputs[0], 2)
        self.spans = [(size - 1) * step + 1 for size, step in zip(kernel, self.dilations, strict=True)]
        given = _list(node, "pads", [0] * (2 * rank))
        self.begin, self.end = given[:rank], given[rank:]
        auto = words(node, "auto_pad", "NOTSET")
        if auto.startswith("SAME"):
            for axis in range(rank):
                total = max(self.reach(axis) - self.before[axis], 0)
                small, large = total // 2, total - total // 2
                upper = auto == "SAME_UPPER"
                self.begin[axis], self.end[axis] = (small, large) if upper else (large, small)
        elif auto == "VALID":
            self.begin, self.end = [0] * rank, [0] * rank

    def reach(self, axis: int) -> int:
        """How many places the windows see, with what is padded."""
        return (self.after[axis] - 1) * self.strides[axis] + self.spans[axis]

    def turned(self) -> dict[str, list[int]]:
        """Attributes of the ConvTranspose that takes (…, after) back to (…, before).

        What no window reached gets zeros; what windows of a rounded-up pool saw beyond the end is cut off.
        """
        ends = [self.reach(axis) - self.begin[axis] - length for axis, length in enumerate(self.before)]
        return {
            "kernel_shape": self.kernel,
            "strides": self.strides,
            "dilations": self.dilations,
            "pads": [*self.begin, *(max(end, 0) for end in ends)],
            "output_padding": [max(-end, 0) for end in ends],
        }


def _conv(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """A transposed convolution with the same weight."""
    data, weight, *_ = node.inputs
    window = _Window(tape, node, tape.lengths(weight, 2))
    folded = tape.fold(gradient, node.outputs[0])
    turned = tape("ConvTranspose", folded, weight, group=integer(node, "group", 1), **window.turned())
    return tape.unfold(turned, data)


def _conv_transpose(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """A convolution with the same weight; no window of it reaches what `output_padding` adds at the end."""
    if words(node, "auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attributes:
        raise BundleError(f"{describe(node)} pads by itself (auto_pad, output_shape): no gradient is known")
    data, weight, *_ = node.inputs
    kernel = tape.lengths(weight, 2)
    rank, before, after = len(kernel), tape.lengths(data, 2), tape.lengths(node.outputs[0], 2)
    strides, dilations = (_list(node, name, [1] * rank) for name in ("strides", "dilations"))
    begin = _list(node, "pads", [0] * (2 * rank))[:rank]
    spans = [(length - 1) * stride + (size - 1) * step + 1
             for length, stride, size, step in zip(before, strides, kernel, dilations, strict=True)]  # fmt: skip
    end = [max(span - cut - length, 0) for span, cut, length in zip(spans, begin, after, strict=True)]
    turned = tape(
        "Conv", tape.fold(gradient, node.outputs[0]), weight, group=integer(node, "group", 1), kernel_shape=kernel,
        strides=strides, dilations=dilations, pads=[*begin, *end],
    )  # fmt: skip
    return tape.unfold(turned, data)


def _average_pool(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Each place gets its share of each window that saw it: channel by channel a transposed convolution with ones."""
    window = _Window(tape, node, _list(node, "kernel_shape", []))
    shared = tape("Mul", gradient, 1 / _counts(node, window))
    folded = tape("Reshape", shared, [-1, 1, *window.after])
    turned = tape("ConvTranspose", folded, np.ones((1, 1, *window.kernel), np.float32), **window.turned())
    return tape.unfold(turned, node.inputs[0])


def _counts(node: ir.Node, window: _Window) -> NDArray[np.float64]:
    """How many places each window is a mean of."""
    padded = integer(node, "count_include_pad", 0)
    counts: list[Sequence[int]] = []
    for axis, length in enumerate(window.before):
        lowest, last = (-window.begin[axis], length + window.end[axis]) if padded else (0, length)
        starts = [at * window.strides[axis] - window.begin[axis] for at in range(window.after[axis])]
        places = [range(start, start + window.spans[axis], window.dilations[axis]) for start in starts]
        counts.append([sum(lowest <= place < last for place in one) for one in places])
    return np.array([math.prod(one) for one in itertools.product(*counts)], np.float64).reshape(window.after)


def _max_pool(tape: Tape, node: ir.Node, gradient: ir.Value) -> ir.Value:
    """Added where the forward pass found each maximum, which it says as a place in the whole of its input."""
    data = node.inputs[0]
    if integer(node, "storage_order", 0):
        raise BundleError(f"{describe(node)} counts column by column: no gradient is known")
    places = tape.further(node.outputs[0], 1)
    size = math.prod(tape.lengths(data, 2))
    flat = tape("Reshape", gradient, [0, 0, 0, -1])
    within = tape("Mod", tape("Reshape", places, [0, 0, -1]), size)
    spread = tape("Expand", within, tape("Shape", flat))
    ahead = tape("Shape", gradient, start=0, end=3)
    zeros = tape("Expand", 0.0, tape("Concat", ahead, [size], axis=0))
    added = tape("ScatterElements", zeros, spread, flat, axis=3, reduction="add")
    return tape.unfold(added, data)


RULES: dict[str, Rule] = {
    "Conv": first(_conv),
    "ConvTranspose": first(_conv_transpose),
    "AveragePool": first(_average_pool),
    "MaxPool": first(_max_pool),
}

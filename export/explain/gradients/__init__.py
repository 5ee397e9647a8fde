"""The table of gradients, one rule an operator of ONNX's standard domain, opset 20."""

from export.explain.gradients import (
    convolution,
    elementwise,
    linear,
    normalize,
    quantize,
    reduce,
    resize,
    scatter,
    shape,
)
from export.explain.gradients.rule import Rule

RULES: dict[str, Rule] = {
    **elementwise.RULES, **linear.RULES, **shape.RULES, **reduce.RULES, **normalize.RULES, **convolution.RULES,
    **resize.RULES, **scatter.RULES, **quantize.RULES,
}  # fmt: skip

NO_GRADIENT = frozenset((
    "Shape", "Size", "IsNaN", "IsInf", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not",
    "Xor", "ArgMax", "ArgMin", "NonZero", "ConstantOfShape", "EyeLike", "Range", "OneHot", "Sign", "Floor", "Ceil",
    "Round",
))  # fmt: skip
"""Operators whose results are whole numbers or truths, or do not change with what little their inputs change."""

PLACES_TOO = frozenset(("MaxPool", "TopK"))
"""Operators whose second output says where the numbers of the first come from, as whole numbers."""

BY_CONSTANTS = frozenset((
    "CumSum", "Dropout", "Gather", "Pad", "Pow", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceSum", "ReduceSumSquare", "Resize", "Slice", "Tile",
))  # fmt: skip
"""Operators whose rules read the numbers of their inputs from the second on: axes, places, lengths, exponents."""

"""That a graph runs where it was asked to: on the GPU, and not on the CPU unseen.

What no kernel of the device takes ONNX Runtime runs on the CPU, without a word, and what comes and goes between them
takes longer than either. But shapes belong there: they are numbers on the CPU that a device's kernels are launched
with, and ONNX Runtime works them out there by choice. Its own switch, session.disable_cpu_ep_fallback, knows no such
difference, and refuses every graph that asks for the length of its batch.
"""

from collections import Counter

import onnxruntime

CPU = "CPUExecutionProvider"
RECORD = {"session.record_ep_graph_assignment_info": "1"}
"""What a session is opened with whose `strayed` will be asked for."""

# fmt: off
_SMALL = frozenset([
    "Abs", "Add", "And", "Cast", "Ceil", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Div", "Equal",
    "Expand", "Floor", "Gather", "GatherElements", "Greater", "GreaterOrEqual", "Identity", "If", "Less",
    "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range", "Reciprocal", "ReduceMax",
    "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "ScatterElements", "Shape", "Sign", "Size", "Slice", "Split",
    "Sqrt", "Squeeze", "Sub", "Tile", "Unsqueeze", "Where", "Xor",
])
# fmt: on
"""Operators by which shapes, indices and what is made of them (the root of a head's width) are worked out. ONNX Runtime
1.31's CUDA has a kernel of each for float32 at opset 20, and so leaves no more to the CPU of them than that; older ones
lack some. The biases of an int8 graph are small too, and CUDA has no DequantizeLinear of int32. What stands in the
branches of an If counts for itself."""


def strayed(session: onnxruntime.InferenceSession) -> list[str]:
    """What runs on the CPU and is no matter of shapes: operators, the most frequent first; branches count as well."""
    seen = Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == CPU
        for node in part.get_nodes()
        if node.op_type not in _SMALL
    )
    return [name for name, _ in seen.most_common()]

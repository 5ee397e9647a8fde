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
    "Add", "And", "Cast", "Ceil", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Div", "Equal",
    "Expand", "Floor", "Gather", "GatherElements", "Greater", "Identity", "If", "Less", "Max", "Min", "Mod", "Mul",
    "Neg", "Not", "Or", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "ScatterElements",
    "Shape", "Size", "Slice", "Split", "Squeeze", "Sub", "Tile", "Unsqueeze", "Where",
])
# fmt: on
"""Operators by which shapes and indices are worked out. CUDA has a kernel of each for float32 and float16, so what is
left to the CPU of them is of integers; so are the biases of an int8 graph, of which CUDA has no DequantizeLinear. What
stands in the branches of an If counts for itself."""


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

"""A pool over all that there is, written as one over a window: as EfficientNet's, whose window is larger than its map.

ONNX's own evaluator takes such a window for empty; and as a mean it can be read like any other.
"""

import onnx_ir as ir

from export.graph.adder import Adder
from export.graph.nodes import replace
from export.graph.places import Places

_WHOLE = {"AveragePool": "GlobalAveragePool", "MaxPool": "GlobalMaxPool"}


def plain_pools(model: ir.Model, places: Places) -> None:
    """Writes them as global ones, in place. `places` has followed the model, and follows what is new."""
    add = Adder(model)
    for node in list(model.graph):
        if node.op_type not in _WHOLE or len(node.outputs) > 1 or not _sees_all(node, places):
            continue
        add.before, pooled = node, node.inputs[0]
        assert pooled is not None
        result = add(_WHOLE[node.op_type], pooled)
        places.follow(add.made[-1])
        replace(model, node, [result])


def _sees_all(node: ir.Node, places: Places) -> bool:
    """One window, as large as the map or larger, and nothing around it that would be counted."""
    given = None if node.inputs[0] is None else places.shape(node.inputs[0])
    result = places.shape(node.outputs[0])
    if given is None or result is None or set(result[2:]) != {1}:
        return False
    kernel = node.attributes["kernel_shape"].as_ints()
    pads = node.attributes["pads"].as_ints() if "pads" in node.attributes else [0]
    return not any(pads) and all(size >= length for size, length in zip(kernel, given[2:], strict=True))

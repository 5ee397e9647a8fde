"""Any opset from 7 on -> opset 20, which every provider runs."""

import onnx
import onnx_ir as ir

from export.graph.evaluate import OPSET
from export.graph.nodes import describe
from saccade.errors import DataError

_OLDEST = 7
_SAME_SINCE = 18
"""From here to 20 operators got types, not meanings, but for those below (GroupNormalization is taken apart)."""
_CHANGED = frozenset(("GridSample", "DFT"))
_NEW_ATTRIBUTES = frozenset(("block_size", "output_dtype", "precision", "saturate", "round_mode"))


def convert_opset(model: ir.Model) -> ir.Model:
    """The model in opset 20. Operators that came later are left for `decompose`. Raises DataError where that fails."""
    opset = check_opset(model)
    if opset < _SAME_SINCE:
        model = _converted(model, opset)
        opset = model.opset_imports[""]
    if opset != OPSET:
        for node in model.graph:
            if node.domain == "":
                _check_same(node, opset)
    model.opset_imports[""] = OPSET
    return model


def opset_of(model: ir.Model) -> int:
    """Of the standard operators; 0: none is said."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))


def check_opset(model: ir.Model) -> int:
    """The graph's opset. Raises DataError where it is too old to be converted."""
    opset = opset_of(model)
    if opset < _OLDEST:
        raise DataError(f"the graph has opset {opset}; the oldest that can be read is {_OLDEST}: export it anew")
    return opset


def _converted(model: ir.Model, opset: int) -> ir.Model:
    try:
        ir.external_data.load_to_model(model)
        proto = onnx.version_converter.convert_version(ir.to_proto(model), _SAME_SINCE)
        return ir.from_proto(proto)
    except Exception as error:  # of the converter; its exceptions share no base class
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"opset {opset} could not be converted to {OPSET}, export it with 18: {line[:300]}") from error


def _check_same(node: ir.Node, opset: int) -> None:
    """Whether the node means the same in opset 20, or does not exist there."""
    try:
        changed = onnx.defs.get_schema(node.op_type, OPSET).since_version != (
            onnx.defs.get_schema(node.op_type, min(opset, onnx.defs.onnx_opset_version())).since_version
        )
    except onnx.defs.SchemaError:
        return
    added = _NEW_ATTRIBUTES & node.attributes.keys() if opset > OPSET else set()
    if changed and (node.op_type in _CHANGED or added):
        raise DataError(f"{describe(node)} of opset {opset} means something else in {OPSET}: export it with {OPSET}")

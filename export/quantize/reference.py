"""What a variant is held to by itself: its own graph by another engine."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from export.names import INPUT, LOGITS
from export.quantize.tolerance import movements
from export.reference import Limits, Outputs
from saccade.bundle import Bundle
from saccade.errors import DataError


class VariantOf:
    """The variant's graph by onnx's own evaluator, which shares no code with ONNX Runtime; float16 in float32."""

    pictures = 16

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, manifest = bundle, bundle.manifest
        widened = " in float32" if manifest.precision == "float16" else ""
        self.said = f"the variant's own graph by onnx's evaluator{widened}"
        self._evaluator = ReferenceEvaluator(_widened(onnx.load(str(bundle.graph))))

    def arrays(self, pixels: NDArray[np.float32]) -> Outputs:
        names = list(self._bundle.manifest.outputs)
        rows: list[Any] = [self._evaluator.run(names, {INPUT: pixels[at : at + 1]}) for at in range(len(pixels))]
        return {name: np.concatenate([row[at] for row in rows]) for at, name in enumerate(names)}

    def limits(self, pixels: NDArray[np.float32]) -> Limits:
        """What these pictures' answers move by, and never less than usual."""
        usual, found, manifest = Limits(), movements(self._bundle, pixels), self._bundle.manifest
        layers = {layer.output: max(usual.attention, found[layer.output].limit) for layer in manifest.attention}
        pooling = found[manifest.maps.pooling].limit if manifest.maps.pooling else 0.0
        return usual._replace(
            logits=max(usual.logits, found[LOGITS].limit), pooling=max(usual.pooling, pooling), layers=layers
        )


def check_options(bundle: Bundle, **given: object) -> None:
    """Raises DataError where a variant is to be held to the source of its parent."""
    parent = bundle.manifest.parent
    assert parent is not None
    for option, value in given.items():
        if value is not None:
            raise DataError(
                f"--{option.replace('_', '-')} says nothing of {bundle.manifest.id}, a variant of {parent.id}: hold "
                f"{parent.id} to it"
            )


def _widened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers, half precision read as float32: numpy multiplies float16 a number at a time."""
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for tensor in proto.graph.initializer:
        if tensor.data_type == half:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
            )
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                attribute.i = full
    return proto

"""relevance.onnx in float64, by onnx's own evaluator: what its maps are held to."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.explain.float64 import Float64
from export.explain.gate import open_gates
from export.explain.relevance import CLASS_INDEX
from export.names import INPUT
from saccade.golden import Arrays, Explain
from saccade.manifest import Manifest


def exactly(graph: Path, manifest: Manifest) -> Explain:
    """A function: pixels (n, 3, H, W) and class_index (n, k) -> the manifest's maps of the gradient, (n, k, patches).

    It raises BundleError where the evaluator does not know a node.
    """
    model = ir.load(graph)
    open_gates(model)
    inputs = {value.name: value for value in model.graph.inputs}
    outputs = {value.name: value for value in model.graph.outputs}
    names = () if manifest.maps.gradients is None else manifest.maps.gradients.names
    float64 = Float64(model)

    def explain(pixels: NDArray[np.float32], classes: NDArray[np.int64]) -> Arrays:
        given = {inputs[INPUT]: pixels.astype(np.float64), inputs[CLASS_INDEX]: classes}
        found = float64.run(given, [outputs[name] for name in names])
        return {name: found[outputs[name]].astype(np.float32) for name in names}

    return explain

"""relevance.onnx: all that model.onnx gives, and maps of the gradient of any class, on the same weights."""

from pathlib import Path

import onnx_ir as ir

from export.explain.check import check_gradients
from export.explain.gate import gate_maps
from export.explain.relevance import add_relevance
from saccade.bundle import RELEVANCE, Bundle
from saccade.errors import BundleError
from saccade.manifest import Maps


def write_relevance(bundle: Bundle, folder: Path) -> Maps:
    """Writes relevance.onnx, whose weights are those of weights.safetensors beside it, into `folder`; gives the
    manifest's `maps` with it.

    Its gradients are held to finite differences in float64 first (see `check_gradients`). Raises BundleError where the
    model can have no such map, or a gradient is wrong; then nothing is written.
    """
    model = ir.load(bundle.graph)
    explained = add_relevance(model, bundle.manifest)
    try:
        check_gradients(model, explained.derivatives)
        gate_maps(model)
        ir.save(model, folder / RELEVANCE)
    except BundleError as error:
        raise BundleError(f"{bundle.manifest.id}: {error}") from error
    return bundle.manifest.maps.model_copy(update={"gradients": explained.maps, "why_not": explained.why_not})

"""relevance.onnx: all that model.onnx gives, and maps of the gradient of any class, on the same weights."""

from pathlib import Path

import onnx_ir as ir

from export.explain.check import check_gradients
from export.explain.gate import gate_maps
from export.explain.relevance import Classifier, add_relevance, possible
from saccade.bundle import RELEVANCE, Bundle
from saccade.errors import BundleError
from saccade.manifest import Maps


def explained(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle with relevance.onnx, written into `folder`; or as it is, and why, where there can be none."""
    try:
        maps = write_relevance(bundle, folder)
    except BundleError as error:
        return unexplained(bundle, str(error).removeprefix(f"{bundle.manifest.id}: "))
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"maps": maps}))


def unexplained(bundle: Bundle, reason: str) -> Bundle:
    """The bundle without maps of the gradient; `reason` is that of those which such a model could have."""
    names, why_not = possible(ir.load(bundle.graph), bundle.manifest.attention, bundle.manifest.pooling)
    maps = {"gradients": None, "why_not": {**dict.fromkeys(names, reason), **why_not}}
    return Bundle(
        bundle.folder, bundle.manifest.model_copy(update={"maps": bundle.manifest.maps.model_copy(update=maps)})
    )


def write_relevance(bundle: Bundle, folder: Path) -> Maps:
    """Writes relevance.onnx, whose weights are those of weights.safetensors beside it, into `folder`; gives the
    manifest's `maps` with it.

    Its gradients are held to finite differences in float64 first (see `check_gradients`). Raises BundleError where the
    model can have no such map, or a gradient is wrong; then nothing is written.
    """
    content, maps = _made(bundle)
    (folder / RELEVANCE).write_bytes(content)
    return maps


def check_made(bundle: Bundle) -> None:
    """Makes relevance.onnx again of model.onnx, gradients checked: the same version makes the same bytes each time.
    Raises BundleError where the file is another.
    """
    content, maps = _made(bundle)
    if content != bundle.relevance.read_bytes() or maps != bundle.manifest.maps:
        raise BundleError(
            f"{bundle.relevance} is not what is made of {bundle.graph.name}: it was changed, or made by another "
            f"version (saccade relevance {bundle.folder} makes it anew)"
        )


def _made(bundle: Bundle) -> tuple[bytes, Maps]:
    """(what relevance.onnx holds, the manifest's `maps`)."""
    model = ir.load(bundle.graph)
    explained = add_relevance(model, Classifier.of(model, bundle.manifest))
    try:
        check_gradients(model, explained.derivatives)
    except BundleError as error:
        raise BundleError(f"{bundle.manifest.id}: {error}") from error
    gate_maps(model)
    content: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return content, bundle.manifest.maps.model_copy(update={"gradients": explained.maps, "why_not": explained.why_not})

"""Which maps a model has, and in words why it lacks the others: what `saccade export` and the service say of them."""

from collections.abc import Sequence
from typing import get_args

from saccade.manifest import GradientMapName, Manifest, MapName


def why_not(manifest: Manifest, name: MapName) -> str:
    """Of a map that the model does not have."""
    if name in manifest.maps.why_not:
        return manifest.maps.why_not[name]
    if name in get_args(GradientMapName):
        return f"it was made without relevance.onnx (`saccade relevance {manifest.name}` adds it)"
    if name == "class":
        return "its logits are no sum over patches"
    return _of_attention(manifest, name)


def _of_attention(manifest: Manifest, name: MapName) -> str:
    if not manifest.attention:
        return "it has no attention layers"
    if name == "pooling":
        return "its pooling is not learned"
    if any(layer.windows for layer in manifest.attention):
        return "its attention layers see parts of the picture, windows"
    if manifest.pooling is None:
        return "how it pools its tokens is not known"
    return "its attention layers do not share one grid"


def map_lines(manifest: Manifest) -> list[str]:
    """A line for each map that a model may have."""
    names: tuple[MapName, ...] = get_args(MapName)
    width = max(map(len, names))
    return [f"{name:{width}}  {_said(manifest, name)}" for name in names]


def _said(manifest: Manifest, name: MapName) -> str:
    if name not in manifest.maps.available:
        return f"no: {why_not(manifest, name)}"
    gradients = manifest.maps.gradients
    if gradients is None or name not in gradients.names:
        return "yes"
    rows, columns = gradients.grid
    whole = len(gradients.layers) in (0, len(manifest.attention))
    return f"yes, {rows} x {columns}" if whole else f"yes, {rows} x {columns}, of {', '.join(gradients.layers)}"


def report(manifest: Manifest, found: Sequence[str] = ()) -> None:
    """Prints what was measured of a bundle, what was `found` in its source, and its maps."""
    assert manifest.parity is not None
    width = max(map(len, manifest.parity.checks))
    print(f"{manifest.id}: {manifest.parity.source}, batches of {', '.join(map(str, manifest.parity.batches))}")
    for name, check in manifest.parity.checks.items():
        print(f"  {name:{width}}  {check.largest:.2e}  (allowed {check.allowed:.0e})")
    print("\n".join([*found, "maps:", *(f"  {line}" for line in map_lines(manifest))]))

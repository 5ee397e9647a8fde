"""What relevance.onnx gives is held to the same graph in float64, whose gradients finite differences have borne out."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.explain.exact import exactly
from export.names import LOGITS
from export.quantize.tolerance import map_movements
from export.reference import Limits
from export.runtime import open_graph, open_relevance
from saccade.bundle import Bundle
from saccade.errors import BundleError
from saccade.golden import PICTURES, SEED, Arrays, Explain, golden_classes, made_pictures
from saccade.manifest import Manifest, Measured
from saccade.preprocess import normalize

SHARE = 1e-4
"""Of a map's maximum, that rounding may change."""
WIDEST = 1e-2
"""Where float32 is rougher than usual, as it is for the logits then, or a variant's codes fall to another side."""
_FAINT = 1e-2
"""A map with less than this share of the strongest one's maximum is held to that instead: what it shows is nothing."""
_ELSEWHERE = {"CPUExecutionProvider": 10, "CUDAExecutionProvider": 100}
"""How many times as far another machine, or another provider, may be; a bound, not a measurement."""


class MapsError(BundleError):
    """The maps of relevance.onnx do not hold; the rest of the bundle may."""


class MapsProof(NamedTuple):
    checks: dict[str, Measured]
    tolerance: dict[str, dict[str, float]]
    """Execution provider -> map -> largest absolute difference, as in the manifest."""
    explain: Explain
    """What golden.npz shall hold, of as many golden pictures or fewer."""


def prove_maps(bundle: Bundle, parity: Mapping[str, Measured]) -> MapsProof:
    """On the pictures of golden.npz, alone and together. `parity` says what logits and attention were allowed: where
    float32 is rougher than usual for them, so it is for their gradients. Raises MapsError where one does not hold, or
    would have to be allowed more than WIDEST of its maximum.
    """
    manifest = bundle.manifest
    assert manifest.maps.gradients is not None
    spec = manifest.preprocessing
    pixels = normalize(made_pictures(PICTURES, spec.height, spec.width, SEED), spec)
    classes = golden_classes(manifest, PICTURES)
    seen, exact = (
        open_relevance(bundle.relevance)(pixels, classes),
        exactly(bundle.relevance, manifest)(pixels, classes),
    )
    alone = _alone(bundle, pixels, classes)
    usual, variant = Limits(), manifest.parent is not None
    wider = [parity[name].allowed / getattr(usual, name) for name in (LOGITS, "attention") if name in parity]
    moved = map_movements(bundle, pixels, classes) if variant else {}
    rough = 1.0 if variant else max(1.0, *wider)
    checks, scales = {}, {}
    for name in manifest.maps.gradients.names:
        scales[name] = float(np.abs(exact[name]).max())
        allowed = max(SHARE * rough, 2 * _share(moved[name], exact[name]) if name in moved else 0.0)
        if not allowed <= WIDEST:
            raise MapsError(
                f"{manifest.precision} rounds the map {name} of {manifest.id} so roughly that {allowed:.3g} of its "
                f"maximum would be allowed; it may be {WIDEST:g} at most"
            )
        checks[f"{name}, of its maximum"] = Measured(
            largest=_share(seen[name] - exact[name], exact[name]), allowed=allowed
        )
        checks[f"alone = in a batch, {name}, of its maximum"] = Measured(
            largest=_share(seen[name] - alone[name], exact[name]), allowed=allowed
        )
    plain = open_graph(bundle.graph, only=manifest.outputs)(pixels)
    away = float(np.abs(plain[LOGITS] - seen[LOGITS]).max())
    checks["logits of relevance.onnx"] = Measured(largest=away, allowed=parity[LOGITS].allowed)
    check_held(manifest, checks, MapsError)
    return MapsProof(
        checks,
        {provider: {name: times * checks[f"{name}, of its maximum"].allowed * scale for name, scale in scales.items()}
         for provider, times in _ELSEWHERE.items()},
        lambda golden, _: {name: values[: len(golden)] for name, values in exact.items()},
    )  # fmt: skip


def check_held(manifest: Manifest, checks: Mapping[str, Measured], error: type[BundleError] = BundleError) -> None:
    """Raises `error` with all that is beyond what is allowed."""
    broken = [f"{name} {check.largest:.3g} (allowed {check.allowed:.3g})" for name, check in checks.items()
              if not check.largest <= check.allowed]  # fmt: skip
    if broken:
        raise error(f"{manifest.id} does not hold: {', '.join(broken)}")


def _alone(bundle: Bundle, pixels: NDArray[np.float32], classes: NDArray[np.int64]) -> Arrays:
    explain = open_relevance(bundle.relevance)
    rows = [explain(pixels[at : at + 1], classes[at : at + 1]) for at in range(len(pixels))]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _share(difference: NDArray[np.float32], maps: NDArray[np.float32]) -> float:
    """(n, k, patches) each: the largest difference as a share of its map's maximum."""
    size = np.abs(maps).max(2)
    size = np.maximum(size, _FAINT * size.max())
    worst = float((np.abs(difference).max(2) / np.maximum(size, np.finfo(np.float32).tiny)).max())
    return worst if np.isfinite(worst) else float(np.finfo(np.float64).max)

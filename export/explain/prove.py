"""What relevance.onnx gives is held to the same graph in float64, whose gradients finite differences have borne out."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.explain.exact import exactly
from export.names import LOGITS
from export.quantize.tolerance import SHARE as WIDEST_OF_VARIANTS
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
"""Where float32 is rougher than usual, as it is for the logits then."""
_FAINT = 1e-2
"""A map with less than this share of the strongest one's maximum is held to that instead: what it shows is nothing.
Those of a variant are all held to the strongest, as its other outputs are to the span of their numbers."""
_ELSEWHERE = {"CPUExecutionProvider": 10, "CUDAExecutionProvider": 100}
"""How many times as far another machine, or another provider, may be, beside codes; a bound, not a measurement."""


_MOST = 0.25
"""Of the strongest map's maximum, in any case: with more, wrong maps would pass."""


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
    float32 is rougher than usual for them, so it is for their gradients. Of a variant twice what its constants' last
    digits move is allowed. Raises MapsError where a map does not hold, or would have to be allowed too much.
    """
    manifest = bundle.manifest
    assert manifest.maps.gradients is not None
    names: tuple[str, ...] = manifest.maps.gradients.names
    spec, variant = manifest.preprocessing, manifest.parent is not None
    pixels = normalize(made_pictures(PICTURES, spec.height, spec.width, SEED), spec)
    logits = open_graph(bundle.graph, only=manifest.outputs)(pixels)[LOGITS]
    classes = golden_classes(manifest, logits)
    exactly_so = exactly(bundle.relevance, manifest)
    seen, exact = open_relevance(bundle.relevance)(pixels, classes), exactly_so(pixels, classes)
    alone = _alone(bundle, pixels, classes)
    usual = Limits()
    wider = [parity[name].allowed / getattr(usual, name) for name in (LOGITS, "attention") if name in parity]
    rounding, widest, faint = SHARE * max(1.0, *wider), WIDEST, _FAINT
    codes = dict.fromkeys(names, 0.0)
    if variant:
        rounding, widest, faint = SHARE, WIDEST_OF_VARIANTS, 1.0
        moved = map_movements(bundle, pixels, classes)
        codes = {name: 2 * _share(moved[name], exact[name], faint) for name in names}
    checks = {}
    for name in names:
        allowed = max(rounding, codes[name])
        if not allowed <= widest:
            raise MapsError(
                f"{manifest.precision} rounds the map {name} of {manifest.id} so roughly that {allowed:.3g} of its "
                f"maximum would be allowed; it may be {widest:g} at most"
            )
        for of, other in ((name, exact), (f"alone = in a batch, {name}", alone)):
            largest = _share(seen[name] - other[name], exact[name], faint)
            checks[f"{of}, of its maximum"] = Measured(largest=largest, allowed=allowed)
    away = float(np.abs(logits - seen[LOGITS]).max())
    checks["logits of relevance.onnx"] = Measured(largest=away, allowed=parity[LOGITS].allowed)
    check_held(manifest, checks, MapsError)

    def explain(golden: NDArray[np.float32], asked: NDArray[np.int64]) -> Arrays:
        known = np.array_equal(asked, classes[: len(golden)])
        return {name: exact[name][: len(golden)] for name in names} if known else exactly_so(golden, asked)

    scales = {name: float(np.abs(exact[name]).max()) for name in names}
    tolerance = {
        provider: {name: min(times * rounding + codes[name], _MOST) * scales[name] for name in names}
        for provider, times in _ELSEWHERE.items()
    }
    return MapsProof(checks, tolerance, explain)


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


def _share(difference: NDArray[np.float32], maps: NDArray[np.float32], faint: float) -> float:
    """(n, k, patches) each: the largest difference as a share of its map's maximum, or of `faint` times that of the
    strongest map, where that is more.
    """
    size = np.abs(maps).max(2)
    size = np.maximum(size, faint * size.max())
    worst = float((np.abs(difference).max(2) / np.maximum(size, np.finfo(np.float32).tiny)).max())
    return worst if np.isfinite(worst) else float(np.finfo(np.float64).max)

"""Parity: the bundle's graph through ONNX Runtime against the net rebuilt, from the bundle alone, in eager PyTorch."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from export.convert import Exported, versions
from export.data import open_source
from export.examples import Example, load
from export.nets import Net, build
from export.recipe import recipe_of
from export.runtime import PROVIDER, Answer, open_graph
from saccade.bundle import GOLDEN, Bundle, update_bundle
from saccade.errors import BundleError
from saccade.golden import golden_file, made_pictures
from saccade.manifest import Manifest, Measured, Parity
from saccade.pooling import pooled_row
from saccade.preprocess import normalize

PICTURES = 256
BATCHES = (1, 2, 7, 16)
MADE_SEED = 11

Outputs = dict[str, NDArray[np.float32]]
Check = Callable[[str, NDArray[np.floating[Any]], float], None]


def verify(bundle: Bundle, data: Path | None) -> Bundle:
    """Holds every promise of the bundle and writes what was measured, and golden.npz, into it.

    Compares on 256 pictures, made ones or training pictures of `data`. Raises BundleError naming what does not hold.
    """
    parity, golden = prove(bundle, data)
    return update_bundle(bundle, {"parity": parity.model_dump()}, {GOLDEN: golden})


def prove(bundle: Bundle, data: Path | None) -> tuple[Parity, bytes]:
    """(what was measured, content of golden.npz); nothing is written. Raises BundleError if a promise is broken."""
    exported = Exported(rebuild(bundle)).eval()
    parity = measure(bundle, exported, data)
    broken = [f"{name} {check.largest:.3g} (allowed {check.allowed:.3g})" for name, check in parity.checks.items()
              if not check.largest <= check.allowed]  # fmt: skip
    if broken:
        raise BundleError(f"{bundle.manifest.id} does not hold: {', '.join(broken)}")
    return parity, golden_file(bundle.manifest, exported.arrays)


def rebuild(bundle: Bundle) -> Net:
    """The net from the manifest's recipe and weights.safetensors, in evaluation mode."""
    manifest = bundle.manifest
    recipe = recipe_of(manifest)
    try:
        net = build(recipe.net, recipe.size, len(manifest.labels))
        net.load_state_dict(load_file(bundle.weights))
    except (ValueError, RuntimeError) as error:
        raise BundleError(f"{manifest.id}: the net cannot be rebuilt from the bundle: {error}") from error
    return net.eval()


def measure(bundle: Bundle, exported: Exported, data: Path | None) -> Parity:
    """The largest difference of each kind over all pictures and batch sizes."""
    manifest = bundle.manifest
    pixels, origin = _pixels(manifest, data)
    answer = open_graph(bundle.graph)
    alone = _run(answer, pixels, 1)
    if tuple(alone) != manifest.outputs:
        promised = ", ".join(manifest.outputs)
        raise BundleError(f"{manifest.id}: the graph has the outputs {', '.join(alone)}; the manifest says {promised}")
    largest: dict[str, float] = {}
    allowed: dict[str, float] = {}

    def check(name: str, difference: NDArray[np.floating[Any]], limit: float) -> None:
        worst = float(np.max(np.abs(difference), initial=0.0))
        largest[name] = max(largest.get(name, 0.0), worst if np.isfinite(worst) else float(np.finfo(np.float64).max))
        allowed[name] = limit

    for size in BATCHES:
        seen = alone if size == 1 else _run(answer, pixels, size)
        expected = _run(exported.arrays, pixels, size)
        check("logits", seen["logits"] - expected["logits"], 1e-4)
        check("alone = in a batch, scores", _softmax(seen["logits"]) - _softmax(alone["logits"]), 1e-5)
        for layer in manifest.attention:
            check("attention", seen[layer.output] - expected[layer.output], 1e-5)
            check("attention rows sum to 1", seen[layer.output].sum(-1, dtype=np.float64) - 1, 1e-5)
            check("alone = in a batch, attention", seen[layer.output] - alone[layer.output], 1e-5)
        _check_maps(manifest, seen, expected, exported.net, check)
    checks = {name: Measured(largest=largest[name], allowed=allowed[name]) for name in largest}
    return Parity(
        pictures=len(pixels), source=origin, batches=BATCHES, provider=PROVIDER, checks=checks, versions=versions()
    )


def _check_maps(manifest: Manifest, seen: Outputs, expected: Outputs, net: Net, check: Check) -> None:
    """Each map against its formula, evaluated in float64 on the eager net's outputs."""
    maps = manifest.maps
    if maps.pooling:
        check("pooling", seen[maps.pooling] - expected[maps.pooling], 1e-5)
        check("pooling sums to 1", seen[maps.pooling].sum(-1, dtype=np.float64) - 1, 1e-5)
    if maps.rollout:
        check("rollout", seen[maps.rollout] - _rollout_by_matrices(manifest, expected), 1e-5)
    if maps.class_map:
        weight = net.head.weight.detach().numpy().astype(np.float64)  # (classes, width)
        bias = net.head.bias.detach().numpy().astype(np.float64)
        summed = seen[maps.class_map.tokens].sum(1, dtype=np.float64) @ weight.T + bias
        check("class map sums to the logit", summed - seen["logits"], 1e-4)


def _rollout_by_matrices(manifest: Manifest, outputs: Outputs) -> NDArray[np.float64]:
    """Rollout as published: the pooling row times the product of (mean over heads + identity) / 2, in float64."""
    product: NDArray[np.float64] | None = None
    for layer in manifest.attention:
        mixed = (outputs[layer.output].astype(np.float64).mean(1) + np.eye(layer.tokens)) / 2
        product = mixed if product is None else mixed @ product
    assert product is not None
    assert manifest.pooling is not None
    if manifest.pooling.kind == "learned":
        row = outputs[manifest.maps.pooling or ""].astype(np.float64)
    else:
        row = pooled_row(manifest.pooling, manifest.attention[-1]).astype(np.float64)[None]
    return (row[:, None] @ product)[:, 0, manifest.attention[-1].patch_slice]


def _pixels(manifest: Manifest, data: Path | None) -> tuple[NDArray[np.float32], str]:
    spec = manifest.preprocessing
    if data is None:
        made = made_pictures(PICTURES, spec.height, spec.width, MADE_SEED)
        return normalize(made, spec), f"{PICTURES} made pictures, seed {MADE_SEED}"
    recipe = recipe_of(manifest)
    source = open_source(recipe.data, data, spec)
    pictures = load(_spread(source.training()), spec)
    return normalize(pictures.pixels, spec), f"{len(pictures.labels)} training pictures of {source.name}"


def _spread(examples: Iterable[Example]) -> Iterator[Example]:
    """Every 16th, so that image folders, which come class by class, give more than one class."""
    return islice(examples, 0, PICTURES * 16, 16)


def _run(answer: Answer, pixels: NDArray[np.float32], size: int) -> Outputs:
    parts: list[Outputs] = [answer(pixels[start : start + size]) for start in range(0, len(pixels), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)

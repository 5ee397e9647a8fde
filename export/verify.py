"""Parity: the bundle's graph through ONNX Runtime against the source model, and each map against its formula."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.data import open_source
from export.examples import Example, load
from export.explain.build import check_made
from export.explain.prove import check_held, prove_maps
from export.graph.evaluate import run_whole
from export.head import Head, head_of
from export.names import LOGITS
from export.quantize.parent import parent_checks
from export.quantize.tolerance import tolerance_of
from export.recipe import recipe_of
from export.reference import Limits, Outputs, Reference, reference_of
from export.runtime import PROVIDER, Answer, open_graph, open_relevance
from export.weights import tolerance_for, versions
from saccade.bundle import GOLDEN, Bundle, update_bundle
from saccade.errors import BundleError
from saccade.golden import check_golden, check_golden_maps, golden_file, made_pictures
from saccade.manifest import Manifest, Measured, Parity, Precision
from saccade.pooling import pooled_row
from saccade.preprocess import normalize
from saccade.scores import to_scores

BATCHES = (1, 2, 7, 16)
CHUNK = 16
"""Pictures whose outputs are held at a time: the attention of one through a ViT-B has 22 MB."""
MADE_SEED = 11

WIDEST: dict[Precision, Limits] = {
    "float32": Limits(logits=1e-4, attention=1e-3),
    "float16": Limits(logits=0.05, attention=0.05),
    "int8": Limits(logits=0.2, attention=0.2),
}
"""Of limits that are wider than usual; of logits beyond 1 a share of the largest. In float32 1e-4 of it are 800
roundings, more than any depth of layers adds up to, and 1e-3 of attention is not to be seen in a map. In a variant a
rounding that falls to the other side is worth a whole code; --anyway does not pass these.
"""

Check = Callable[[str, NDArray[np.floating[Any]], float], None]


def verify(bundle: Bundle, data: Path | None, *, file: Path | None = None, function: str | None = None) -> Bundle:
    """Holds every promise of the bundle and writes what was measured, and golden.npz, into it.

    Compares on made pictures or on training pictures of `data`, as many as the source model is worth asking for (256
    for a net of our own). `file` and `function` are as in `reference_of`. Raises BundleError naming what does not hold.
    """
    reference = reference_of(bundle, file=file, function=function)
    proof = prove(bundle, reference, data)
    if bundle.manifest.maps.gradients is not None:
        check_made(bundle)
    measured = {"parity": proof.parity.model_dump(), "tolerance": proof.tolerance}
    return update_bundle(bundle, measured, {GOLDEN: proof.golden})


class Proof(NamedTuple):
    """What is written into a bundle that holds its promises."""

    parity: Parity
    tolerance: dict[str, dict[str, float]]
    golden: bytes
    """The content of golden.npz."""


def prove(bundle: Bundle, reference: Reference, data: Path | None) -> Proof:
    """Writes nothing. Raises BundleError if a promise is broken, or if the service would not load what is proved."""
    parity = measure(bundle, reference, data)
    check_held(bundle.manifest, parity.checks)
    variant = bundle.manifest.parent is not None
    tolerance, explain = tolerance_of(bundle) if variant else tolerance_for(parity.checks), None
    if bundle.manifest.maps.gradients is not None:
        maps = prove_maps(bundle, parity.checks)
        parity = parity.model_copy(update={"checks": {**parity.checks, **maps.checks}})
        tolerance = {provider: {**kinds, **maps.tolerance[provider]} for provider, kinds in tolerance.items()}
        explain = maps.explain
    golden = golden_file(bundle.manifest, lambda pixels: _with_maps(bundle, reference.arrays(pixels), pixels), explain)
    _check_load(bundle, tolerance, golden)
    return Proof(parity, tolerance, golden)


def measure(bundle: Bundle, reference: Reference, data: Path | None) -> Parity:
    """The largest difference of each kind over all pictures and batch sizes."""
    manifest = bundle.manifest
    pixels, origin = _pixels(manifest, data, reference.pictures)
    given = tuple(open_graph(bundle.graph)(pixels[:1]))
    if not set(manifest.outputs) <= set(given):
        promised = ", ".join(manifest.outputs)
        raise BundleError(f"{manifest.id}: the graph has the outputs {', '.join(given)}; the manifest says {promised}")
    answer = open_graph(bundle.graph, only=manifest.outputs)
    head, limits = head_of(bundle), reference.limits(pixels)
    scores = partial(to_scores, scores=manifest.scores, temperature=manifest.temperature)
    highest = 0.0
    largest: dict[str, float] = {}
    allowed: dict[str, float] = {}

    def check(name: str, difference: NDArray[np.floating[Any]], limit: float) -> None:
        worst = float(np.max(np.abs(difference), initial=0.0))
        largest[name] = max(largest.get(name, 0.0), worst if np.isfinite(worst) else float(np.finfo(np.float64).max))
        allowed[name] = limit

    for start in range(0, len(pixels), CHUNK):
        chunk = pixels[start : start + CHUNK]
        expected, alone = reference.arrays(chunk), _run(answer, chunk, 1)
        _check_shapes(manifest, len(chunk), alone, "the graph")
        _check_shapes(manifest, len(chunk), expected, reference.said)
        highest = max(highest, float(np.abs(expected[LOGITS]).max()))
        for size in BATCHES:
            seen = alone if size == 1 else _run(answer, chunk, size)
            check("logits", seen[LOGITS] - expected[LOGITS], limits.logits)
            check("alone = in a batch, scores", scores(seen[LOGITS]) - scores(alone[LOGITS]), 1e-5)
            for layer in manifest.attention:
                own = limits.layers.get(layer.output)
                name, limit = ("attention", limits.attention) if own is None else (layer.output, own)
                check(name, seen[layer.output] - expected[layer.output], limit)
                check("attention rows sum to 1", seen[layer.output].sum(-1, dtype=np.float64) - 1, 1e-5)
                check("alone = in a batch, attention", seen[layer.output] - alone[layer.output], limits.batch)
            _check_maps(manifest, seen, expected, head, limits, check)
    _check_limits(manifest, limits, highest)
    checks = {name: Measured(largest=largest[name], allowed=allowed[name]) for name in largest}
    source = f"{origin}, against {reference.said}"
    if manifest.parent is not None:
        more, said = parent_checks(bundle, pixels)
        checks, source = checks | more, f"{source}; {said}"
    return Parity(
        pictures=len(pixels), source=source, batches=BATCHES, provider=PROVIDER, checks=checks, versions=versions()
    )


def _check_load(bundle: Bundle, tolerance: dict[str, dict[str, float]], golden: bytes) -> None:
    """As the service does at load."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / GOLDEN
        try:
            file.write_bytes(golden)
        except OSError as error:
            raise BundleError(f"could not write to {place}, nor then to {bundle.folder}: {error}") from error
        manifest = bundle.manifest.model_copy(update={"tolerance": tolerance})
        check_golden(manifest, file, PROVIDER, open_graph(bundle.graph, only=manifest.outputs))
        if manifest.maps.gradients is not None:
            check_golden_maps(manifest, file, PROVIDER, open_relevance(bundle.relevance))


def _check_limits(manifest: Manifest, limits: Limits, highest: float) -> None:
    """Parity that allows more than WIDEST would show little. Raises BundleError."""
    for kind, limit, at_most in (
        ("logits", limits.logits, WIDEST[manifest.precision].logits * max(1.0, highest)),
        *((name, limit, WIDEST[manifest.precision].attention)
          for name, limit in {"attention": limits.attention, **limits.layers}.items()),
    ):  # fmt: skip
        if not limit <= at_most:
            raise BundleError(
                f"{manifest.precision} rounds the {kind} of {manifest.id} so roughly that {limit:.3g} would be "
                f"allowed; it may be {at_most:.3g} at most"
            )


def _check_shapes(manifest: Manifest, count: int, outputs: Outputs, source: str) -> None:
    """Raises BundleError where an output that is to be compared has another shape than the manifest says."""
    shapes: dict[str, tuple[int, ...]] = {LOGITS: (len(manifest.labels),)}
    shapes |= {layer.output: layer.shape for layer in manifest.attention}
    if manifest.maps.pooling:
        shapes[manifest.maps.pooling] = (manifest.attention[-1].tokens,)
    class_map = manifest.maps.class_map
    if class_map and class_map.tokens in outputs:
        shapes[class_map.tokens] = (class_map.grid[0] * class_map.grid[1], outputs[class_map.tokens].shape[-1])
    for name, shape in shapes.items():
        seen = outputs[name].shape if name in outputs else "missing"
        if seen != (count, *shape):
            raise BundleError(f"{manifest.id}: {name} of {source} is {seen}; the manifest says {(count, *shape)}")


def _check_maps(
    manifest: Manifest, seen: Outputs, expected: Outputs, head: Head | None, limits: Limits, check: Check
) -> None:
    """Each map against its formula, in float64 on the bundle's own outputs: those are held to the source's."""
    maps = manifest.maps
    if maps.pooling:
        check("pooling", seen[maps.pooling] - expected[maps.pooling], limits.pooling)
        check("pooling sums to 1", seen[maps.pooling].sum(-1, dtype=np.float64) - 1, 1e-5)
    if maps.rollout:
        check("rollout", seen[maps.rollout] - _rollout_by_matrices(manifest, seen), 1e-5)
    if maps.class_map and head is not None:
        weight, bias = head
        summed = seen[maps.class_map.tokens].sum(1, dtype=np.float64) @ weight.T + bias
        check("class map sums to the logit", summed - seen[LOGITS], limits.sums)


def _with_maps(bundle: Bundle, outputs: Outputs, pixels: NDArray[np.float32]) -> Outputs:
    """What golden.npz holds of a source model that knows no maps: rollout by its formula, class tokens by onnx's own
    evaluator.
    """
    maps = bundle.manifest.maps
    if maps.rollout and maps.rollout not in outputs:
        outputs = {**outputs, maps.rollout: _rollout_by_matrices(bundle.manifest, outputs).astype(np.float32)}
    if maps.class_map and maps.class_map.tokens not in outputs:
        outputs = {**outputs, **run_whole(bundle.graph, pixels, (maps.class_map.tokens,))}
    return outputs


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


def _pixels(manifest: Manifest, data: Path | None, count: int) -> tuple[NDArray[np.float32], str]:
    spec = manifest.preprocessing
    if data is None:
        made = made_pictures(count, spec.height, spec.width, MADE_SEED)
        return normalize(made, spec), f"{count} made pictures, seed {MADE_SEED}"
    recipe = recipe_of(manifest)
    source = open_source(recipe.data, data, spec)
    pictures = load(_spread(source.training(), count), spec)
    return normalize(pictures.pixels, spec), f"{len(pictures.labels)} training pictures of {source.name}"


def _spread(examples: Iterable[Example], count: int) -> Iterator[Example]:
    """Every 16th, so that image folders, which come class by class, give more than one class."""
    return islice(examples, 0, count * 16, 16)


def _run(answer: Answer, pixels: NDArray[np.float32], size: int) -> Outputs:
    parts: list[Outputs] = [answer(pixels[start : start + size]) for start in range(0, len(pixels), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

"""LeGrad (Bousselham et al., ICCV 2025, https://arxiv.org/abs/2404.03214): what each layer does for a class.

The classifier is asked after each block l: s_l is the class's logit that it gives for the mean of the tokens there (all
of them, special ones included). A layer's part of the map is (d s_l / d A_l)+, the mean over its heads and queries; the
map is their sum over the layers, of the patches. It is not scaled; the authors divide by its range, for pictures.

For a model that reads a class token, s of the last layer is the logit itself: behind its last attention the others'
tokens are read by nobody, and are not computed. So there the class token's query counts alone, and that of each other
token as 0.

A gradient by A_l goes through one block only, and begins as the same for each token.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from export.explain.check import Derivative
from export.explain.differentiate import differentiate
from export.explain.even import Even
from export.explain.gradients.quantize import rounded
from export.explain.known import other_floats
from export.explain.source import Source, behind, laid_out
from export.explain.stream import Stream, classify, stream_of
from export.graph.adder import Adder
from export.graph.places import Places
from saccade.errors import BundleError
from saccade.manifest import AttentionLayer, Pooling


class LeGrad(NamedTuple):
    """What was added to a graph."""

    row: ir.Value
    """(k, batch, 1, N)."""
    derivatives: list[Derivative]
    """Of each layer's own logits; of the class token's last layer there are none beside those of the logits."""


def add_legrad(
    model: ir.Model,
    places: Places,
    classes: tuple[ir.Value, ir.Value],
    layers: Sequence[tuple[AttentionLayer, Source]],
    pooling: Pooling,
    gradients: Mapping[ir.Value, ir.Value],
) -> LeGrad:
    """Adds the map's nodes. `places` are of the graph without any gradients; `classes`: the logits, and their seed (k,
    batch, classes); `gradients`: of the logits, by the attention of `layers`.

    Raises BundleError where the graph has no residual stream with a classifier behind it that could be asked earlier.
    """
    logits, _ = classes
    tokens_read = pooling.kind in ("class_token", "class_and_distillation")
    found: dict[ir.Value, ir.Value] = {}
    derivatives: list[Derivative] = []
    asked = [source.value for _, source in layers[: len(layers) - tokens_read]]
    if asked:
        stream = stream_of(model, [source.value for _, source in layers], logits, places, whole=not tokens_read)
        found, derivatives = _of_blocks(model, places, classes, stream, asked)
    if tokens_read:
        last = layers[-1][1].value
        found[last] = gradients[last]
    add = Adder(model)
    total: ir.Value | None = None
    for layer, source in layers:
        part = _mean_of_queries(add, layer, source, found[source.value])
        total = part if total is None else add("Add", total, part)
    assert total is not None
    return LeGrad(add("Unsqueeze", total, [2]), derivatives)


def _of_blocks(
    model: ir.Model,
    places: Places,
    classes: tuple[ir.Value, ir.Value],
    stream: Stream,
    attention: Sequence[ir.Value],
) -> tuple[dict[ir.Value, ir.Value], list[Derivative]]:
    """The gradient of each layer's own logits by its attention.

    The classifier runs once for all layers: their mean tokens stand side by side as if they were more pictures.
    """
    logits, seed = classes
    add, count = Adder(model), len(attention)
    others = other_floats(model)
    means = [_mean(add, value, stream, others) for value in stream.tokens]
    stacked = means[0] if count == 1 else add("Concat", *means, axis=0)
    answers = classify(add, model, stream, logits, places, stacked)
    repeated = seed if count == 1 else add("Tile", seed, [1, count, 1])
    try:
        by_means = differentiate(model, {answers: repeated}, [stacked])[stacked]
    except BundleError as error:
        raise BundleError("its classifier cannot be asked for the mean of a block's tokens") from error

    add = Adder(model)
    scaled = add("Mul", by_means, add.number(1 / stream.length))
    if count > 1:
        add("Split", scaled, axis=1, num_outputs=count)
    each = [scaled] if count == 1 else [add.output(add.made[-1], place) for place in range(count)]
    seeds: dict[ir.Value, ir.Value] = {}
    for weights, value, gradient in zip(attention, stream.tokens, each, strict=True):
        even = Even(add, places, stream.axes, _between(model, weights, value), others)
        even.carry(value, gradient)
        seeds |= even.seeds
    found = differentiate(model, seeds, attention, fixed=stream.tokens)
    derivatives = [
        Derivative(answers, seed, {weights: found[weights]}, part, count, {*stream.tokens} - {stream.tokens[part]})
        for part, weights in enumerate(attention)
    ]
    return found, derivatives


def _mean(add: Adder, value: ir.Value, stream: Stream, others: Collection[ir.Value]) -> ir.Value:
    """Of the tokens, as one; of the type that the classifier takes."""
    mean = add("ReduceMean", rounded(value), list(stream.axes), keepdims=1)
    return mean if (value in others) == (stream.last in others) else add("CastLike", mean, stream.last)


def _between(model: ir.Model, start: ir.Value, end: ir.Value) -> set[ir.Value]:
    """Values that hang on `start` and that `end` hangs on; both too."""
    reached, needed = {start}, behind(model, end)
    for node in model.graph:
        if any(value in reached for value in node.inputs):
            reached |= needed.intersection(node.outputs)
    return reached


def _mean_of_queries(add: Adder, layer: AttentionLayer, source: Source, gradient: ir.Value) -> ir.Value:
    """What is positive, (k, batch, N): the mean over heads and all queries, also those that are not computed."""
    positive = laid_out(add, add("Relu", gradient), source.layout)
    if source.rows is None:
        return add("ReduceMean", positive, [2, 3], keepdims=0)
    summed = add("ReduceSum", positive, [2, 3], keepdims=0)
    return add("Mul", summed, add.number(1 / (layer.heads * layer.tokens)))

"""Why this class: maps of the gradient of any class's logit, as further outputs of a model's own graph.

*relevance* (Chefer, Gur and Wolf, ICCV 2021, https://arxiv.org/abs/2103.15679, equations 5 and 6 for self-attention):
of each layer the evidence E = mean over heads of (dA * A)+, A being the attention weights and dA the gradient of the
class's logit by them; R <- R + E R from the identity, first layer first. Only the row of R that the classifier reads is
wanted, so it is carried from the last layer to the first, r <- r + r E, and no product of two matrices is needed.

It starts from how the classifier reads the tokens: the class token, the mean, or, where the pooling is learned, from
the evidence of its weights w, (dw * w)+, a layer of attention of one row. What the row itself puts on the patches
before any attention says nothing about the picture (a mean: 1/P on each) and is taken off again; learned evidence
stays.

*grad_attention*: the same of the last layer alone, r E. *legrad*: see `legrad`. *grad_cam* (Selvaraju et al., ICCV
2017, https://arxiv.org/abs/1610.02391), of models without attention: the last feature map's channels, each weighed by
the mean of its gradient, summed, and what is positive of it.

Where layers differ in grid, the maps are of the last stage, whose tokens the classifier reads; and of layers behind the
last attention that is none of the layers (fewer keys than queries, say), which mixes tokens in a way that is not known.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.explain.check import Derivative
from export.explain.differentiate import differentiate
from export.explain.gelu import open_gelus
from export.explain.known import Known, other_floats, widened
from export.explain.legrad import add_legrad
from export.explain.source import Source, behind, laid_out, last_features, source_of
from export.explain.tokens import is_picture
from export.graph.adder import Adder
from export.graph.attention import find
from export.graph.geometry import layer_of
from export.graph.nodes import used
from export.graph.places import Places
from export.names import LOGITS, POOLING
from saccade.errors import BundleError
from saccade.manifest import AttentionLayer, GradientMapName, GradientMaps, Manifest, Pooling
from saccade.pooling import pooled_row

CLASS_INDEX = "class_index"
RELEVANCE: GradientMapName = "relevance"
GRAD_ATTENTION: GradientMapName = "grad_attention"
LEGRAD: GradientMapName = "legrad"
GRAD_CAM: GradientMapName = "grad_cam"
OF_ATTENTION = (RELEVANCE, GRAD_ATTENTION, LEGRAD)
TOP = -1
"""As a class index: the class of the greatest logit, found in the graph; -2 is that of the second, and so on."""


class Classifier(NamedTuple):
    """What is known of the classifier in a graph."""

    name: str
    """In messages."""
    logits: ir.Value
    """(batch, classes)."""
    classes: int
    layers: tuple[AttentionLayer, ...]
    attention: tuple[ir.Value, ...]
    """Of each of `layers` its weights, in the shape that the layer says."""
    pooling: Pooling | None
    """None where it is not known how the classifier reads the tokens."""
    weights: ir.Value | None
    """Of learned pooling, (batch, tokens)."""

    @classmethod
    def of(cls, model: ir.Model, manifest: Manifest) -> "Classifier":
        """By the outputs of a bundle's model.onnx."""
        outputs = {value.name: value for value in model.graph.outputs}
        return cls(
            manifest.id, outputs[LOGITS], len(manifest.labels),
            manifest.attention, tuple(outputs[layer.output] for layer in manifest.attention),
            manifest.pooling, outputs[POOLING] if manifest.maps.pooling else None,
        )  # fmt: skip


class Explained(NamedTuple):
    """What was added to a graph."""

    maps: GradientMaps
    """As the manifest has them."""
    why_not: dict[GradientMapName, str]
    """Of the maps that the model cannot have."""
    derivatives: list[Derivative]
    """All gradients that the maps are made of."""


def add_relevance(model: ir.Model, classifier: Classifier) -> Explained:
    """Adds the input `class_index`, int64 (batch, k), and the maps that `possible` names, float32 (batch, k, patches),
    in place; what the graph gave it still gives. Of these LeGrad may be missing, for a reason that is given, where the
    graph does not have what it needs (see `stream`). An index that is neither a class nor a rank (TOP and below, down
    to minus the number of classes) stops the run.

    Raises BundleError where there are none, with the reason of each, and where an operator on the way has no gradient.
    """
    maps, why_not = possible(model, classifier.layers, classifier.pooling)
    if not maps:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in why_not.items())
        raise BundleError(f"{classifier.name} can have no map of gradients: {reasons}")
    logits = classifier.logits
    open_gelus(model, [_softmax(value) for value in classifier.attention], logits)
    if GRAD_CAM in maps:
        return _add_grad_cam(model, classifier, why_not)
    places, others = _places(model), other_floats(model)
    seed = _seed(Adder(model), model, logits, classifier.classes)
    layers = _stage(model, classifier, places)
    sources = [source_of(model, value, logits) for value in classifier.attention[-len(layers) :]]
    learned = None if classifier.weights is None else source_of(model, classifier.weights, logits)
    wanted = [*sources, *([] if learned is None else [learned])]
    gradients = differentiate(model, {logits: seed}, [one.value for one in wanted])
    derivatives = [Derivative(logits, seed, gradients)]
    add, patches = Adder(model), layers[-1].patch_slice
    positive = {one.value: add("Relu", add("Mul", gradients[one.value], widened(add, one.value, others)))
                for one in wanted}  # fmt: skip
    for name, row in _by_layers(add, classifier.pooling, layers[-1], sources, learned, positive).items():
        _output(add, model, name, row, patches, layers[-1].tokens)
    try:
        assert classifier.pooling is not None
        pairs = [*zip(layers, sources, strict=True)]
        legrad = add_legrad(model, places, (logits, seed), pairs, classifier.pooling, gradients)
        _output(Adder(model), model, LEGRAD, legrad.row, patches, layers[-1].tokens)
        derivatives += legrad.derivatives
    except BundleError as error:
        common.RemoveUnusedNodesPass()(model)  # what was added before it came to that
        maps, why_not = tuple(name for name in maps if name != LEGRAD), {**why_not, LEGRAD: str(error)}
    made_of = tuple(layer.output for layer in layers)
    return Explained(GradientMaps(names=maps, grid=layers[-1].grid, layers=made_of), why_not, derivatives)


def _places(model: ir.Model) -> Places:
    """Of the pictures that the graph takes."""
    shape = model.graph.inputs[0].shape
    assert shape is not None
    height, width = (int(length) for length in shape[2:] if isinstance(length, int))
    return Places(model, (height, width)).follow_all(model)


def possible(
    model: ir.Model, layers: Sequence[AttentionLayer], pooling: Pooling | None
) -> tuple[tuple[GradientMapName, ...], dict[GradientMapName, str]]:
    """(the maps that a model of this attention and pooling can have, and of the others why not)."""
    if not layers:
        return (GRAD_CAM,), dict.fromkeys(OF_ATTENTION, _no_layer(model))
    reason = _lacks(layers[-1], pooling)
    found = () if reason else OF_ATTENTION
    without = dict.fromkeys(OF_ATTENTION, reason) if reason else {}
    return found, {**without, GRAD_CAM: "it is for models without attention"}


def _no_layer(model: ir.Model) -> str:
    """Why a graph gives no attention, in words; where it has some, what keeps the last of it from being a layer."""
    layers = [(one.name, layer_of(one, "", None)) for one in find(model, _places(model))]
    reasons = [f": in {name} {reason}" for name, reason in layers if isinstance(reason, str)]
    return "it gives no attention" + "".join(reasons[-1:])


def _lacks(last: AttentionLayer, pooling: Pooling | None) -> str | None:
    """Why attention cannot be carried from the pooled row to the patches, in words; None where it can."""
    if last.windows is not None:
        (down, across), (rows, columns) = last.windows.count, last.windows.picture
        kind = "interleaved windows" if last.windows.layout == "interleaved" else "windows"
        return (
            f"the last layer attends within {down} x {across} {kind} of {last.grid[0]} x {last.grid[1]} of its "
            f"{rows} x {columns} patches, so no row of it reads the whole picture"
        )
    if pooling is None:
        return "how the classifier reads the tokens is not known"
    return None


def _stage(model: ir.Model, classifier: Classifier, places: Places) -> tuple[AttentionLayer, ...]:
    """The last layers of one geometry and one frame, with no attention behind them that is none of the layers: before
    those, tokens are others or are mixed in a way that is not known, and evidence cannot be handed on. Raises
    BundleError where there is such attention behind the last layer.
    """
    last, before = classifier.layers[-1], _before_others(model, classifier, places)
    frames = {_softmax(found.weights): found.frame for found in find(model, places)}
    frame = frames.get(_softmax(classifier.attention[-1]))
    stage: list[AttentionLayer] = []
    for layer, value in zip(reversed(classifier.layers), reversed(classifier.attention), strict=True):
        same = (layer.grid, layer.special_tokens, layer.windows) == (last.grid, last.special_tokens, None)
        if not same or _softmax(value) in before or frames.get(_softmax(value)) != frame:
            break
        stage.append(layer)
    if not stage:
        raise BundleError(
            f"{classifier.name}: behind {last.output} stands attention that is none of its layers, which evidence "
            "cannot be carried through"
        )
    return tuple(reversed(stage))


def _before_others(model: ir.Model, classifier: Classifier, places: Places) -> set[ir.Value]:
    """What attention that is none of the layers hangs on, where the logits hang on it."""
    given = [*classifier.attention, *([] if classifier.weights is None else [classifier.weights])]
    layers, way = {_softmax(value) for value in given}, behind(model, classifier.logits)
    others = {_softmax(found.weights) for found in find(model, places)} - layers
    return {value for other in others & way for value in behind(model, other)}


def _softmax(value: ir.Value) -> ir.Value:
    """The nearest one that weights in some layout are made of; themselves, where there is none."""
    waiting = [value]
    for one in waiting:
        node = one.producer()
        if node is not None and node.op_type == "Softmax":
            return one
        waiting += [] if node is None else used(node)
    return value


def _seed(add: Adder, model: ir.Model, logits: ir.Value, classes: int) -> ir.Value:
    """(k, batch, classes): 1 at the class asked for. TopK or GatherElements refuses a rank that is none, and
    ScatterElements a class.
    """
    asked = ir.Value(name=CLASS_INDEX, shape=ir.Shape(["batch", "k"]), type=ir.TensorType(ir.DataType.INT64))
    model.graph.inputs.append(asked)
    none = add.constant(np.array(0))
    ranks = add("Neg", add("Min", asked, add.constant(np.array(TOP))))  # from 1; of a class that is named, 1 as well
    add("TopK", logits, add("ReduceMax", add("Reshape", ranks, [-1]), [0], keepdims=1), axis=1)
    ranked = add("GatherElements", add.output(add.made[-1], 1), add("Sub", ranks, add.constant(np.array(1))), axis=1)
    index = add("Where", add("Less", asked, none), ranked, asked)
    index = add("Unsqueeze", add("Transpose", index, perm=[1, 0]), [2])
    shape = add("Concat", add("Shape", index, start=0, end=2), [classes], axis=0)
    ones = add("Expand", add.number(1.0), add("Shape", index))
    return add("ScatterElements", add("Expand", add.number(0.0), shape), index, ones, axis=2)


def _by_layers(
    add: Adder,
    pooling: Pooling | None,
    last: AttentionLayer,
    sources: Sequence[Source],
    learned: Source | None,
    positive: Mapping[ir.Value, ir.Value],
) -> dict[GradientMapName, ir.Value]:
    """(k, batch, 1, N) each. `positive`: of each source (gradient * attention)+."""
    if learned is None:
        assert pooling is not None
        row = add.constant(pooled_row(pooling, last)[None, None, None])
    else:
        row = add("Reshape", _evidence(add, learned, positive), [0, -1, 1, last.tokens])
    start, of_last, added = row, None, None
    for source in reversed(sources):
        read = row if source.rows is None else add("Slice", row, [source.rows.start], [source.rows.stop], [3])
        # heads last: the mean of rows is less work than that of matrices
        by_head = add("MatMul", add("Unsqueeze", read, [2]), _evidence(add, source, positive))
        carried = add("ReduceMean", by_head, [2], keepdims=0)
        of_last = of_last or carried
        # apart from where it starts: next to a mean's 1/P float32 would leave few digits of little evidence
        added = carried if added is None else add("Add", added, carried)
        row = add("Add", start, added)
    assert of_last is not None
    assert added is not None
    return {RELEVANCE: added if learned is None else row, GRAD_ATTENTION: of_last}


def _evidence(add: Adder, source: Source, positive: Mapping[ir.Value, ir.Value]) -> ir.Value:
    """In the layout of the output, with the classes in front: (k, batch, heads, rows, N)."""
    return laid_out(add, positive[source.value], source.layout)


def _add_grad_cam(model: ir.Model, classifier: Classifier, why_not: dict[GradientMapName, str]) -> Explained:
    logits, places, others = classifier.logits, _places(model), other_floats(model)
    seed = _seed(Adder(model), model, logits, classifier.classes)
    features = last_features(model, logits)
    if not is_picture(features, places):
        raise BundleError(f"{classifier.name}: its last feature map is no (batch, channels, rows, columns)")
    rows, columns = Known(model, [features], []).shape(features)[2:]
    if not rows or not columns:
        raise BundleError(f"{classifier.name}: the size of its last feature map hangs on the batch")
    gradients = differentiate(model, {logits: seed}, [features])
    add = Adder(model)
    summed = _grad_cam(add, widened(add, features, others), gradients[features])
    _output(add, model, GRAD_CAM, summed, slice(0, rows * columns), rows * columns)
    derivatives = [Derivative(logits, seed, gradients)]
    return Explained(GradientMaps(names=(GRAD_CAM,), grid=(rows, columns)), why_not, derivatives)


def _grad_cam(add: Adder, features: ir.Value, gradient: ir.Value) -> ir.Value:
    """(k, batch, 1, patches): channels weighed by the mean of their gradient, summed, what is positive of it."""
    weights = add("ReduceMean", gradient, [3, 4], keepdims=1)
    summed = add("ReduceSum", add("Mul", weights, features), [2], keepdims=0)
    return add("Reshape", add("Relu", summed), [0, 0, 1, -1])


def _output(add: Adder, model: ir.Model, name: str, row: ir.Value, patches: slice, tokens: int) -> None:
    """(k, batch, 1, tokens) -> the output (batch, k, patches)."""
    flat = add("Squeeze", row, [2])
    if patches != slice(0, tokens):
        flat = add("Slice", flat, [patches.start], [patches.stop], [2])
    value = add.named(add("Transpose", flat, perm=[1, 0, 2]), name)
    value.shape = ir.Shape(["batch", "k", patches.stop - patches.start])
    value.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(value)

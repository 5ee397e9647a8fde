"""Why this class: maps of the gradient of any class's logit, as further outputs of a model's own graph.

*relevance* (Chefer, Gur and Wolf, ICCV 2021, https://arxiv.org/abs/2103.15679, equations 5 and 6 for self-attention):
of each layer the evidence E = mean over heads of (dA * A)+, A being the attention weights and dA the gradient of the
class's logit by them; R <- R + E R from the identity, first layer first. Only the row of R that the classifier reads is
wanted, so it is carried from the last layer to the first, r <- r + r E, and no product of two matrices is needed.

It starts from how the classifier reads the tokens: the class token, the mean, or, where the pooling is learned, from
the evidence of its weights w, (dw * w)+, a layer of attention of one row. What the row itself puts on the patches
before any attention says nothing about the picture (a mean: 1/P on each) and is taken off again; learned evidence
stays.

*grad_attention*: the same of the last layer alone, r E.
"""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from export.explain.differentiate import differentiate
from export.graph.adder import Adder
from export.names import LOGITS, POOLING
from saccade.errors import BundleError
from saccade.manifest import AttentionLayer, Manifest
from saccade.pooling import pooled_row

CLASS_INDEX = "class_index"
RELEVANCE, GRAD_ATTENTION = "relevance", "grad_attention"
TOP = -1
"""As a class index: the class of the greatest logit, found in the graph."""

_LAYOUT = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity")


class _Layer(NamedTuple):
    """Attention as the logits hang on it."""

    weights: ir.Value
    """What the gradient is taken by: all rows, in the graph's own layout, or those rows that are used."""
    rows: slice | None
    """None: all."""
    layout: tuple[ir.Node, ...]
    """What makes the manifest's layout (batch, heads, N, N) of it."""
    layer: AttentionLayer


def add_relevance(model: ir.Model, manifest: Manifest) -> tuple[str, ...]:
    """Adds the input `class_index`, int64 (batch, k), and the maps, float32 (batch, k, patches), in place.

    Gives the names of the maps. Raises BundleError where the model cannot have them; what the graph gave it still
    gives. An index beyond the classes stops the run.
    """
    why_not = lacks(manifest)
    if why_not is not None:
        raise BundleError(f"{manifest.id} has no relevance: {why_not}")
    outputs = {value.name: value for value in model.graph.outputs}
    layers = _layers(model, manifest, outputs)
    add = Adder(model)
    seed = _seed(add, model, outputs[LOGITS], len(manifest.labels))
    learned = _on_the_way(model, outputs[POOLING], ()) if manifest.maps.pooling else None
    wanted = [layer.weights for layer in layers] + ([] if learned is None else [learned[0]])
    gradients = differentiate(model, {outputs[LOGITS]: seed}, wanted)
    add = Adder(model)
    if learned is None:
        assert manifest.pooling is not None
        row = add.constant(pooled_row(manifest.pooling, manifest.attention[-1])[None, None, None])
    else:
        evidence = add("Relu", add("Mul", gradients[learned[0]], learned[0]))
        row = add("Reshape", evidence, [0, -1, 1, manifest.attention[-1].tokens])
    start, last = row, None
    for layer in reversed(layers):
        evidence = _evidence(add, layer, gradients[layer.weights])
        read = row if layer.rows is None else add("Slice", row, [layer.rows.start], [layer.rows.stop], [3])
        carried = add("MatMul", read, evidence)
        last = last or carried
        row = add("Add", row, carried)
    assert last is not None
    if learned is None:
        row = add("Sub", row, start)
    maps = {RELEVANCE: row, GRAD_ATTENTION: last}
    for name, value in maps.items():
        _output(add, model, name, value, manifest.attention[-1])
    return tuple(maps)


def lacks(manifest: Manifest) -> str | None:
    """Why a model cannot have relevance, in words; None where it can."""
    layers = manifest.attention
    if not layers:
        return "it has no attention"
    if manifest.pooling is None:
        return "how its classifier reads the tokens is not known"
    if any(layer.windows for layer in layers):
        return "its layers attend within windows"
    if len({(layer.grid, layer.special_tokens) for layer in layers}) > 1:
        return "its layers have different grids"
    return None


def _seed(add: Adder, model: ir.Model, logits: ir.Value, classes: int) -> ir.Value:
    """(k, batch, classes): 1 at the class asked for. ScatterElements refuses an index that is none."""
    asked = ir.Value(name=CLASS_INDEX, shape=ir.Shape(["batch", "k"]), type=ir.TensorType(ir.DataType.INT64))
    model.graph.inputs.append(asked)
    top = add("ArgMax", logits, axis=1, keepdims=1)
    index = add("Where", add("Equal", asked, add.constant(np.array(TOP))), top, asked)
    # ScatterElements would count from the end
    index = add("Where", add("Less", index, add.constant(np.array(0))), add.constant(np.array(classes)), index)
    index = add("Unsqueeze", add("Transpose", index, perm=[1, 0]), [2])
    shape = add("Concat", add("Shape", index, start=0, end=2), [classes], axis=0)
    ones = add("Expand", add.number(1.0), add("Shape", index))
    return add("ScatterElements", add("Expand", add.number(0.0), shape), index, ones, axis=2)


def _layers(model: ir.Model, manifest: Manifest, outputs: dict[str | None, ir.Value]) -> list[_Layer]:
    found = []
    for layer in manifest.attention:
        value, layout = _on_the_way(model, outputs[layer.output], ())
        rows = None if layout else _rows_used(model, value)
        if rows is None:
            found.append(_Layer(value, None, layout, layer))
        else:
            found.append(_Layer(rows[0], rows[1], (), layer))
    return found


def _reaching(model: ir.Model) -> set[ir.Value]:
    """What the logits hang on."""
    (logits,) = [value for value in model.graph.outputs if value.name == LOGITS]
    needed = {logits}
    for node in reversed(list(model.graph)):
        if any(value in needed for value in node.outputs):
            needed |= {value for value in node.inputs if value is not None}
    return needed


def _on_the_way(model: ir.Model, value: ir.Value, layout: tuple[ir.Node, ...]) -> tuple[ir.Value, tuple[ir.Node, ...]]:
    """What an output is, as the logits hang on it, and the nodes that lay it out as the manifest says."""
    reaching = _reaching(model)
    while value not in reaching:
        node = value.producer()
        if node is None or node.op_type not in _LAYOUT or node.inputs[0] is None:
            raise BundleError(f"the logits do not hang on {value.name}")
        layout, value = (node, *layout), node.inputs[0]
    return value, layout


def _rows_used(model: ir.Model, value: ir.Value) -> tuple[ir.Value, slice] | None:
    """Where the logits hang on some rows only: these, and which they are."""
    reaching = _reaching(model)
    users = [user for user, _ in value.uses() if set(user.outputs) & reaching]
    if len(users) != 1 or users[0].op_type != "Slice":
        return None
    numbers = [None if one is None or one.const_value is None else one.const_value.numpy().ravel().tolist()
               for one in users[0].inputs[1:]]  # fmt: skip
    if None in numbers or any(len(one or []) != 1 for one in numbers) or numbers[2] != [2]:
        return None
    return users[0].outputs[0], slice((numbers[0] or [0])[0], (numbers[1] or [0])[0])


def _evidence(add: Adder, layer: _Layer, gradient: ir.Value) -> ir.Value:
    """(k, batch, rows, N): the mean over heads of (gradient * attention)+."""
    value = add("Relu", add("Mul", gradient, layer.weights))
    for node in layer.layout:
        raise BundleError(f"layout {node.op_type}")
    return add("ReduceMean", value, [2], keepdims=0)


def _output(add: Adder, model: ir.Model, name: str, row: ir.Value, layer: AttentionLayer) -> None:
    patches = layer.patch_slice
    flat = add("Squeeze", row, [2])
    cut = add("Slice", flat, [patches.start], [patches.stop], [2])
    value = add.named(add("Transpose", cut, perm=[1, 0, 2]), name)
    value.shape = ir.Shape(["batch", "k", layer.patches])
    value.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(value)

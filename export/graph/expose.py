"""A classifier's graph gets the outputs of a bundle: attention, pooling, rollout and the tokens of the class map."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.adder import Adder
from export.graph.attention import Found, find
from export.graph.geometry import layer_of
from export.graph.places import Places
from export.graph.pools import plain_pools
from export.graph.reading import ClassTokens, Reading, read_class_tokens, read_pooling
from export.graph.told import check_taken, may_be_told, tell
from export.names import CLASS_TOKENS, INPUT, LOGITS, POOLING, ROLLOUT, attention_output
from export.nets.maps import rolls_out
from saccade.errors import DataError
from saccade.manifest import AttentionLayer, ClassMap, MapName, Maps, Pooling
from saccade.pooling import pooled_row

NOT_BEHIND = "the logits do not hang on it"
"""Why an attention layer is not used, see `look`."""


@dataclass(frozen=True)
class Row:
    """A line of the table of what was found."""

    where: str
    heads: int
    tokens: tuple[int, int]
    layer: AttentionLayer | None
    why_not: str | None


@dataclass(frozen=True)
class Exposed:
    """What the graph gives now, in the words of the manifest."""

    classes: int
    layers: tuple[AttentionLayer, ...]
    pooling: Pooling | None
    """None where the logits read the tokens in no way that the manifest can say, or there is no attention."""
    maps: Maps
    table: tuple[Row, ...]
    """All attention that was found, in depth order."""
    sources: tuple[tuple[str, Found], ...]
    """Of each of `layers` the value that it is made of, under the name that it had, and how it is made."""


class Seen(NamedTuple):
    """What a graph says of its classifier, before any output is added."""

    places: Places
    logits: ir.Value
    """(batch, classes)."""
    classes: int
    rows: tuple[Row, ...]
    """All attention that was found, in depth order."""
    used: list[tuple[Found, AttentionLayer]]
    """Of these, what a layer can be said of."""
    reading: Reading | None
    """How the logits read the tokens of the last layer; None where it is not known."""

    @property
    def layers(self) -> tuple[AttentionLayer, ...]:
        return tuple(layer for _, layer in self.used)


def look(
    model: ir.Model,
    size: tuple[int, int],
    logits: ir.Value,
    *,
    over: slice | None = None,
    grid: tuple[int, int] | None = None,
    names: Sequence[str] | None = None,
    among: Collection[ir.Value] | None = None,
) -> Seen:
    """As `expose` takes them; of attention that is not `among` these values none is used.

    To the model a Flatten is added at most, and pools over a whole map are written so. Raises DataError where the
    graph is no such classifier, or `grid` is that of no layer.
    """
    places = Places(model, size).follow_all(model)
    plain_pools(model, places)
    head = _by_label(Adder(model), places, logits, over)
    found = find(model, places) if grid is None else tell(model, places, grid, among)
    rows, used = _layers(found, grid, names, among)
    if grid is not None:
        waiting, others = list[str](), list[str]()
        for row, one in zip(rows, found, strict=True):
            if row.why_not is not None:
                line = f"{row.where} is not used: {row.why_not}"
                (waiting if may_be_told(one, among) else others).append(line)
        check_taken(grid, [layer for _, layer in used], waiting, others)
    return Seen(places, head, places.shape_of(head)[1], rows, used, _reading(head, places, used))


def expose(
    model: ir.Model,
    size: tuple[int, int],
    *,
    logits: ir.Value | None = None,
    over: slice | None = None,
    grid: tuple[int, int] | None = None,
    names: Sequence[str] | None = None,
) -> Exposed:
    """Adds to `model`, in place, the outputs of a bundle; its own stay behind them. The input becomes `pixel_values`.

    `model` has plain operators of opset 20 (see `prepare`), one input (batch, 3, H, W) with a dynamic batch, and
    `logits` (by default its first output) of (batch, classes), axes of 1 aside; `over` are the axes of a softmax behind
    them. `grid` is used where none is found, see `told.tell`; `names` are what the table calls the attention layers
    found, in depth order. Raises DataError as `look` does.
    """
    (pixels,) = model.graph.inputs
    theirs = model.graph.outputs[0] if logits is None else logits
    seen = look(model, size, theirs, over=over, grid=grid, names=names)
    places, head, classes, rows, used, reading = seen
    add, layers = Adder(model), seen.layers
    sources = tuple((found.weights.name or "", found) for found, _ in used)
    tokens = read_class_tokens(head, places)
    rolled = reading is not None and len(used) == len(rows) and rolls_out(layers) and _one_frame(used)

    add.named(pixels, INPUT)
    class_map, result = (None, head) if tokens is None else _head(add, tokens, classes)
    outputs: dict[ir.Value, tuple[int, ...]] = {add.named(result, LOGITS, keep=result is not theirs): (classes,)}
    attention = [add.named(unfolded(add, found), layer.output) for found, layer in used]
    outputs |= {value: layer.shape for value, layer in zip(attention, layers, strict=True)}
    learned = None
    if reading is not None and reading.weights is not None:
        learned = add.named(pooled_by(add, reading, layers[-1]), POOLING)
        outputs[learned] = (layers[-1].tokens,)
    if rolled and reading is not None:
        row = _pooled(add, reading, learned, layers[-1])
        outputs[add.named(_rollout(add, attention, row, layers[-1]), ROLLOUT)] = (layers[-1].patches,)
    if tokens is not None:
        outputs[add.named(_class_tokens(add, tokens), CLASS_TOKENS)] = (tokens.patches, tokens.width)
    add.outputs(outputs, instead_of=theirs)
    for value in model.graph.outputs[len(outputs) :]:
        say_shape(value, places)
    common.RemoveUnusedNodesPass()(model)
    default: tuple[MapName, ...] = ("rollout",) if rolled else ("class",) if class_map else ()
    maps = Maps(default=default, pooling=learned and POOLING, rollout=ROLLOUT if rolled else None, class_map=class_map)
    return Exposed(classes, layers, reading.pooling if reading else None, maps, rows, sources)


def _by_label(add: Adder, places: Places, logits: ir.Value, over: slice | None) -> ir.Value:
    """The logits as (batch, classes). Raises DataError where they are none."""
    shape = places.shape(logits) or ()
    labels = {axis for axis, length in enumerate(shape) if axis > 0 and length > 1}
    of_batch = len(shape) > 0 and shape[0] == places.batch
    written = f"({', '.join(['batch', *map(str, shape[1:])] if of_batch else map(str, shape))})"
    if not of_batch or len(shape) < 2 or len(labels) > 1:
        raise DataError(
            f"the output {logits.name!r} is no (batch, labels): {places.lost.get(logits) or f'it is {written}'}"
        )
    summed = labels if over is None else set(list(range(len(shape)))[over])
    if 0 in summed or not labels <= summed:
        axes = ", ".join(map(str, sorted(summed)))
        raise DataError(f"the softmax at the end sums over axis {axes} of {written}, which is not that of the labels: "
                        "it must make scores of each picture by itself")  # fmt: skip
    if len(shape) == 2:
        return logits
    flat = add("Flatten", logits, axis=1)
    places.follow(add.made[-1])
    return flat


def say_shape(value: ir.Value, places: Places) -> None:
    """Of an output of theirs; an axis that may grow with the batch is left open."""
    shape = places.shape(value)
    if shape is not None:
        value.shape = ir.Shape([None if length % places.batch == 0 else length for length in shape])


def _layers(
    found: list[Found],
    grid: tuple[int, int] | None,
    names: Sequence[str] | None,
    among: Collection[ir.Value] | None,
) -> tuple[tuple[Row, ...], list[tuple[Found, AttentionLayer]]]:
    if names is not None and len(names) != len(found):
        raise ValueError(f"there are {len(names)} names for {len(found)} attention layers")
    rows: list[Row] = []
    used: list[tuple[Found, AttentionLayer]] = []
    for index, one in enumerate(found):
        layer = layer_of(one, attention_output(len(used)), grid)
        if among is not None and one.weights not in among:
            layer = NOT_BEHIND
        where = one.name if names is None else names[index]
        if isinstance(layer, str):
            rows.append(Row(where, one.heads, one.tokens, None, layer))
        else:
            rows.append(Row(where, one.heads, one.tokens, layer, None))
            used.append((one, layer))
    return tuple(rows), used


def _reading(head: ir.Value, places: Places, used: list[tuple[Found, AttentionLayer]]) -> Reading | None:
    if not used:
        return None
    found, layer = used[-1]
    if found.cells is None or found.frame is None or layer.windows is not None:
        return None
    reading = read_pooling(head, places, found.frame, found.cells[0], layer)
    if reading is not None and reading.weights is not None and any(one.windows for _, one in used):
        return None  # the map of learned pooling is a sibling of rollout, and needs layers that see the whole picture
    return reading


def _one_frame(used: list[tuple[Found, AttentionLayer]]) -> bool:
    """Whether no convolution or merging stands between the layers, but what is added to their tokens."""
    return len({found.frame for found, _ in used}) == 1 and all(layer.windows is None for _, layer in used)


def unfolded(add: Adder, found: Found) -> ir.Value:
    """The weights as (batch, heads, N, N), or (batch, windows, heads, N, N); rows are queries."""
    value, tokens = found.weights, found.tokens[0]
    if found.transposed:
        value = add("Transpose", value, perm=[*range(found.rank - 2), found.rank - 1, found.rank - 2])
    if found.unfolding is None:
        return value
    sizes, order = found.unfolding.sizes, found.unfolding.order
    value = add("Reshape", value, [*sizes, tokens, tokens])
    if order != (0, 1, 2):
        value = add("Transpose", value, perm=[*order, 3, 4])
    if found.cells is not None and len(found.cells) == 1:
        value = add("Squeeze", value, [1])
    return value


def pooled_by(add: Adder, reading: Reading, last: AttentionLayer) -> ir.Value:
    """Weights of learned pooling as (batch, tokens), the mean over its heads."""
    weights = reading.weights
    if reading.heads > 1:
        weights = add("ReduceMean", weights, [1], keepdims=0)
    return add("Reshape", weights, [-1, last.tokens])


def _pooled(add: Adder, reading: Reading, learned: ir.Value | None, last: AttentionLayer) -> ir.Value:
    """The row that the rollout starts from, (batch or 1, 1, N)."""
    if learned is not None:
        return add("Unsqueeze", learned, [1])
    return add.constant(pooled_row(reading.pooling, last)[None, None])


def _rollout(add: Adder, attention: Sequence[ir.Value], row: ir.Value, last: AttentionLayer) -> ir.Value:
    """(batch, patches); the formula stands in `export.explain.rollout`."""
    half = add.number(0.5)
    for weights in reversed(attention):
        carried = add("MatMul", row, add("ReduceMean", weights, [1], keepdims=0))
        row = add("Mul", add("Add", carried, row), half)
    patches = last.patch_slice
    row = add("Squeeze", row, [1])
    return add("Slice", row, [patches.start], [patches.stop], [1])


def _head(add: Adder, found: ClassTokens, classes: int) -> tuple[ClassMap, ir.Value]:
    """The head as a Gemm whose weight is an initializer (classes, width), and the logits that it makes."""
    head, bias = found.head, None
    weight = add.initializer(head.weight, head.weight_from)
    if head.bias is not None and head.bias_from is not None:
        bias = add.initializer(np.broadcast_to(head.bias, (1, classes))[0], head.bias_from)
    logits = add("Gemm", head.pooled, weight, *([] if bias is None else [bias]), transB=1)
    class_map = ClassMap(tokens=CLASS_TOKENS, weight=weight.name or "", bias=bias and bias.name, grid=found.grid)
    return class_map, logits


def _class_tokens(add: Adder, found: ClassTokens) -> ir.Value:
    """(batch, patches, width): each token times its share in the pool."""
    value, patches = found.tokens, found.patches
    order = [0, *found.positions, found.channel]
    if order != sorted(order):
        value = add("Transpose", value, perm=order)
    if len(order) > 3:
        value = add("Reshape", value, [0, patches, found.width])
    if found.weights is None:
        return add("Mul", value, add.number(1 / patches))
    return add("Mul", value, add("Reshape", found.weights, [-1, patches, 1]))

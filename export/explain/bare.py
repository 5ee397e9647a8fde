"""`saccade relevance FILE.onnx`: a classifier in an ONNX file -> a file that also says why, of any class asked for."""

from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple, get_args

import onnx_ir as ir
from onnx_ir.passes import common

from export.explain.check import check_gradients
from export.explain.known import said
from export.explain.relevance import CLASS_INDEX, Classifier, Explained, add_relevance
from export.explain.source import behind
from export.explain.write import Written, check_free, write_beside
from export.graph.adder import Adder
from export.graph.decompose import check_operators
from export.graph.expose import NOT_BEHIND, Seen, look, pooled_by, say_shape, unfolded
from export.graph.narrow import narrow
from export.graph.opset import check_opset
from export.graph.prepare import logits_of, prepare
from export.graph.read import read_model
from export.table import aligned, cells, read_by
from saccade.errors import BundleError, DataError
from saccade.manifest import GradientMapName

_OURS = (CLASS_INDEX, *get_args(GradientMapName))


class _Graph(NamedTuple):
    """A file's graph as `prepare` makes it."""

    model: ir.Model
    size: tuple[int, int]
    theirs: list[ir.Value]
    """Its own outputs, under their names."""
    logits: ir.Value
    over: slice | None
    """As in `Logits`."""
    said: list[str]


def explain_file(
    path: Path, out: Path, *, logits: str | None, size: tuple[int, int] | None, grid: tuple[int, int] | None
) -> list[str]:
    """Writes `out`, which gives all that the file gives under its own names, and the maps of `add_relevance`; gives a
    table and sentences about what was found.

    `logits` is an output or an inner value (None: the output of that name, or the first), and probabilities are looked
    through; `size` is needed where the file leaves it open, `grid` where none is found. The new graph takes the input
    of the file, under its name and as (batch, 3, H, W), and `class_index`. Its gradients are held to finite
    differences in float64, and its other outputs to those of the file. Raises DataError, BundleError; then nothing is
    written.
    """
    check_free(out)
    model = read_model(path)
    metadata = dict(model.metadata_props)
    graph = _prepared(model, logits, size)
    graph.model.metadata_props.update(metadata)
    seen, explained, off = _explained(graph, path.name, grid)
    written = write_beside(graph.model, path, out, [value.name or "" for value in graph.theirs])
    return [*_table(seen, explained), *graph.said, *_proved(off, written), *_use(graph, out, written)]


def _prepared(model: ir.Model, logits: str | None, size: tuple[int, int] | None) -> _Graph:
    check_opset(model)
    check_operators(model)
    inputs = [value.name or "" for value in model.graph.inputs if value.name not in model.graph.initializers]
    outputs = [value.name or "" for value in model.graph.outputs]
    taken = [name for name in _OURS if name in (*inputs, *outputs)]
    if taken:
        raise DataError(f"the graph has {taken[0]} already, which is what would be added")
    sentences: list[str] = []
    if logits is not None and logits not in outputs:
        _keep(model, _inner(model, logits, outputs))
    found = logits_of(model, logits, sentences)
    _keep(model, found.value)
    name = found.value.name
    model, size, done = prepare(model, size)
    values = {value.name: value for value in model.graph.outputs}
    add = Adder(model)
    add.named(model.graph.inputs[0], inputs[0])
    for ours in _OURS:
        add.free(ours)
    return _Graph(model, size, [values[one] for one in outputs], values[name], found.over, [*sentences, *done])


def _inner(model: ir.Model, name: str, outputs: list[str]) -> ir.Value:
    """A value that is no output. Raises DataError."""
    values = {value.name: value for node in model.graph for value in node.outputs if value.name}
    if name not in values:
        near = get_close_matches(name, map(str, values), n=3)
        inner = f", and of inner values {', '.join(near)} are named like it" if near else ""
        raise DataError(f"the graph has no value {name!r}; its outputs are {', '.join(outputs)}{inner}")
    return values[name]


def _keep(model: ir.Model, value: ir.Value) -> None:
    """As an output for now: that keeps its name, whatever is taken apart."""
    if value not in model.graph.outputs:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(value)


def _explained(graph: _Graph, name: str, grid: tuple[int, int] | None) -> tuple[Seen, Explained, float]:
    """Adds the maps; the largest error of their gradients too. Raises DataError, BundleError."""
    model, logits = graph.model, graph.logits
    seen = look(model, graph.size, logits, over=graph.over, grid=grid, among=behind(model, logits))
    if seen.rows and all(row.why_not == NOT_BEHIND for row in seen.rows):
        raise BundleError(
            f"the logits {logits.name} hang on no attention: none of the graph's {len(seen.rows)} layers is before them"
        )
    add, reading = Adder(model), seen.reading
    attention = tuple(unfolded(add, found) for found, _ in seen.used)
    weights = None
    if reading is not None and reading.weights is not None:
        weights = pooled_by(add, reading, seen.layers[-1])
    for value in graph.theirs:
        say_shape(value, seen.places)
    model.graph.outputs[:] = [*graph.theirs, seen.logits, *attention, *([] if weights is None else [weights])]
    narrow(model, graph.size)
    pooling = None if reading is None else reading.pooling
    classifier = Classifier(name, seen.logits, seen.classes, seen.layers, attention, pooling, weights)
    before = len(model.graph.outputs)
    try:
        explained = add_relevance(model, classifier)
    except BundleError as error:
        unused = [f"{row.where} is not used: {row.why_not}" for row in seen.rows if row.why_not]
        raise BundleError("; ".join([str(error), *unused[:1]])) from error
    off = check_gradients(model, explained.derivatives)
    model.graph.outputs[:] = [*graph.theirs, *model.graph.outputs[before:]]
    common.RemoveUnusedNodesPass()(model)  # what was checked by, and is no output, among others
    return seen, explained, off


def _table(seen: Seen, explained: Explained) -> list[str]:
    """What the maps are made of, which there are, and why not others."""
    maps = explained.maps
    rows = [("attention", "heads", "tokens", "grid", "in the maps")]
    for row in seen.rows:
        used = "no: it is before the last stage"
        if row.layer is None:
            used = f"no: {row.why_not}"
        elif row.layer.output in maps.layers:
            used = "yes"
        rows.append((*cells(row)[:4], used))
    pooling = None if seen.reading is None else seen.reading.pooling
    of = "" if maps.layers else f", of {said(next(iter(explained.derivatives[0].gradients)))}"
    return [
        *(aligned(rows) if seen.rows else ["attention: none was found"]),
        *([f"logits read the tokens by: {read_by(seen.layers, pooling)}"] if seen.layers else []),
        f"maps: {', '.join(maps.names)}, of {maps.grid[0]} x {maps.grid[1]} patches{of}",
        *(f"not {name}: {reason}" for name, reason in explained.why_not.items()),
    ]


def _proved(off: float, written: Written) -> list[str]:
    return [
        f"gradients: within {off:.0e} of finite differences in float64",
        f"outputs of the file: within {written.apart:.0e} of what it gives, relative",
    ]


def _use(graph: _Graph, out: Path, written: Written) -> list[str]:
    rows, columns = graph.size
    where = f"weights in {written.data.name} beside it" if written.data else "weights within"
    return [
        f"it takes {graph.model.graph.inputs[0].name} (batch, 3, {rows}, {columns}) and {CLASS_INDEX} (batch, k)",
        f"written: {out}, {where}",
    ]

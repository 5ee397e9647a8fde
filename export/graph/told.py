"""A grid that the user tells, for attention whose tokens the graph says no place of."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from export.graph.attention import Found, find
from export.graph.evaluate import evaluate
from export.graph.labels import NOWHERE, Cells, Frame, Labels, constant_along
from export.graph.places import Places
from saccade.errors import DataError
from saccade.manifest import AttentionLayer

Grid = tuple[int, int]

_SCATTERS = ("ScatterElements", "ScatterND")
"""They may put any number of tokens in the place of others."""


def tell(model: ir.Model, places: Places, grid: Grid, among: Collection[ir.Value] | None = None) -> list[Found]:
    """The attention layers, some of those without places having the grid now, as far as they are `among` these values.

    These are the layers with as many tokens as the last of them, what the grid leaves being special and first, and
    those with as many as the grid has cells. Of a layer with any other number, as of an earlier stage, what the grid
    leaves may be patches: it keeps its reason. One of which the graph says otherwise has that for a reason.
    """
    found = find(model, places)
    waiting = [one for one in found if may_be_told(one, among)]
    cells = grid[0] * grid[1]
    counts = {cells, *(max(cells, one.tokens[0]) for one in waiting[-1:])}
    asked: dict[ir.Value, str | None] = {}
    """Why each of them does not have the grid."""
    while first := next((one for one in waiting if one.tokens[0] in counts and one.weights not in asked), None):
        asked[first.weights] = reason = _contradiction(model, places, first, grid)
        if reason is not None:
            continue
        places.tell(model, first.weights, first.rank - (1 if first.transposed else 2), grid)
        found = find(model, places)  # what hangs on it may have its places by that
        waiting = [one for one in found if may_be_told(one, among)]
    return [dataclasses.replace(one, against=asked.get(one.weights)) for one in found]


def _contradiction(model: ir.Model, places: Places, found: Found, grid: Grid) -> str | None:
    """What the graph says against such a grid of the layer: where its tokens were when their places were last known,
    or that nothing stands beside its patches by which there could be so many special tokens. None: nothing.
    """
    tokens = found.tokens[0]
    special = tokens - grid[0] * grid[1]
    joined: int | None = 0
    for node in _before(model, found.weights):
        known = next(_grids([*_scattered(node, places), *_labels_of(node.outputs, places)], tokens), None)
        if known is not None:
            return _against(*known, grid)
        more = _joins(node, places, tokens if joined is None else tokens - joined)
        joined = None if joined is None or more is None else joined + more
    if joined is None or special <= joined:
        return None
    return (
        f"{special} of its {tokens} tokens would be special, and the graph puts {joined or 'none'} beside its patches"
    )


def _against(frame: Frame, row: Cells, grid: Grid) -> str | None:
    """What tokens whose labels are known say against a grid. None: nothing."""
    tokens, special = len(row), len(row) - frame.cells
    known = "where their places were last known"
    if (frame.rows, frame.columns) != grid:
        return f"its {tokens} tokens are {frame.rows} x {frame.columns}{f' + {special}' if special else ''} {known}"
    if not np.array_equal(row[row >= 0], np.arange(frame.cells)):
        return f"its patches do not stand row by row {known}, which --grid takes for granted"
    if (row[:special] >= 0).any():
        return f"its special tokens do not stand first {known}, which --grid takes for granted"
    return None


def _before(model: ir.Model, value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that it is made by, the last first."""
    needed = {value}
    for node in reversed(list(model.graph)):
        if not needed.isdisjoint(node.outputs):
            needed.update(one for one in node.inputs if one is not None)
            yield node


def _labels_of(values: Iterable[ir.Value | None], places: Places) -> list[Labels]:
    return [places.labels[one] for one in values if one is not None and one in places.labels]


def _grids(values: Sequence[Labels], tokens: int) -> Iterator[tuple[Frame, Cells]]:
    """Of values with so many tokens along an axis, the grid that these are, each cell once, if it is one of rows; and
    the label of each token of the first picture.
    """
    for labels in values:
        cells, frame = labels.cells, labels.frame
        varied = [axis for axis in range(cells.ndim) if not constant_along(cells, axis)]
        if len(varied) > 2 or min(frame.rows, frame.columns) == 1:  # pictures and tokens
            continue
        for axis in [axis for axis in varied if cells.shape[axis] == tokens]:
            row = np.moveaxis(cells, axis, 0).reshape(tokens, -1)[:, 0]
            if np.array_equal(np.sort(row[row >= 0]), np.arange(frame.cells)):
                yield frame, row


def _scattered(node: ir.Node, places: Places) -> list[Labels]:
    """Of a node that puts tokens in the place of others (`y[:, 1:] = patches`), the labels of what it gives: those of
    what it puts there, and nowhere what it leaves.
    """
    if node.op_type not in _SCATTERS or node.domain:
        return []
    indices, put = places.constant(node.inputs[1]), _labels_of(node.inputs[2:], places)
    if indices is None or not put:
        return []
    left = np.full(places.shape_of(node.outputs[0]), NOWHERE)
    return [Labels(put[0].frame, evaluate(node, [left, indices, put[0].cells])[0])]


def _joins(node: ir.Node, places: Places, tokens: int) -> int | None:
    """How many of so many tokens it puts beside others at the most; None: any number. Parts of another axis that all
    hang on the picture and have one length are halves of channels (rotary positions), or patches that are merged.
    """
    if node.domain:
        return None
    if node.op_type in _SCATTERS:
        return _left(node, places)
    if node.outputs[0] not in places.labels or node.op_type not in ("Concat", "Pad"):
        return 0
    shape = places.shape_of(node.outputs[0])
    if node.op_type == "Pad":
        return max(sum(shape) - sum(places.shape_of(node.inputs[0])), 0)
    axis = node.attributes["axis"].as_int()
    lengths = [places.shape_of(one)[axis] for one in node.inputs]
    of_picture = [length for length, one in zip(lengths, node.inputs, strict=True) if one in places.labels]
    alike = len(set(lengths)) == 1 and of_picture == lengths
    return 0 if alike and shape[axis] != tokens else shape[axis] - max(of_picture)


def _left(node: ir.Node, places: Places) -> int | None:
    """How many tokens stand beside others behind a node that puts some in the place of others, at the most: those that
    it leaves, those that it puts there, or the more of them, as the ones, the others or both hang on the picture.
    """
    into, indices, put = node.inputs[0], places.constant(node.inputs[1]), node.inputs[2]
    if indices is None or node.outputs[0] not in places.labels:
        return None
    left = evaluate(node, [np.ones(places.shape_of(into)), indices, np.zeros(places.shape_of(put))])[0]
    varied = [axis for axis in range(left.ndim) if not constant_along(left, axis)]
    if len(varied) != 1:
        return None
    stay = int(left.sum(varied[0]).flat[0])
    gone = left.shape[varied[0]] - stay
    return max([stay] * (put in places.labels) + [gone] * (into in places.labels))


def may_be_told(found: Found, among: Collection[ir.Value] | None) -> bool:
    """Whether the grid of a layer is all that is not known of it."""
    return found.why_not is None and found.cells is None and (among is None or found.weights in among)


def check_taken(grid: Grid, layers: Sequence[AttentionLayer], waiting: Sequence[str], others: Sequence[str]) -> None:
    """Raises DataError where a grid that was told is that of none of the layers. Why some are none: of those whose
    grid is not found, and of others.
    """
    own = [layer.windows.picture if layer.windows else layer.grid for layer in layers]
    if grid in own or any(layer.grid == grid for layer in layers):
        return
    said = " and ".join(f"{rows} x {columns}" for rows, columns in dict.fromkeys(own))
    reasons = [*([f"the graph itself says {said}"] if said else []), *(waiting[-1:] or others[:1])]
    if not layers and not waiting:
        reasons.insert(0, "there is no layer whose grid is not found")
    raise DataError(f"--grid {grid[0]}x{grid[1]}: {'; '.join(reasons)}")

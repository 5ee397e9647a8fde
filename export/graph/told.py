"""A grid that the user tells, for attention whose tokens the graph says no place of."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from export.graph.attention import Found, find
from export.graph.labels import Frame, Labels, constant_along
from export.graph.places import Places
from saccade.errors import DataError
from saccade.manifest import AttentionLayer

Grid = tuple[int, int]

_ANYWHERE = ("ScatterElements", "ScatterND")
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
        known = next(_grids([places.labels[one] for one in node.outputs if one in places.labels], tokens), None)
        if known is not None:
            if (known.rows, known.columns) == grid:
                return None
            others = f" + {tokens - known.cells}" if tokens > known.cells else ""
            return f"its {tokens} tokens are {known.rows} x {known.columns}{others} where their places were last known"
        joined = None if joined is None or node.op_type in _ANYWHERE or node.domain else joined + _joins(node, places)
    if joined is None or special <= joined:
        return None
    return (
        f"{special} of its {tokens} tokens would be special, and the graph puts {joined or 'none'} beside its patches"
    )


def _before(model: ir.Model, value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that it is made by, the last first."""
    needed = {value}
    for node in reversed(list(model.graph)):
        if not needed.isdisjoint(node.outputs):
            needed.update(one for one in node.inputs if one is not None)
            yield node


def _grids(values: Sequence[Labels], tokens: int) -> Iterator[Frame]:
    """Of values with so many tokens along an axis, the grid that these are, each cell once, if it is one of rows."""
    for labels in values:
        cells, frame = labels.cells, labels.frame
        varied = [axis for axis in range(1, cells.ndim) if not constant_along(cells, axis)]
        if len(varied) == 1 and cells.shape[varied[0]] == tokens and min(frame.rows, frame.columns) > 1:
            row = np.moveaxis(cells[0], varied[0] - 1, 0).reshape(tokens, -1)[:, 0]
            if np.array_equal(np.sort(row[row >= 0]), np.arange(frame.cells)):
                yield frame


def _joins(node: ir.Node, places: Places) -> int:
    """How many tokens it puts beside others at the most. Parts that all hang on the picture and have one length are
    halves of channels (rotary positions), or patches that are merged.
    """
    if node.outputs[0] not in places.labels or node.op_type not in ("Concat", "Pad"):
        return 0
    shape = places.shape_of(node.outputs[0])
    if node.op_type == "Pad":
        return max(sum(shape) - sum(places.shape_of(node.inputs[0])), 0)
    axis = node.attributes["axis"].as_int()
    lengths = [places.shape_of(one)[axis] for one in node.inputs]
    of_picture = [length for length, one in zip(lengths, node.inputs, strict=True) if one in places.labels]
    return 0 if len(set(lengths)) == 1 and of_picture == lengths else shape[axis] - max(of_picture)


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

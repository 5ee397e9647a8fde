"""A grid that the user tells, for attention whose tokens the graph says no place of."""

from collections.abc import Collection, Sequence

import onnx_ir as ir

from export.graph.attention import Found, find
from export.graph.places import Places
from saccade.errors import DataError
from saccade.manifest import AttentionLayer

Grid = tuple[int, int]


def tell(model: ir.Model, places: Places, grid: Grid, among: Collection[ir.Value] | None = None) -> list[Found]:
    """The attention layers, some of those without places having the grid now, as far as they are `among` these values.

    These are the layers with as many tokens as the last of them, what the grid leaves being special and first, and
    those with as many as the grid has cells. Of a layer with any other number, as of an earlier stage, what the grid
    leaves may be patches: it keeps its reason.
    """
    found = find(model, places)
    waiting = _without_places(found, among)
    cells = grid[0] * grid[1]
    counts = {cells, *(max(cells, one.tokens[0]) for one in waiting[-1:])}
    asked: set[ir.Value] = set()
    while first := next((one for one in waiting if one.tokens[0] in counts and one.weights not in asked), None):
        asked.add(first.weights)
        places.tell(model, first.weights, first.rank - (1 if first.transposed else 2), grid)
        found = find(model, places)  # what hangs on it may have its places by that
        waiting = _without_places(found, among)
    return found


def _without_places(found: Sequence[Found], among: Collection[ir.Value] | None) -> list[Found]:
    return [one for one in found if one.why_not is None and one.cells is None
            and (among is None or one.weights in among)]  # fmt: skip


def check_taken(grid: Grid, layers: Sequence[AttentionLayer], unused: Sequence[str]) -> None:
    """Raises DataError where a grid that was told is that of none of the layers; `unused` says why others are none."""
    own = [layer.windows.picture if layer.windows else layer.grid for layer in layers]
    if grid in own or any(layer.grid == grid for layer in layers):
        return
    said = " and ".join(f"{rows} x {columns}" for rows, columns in dict.fromkeys(own))
    reasons = [*([f"the graph itself says {said}"] if said else []), *unused[:1]]
    if not layers:
        reasons.insert(0, "there is no layer whose grid is not found")
    raise DataError(f"--grid {grid[0]}x{grid[1]}: {'; '.join(reasons)}")

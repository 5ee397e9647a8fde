"""From the labels of an attention layer's queries to its geometry in the words of the manifest."""

import numpy as np

from export.graph.attention import Found
from export.graph.labels import Cells, Frame
from saccade.manifest import AttentionLayer, SpecialTokens, Windows

Geometry = tuple[tuple[int, int], SpecialTokens, Windows | None]


def layer_of(found: Found, output: str, grid: tuple[int, int] | None) -> AttentionLayer | str:
    """The layer under the name of its output, or why it can have none. `grid` is what was told, see `tell`."""
    if found.why_not is not None:
        return found.why_not
    geometry = _unknown(found, grid) if found.cells is None else _read(found)
    if isinstance(geometry, str):
        return geometry
    cells, special, windows = geometry
    return AttentionLayer(output=output, grid=cells, heads=found.heads, special_tokens=special, windows=windows)


def _unknown(found: Found, grid: tuple[int, int] | None) -> str:
    if grid is None:
        return "nothing says where its tokens lie on the picture: give its grid"
    if found.against is not None:
        return found.against
    asked, tokens = f"the {grid[0]} x {grid[1]} of the grid asked for", found.tokens[0]
    if tokens < grid[0] * grid[1]:
        return f"its {tokens} tokens are fewer than {asked}"
    return f"its {tokens} tokens are more than {asked}, and not as many as the last layer's"


def _read(found: Found) -> Geometry | str:
    assert found.cells is not None
    assert found.frame is not None
    if len(found.cells) > 1:
        return _windows(found.cells, found.frame)
    row = found.cells[0]
    patches = row[row >= 0]
    first, last = row[: len(row) - len(patches)], row[len(patches) :]
    place = "first" if (first < 0).all() else "last" if (last < 0).all() else None
    if place is None:
        return "special tokens stand between its patches"
    frame = found.frame
    grid = _even(patches, frame)
    if grid is None:
        return (f"its {len(patches)} patches are not the {frame.rows} x {frame.columns} of the grid before it, "
                "row by row")  # fmt: skip
    special = SpecialTokens.model_validate({"count": len(row) - len(patches), "place": place})
    return grid, special, None


def _even(patches: Cells, frame: Frame) -> tuple[int, int] | None:
    """The grid of patches that stand row by row: all of the frame's, or each second, third, … of them (LeViT)."""
    rows, columns = np.unique(patches // frame.columns), np.unique(patches % frame.columns)
    for cells, length in ((rows, frame.rows), (columns, frame.columns)):
        if not np.array_equal(cells, np.arange(0, length, cells[1] if len(cells) > 1 else length)):
            return None
    whole = rows[:, None] * frame.columns + columns
    return (len(rows), len(columns)) if np.array_equal(patches, whole.ravel()) else None


def _windows(cells: Cells, frame: Frame) -> Geometry | str:
    """Tries each shape that windows of so many tokens, and so many windows, can have."""
    count, tokens = cells.shape
    for rows, columns in _factors(tokens):
        for down, across in _factors(count):
            for windows in _candidates(cells, frame, (rows, columns), (down, across)):
                if np.array_equal(window_cells(windows, (rows, columns)), cells):
                    return (rows, columns), SpecialTokens(), windows
    return (f"its {count} windows of {tokens} tokens do not lie on the {frame.rows} x {frame.columns} patches as "
            "blocks or interleaved")  # fmt: skip


def _candidates(cells: Cells, frame: Frame, grid: tuple[int, int], count: tuple[int, int]) -> list[Windows]:
    picture = (frame.rows, frame.columns)
    candidates = []
    if grid[0] * count[0] >= frame.rows and grid[1] * count[1] >= frame.columns:
        shift = divmod(int(cells[0, 0]), frame.columns) if cells[0, 0] >= 0 else (0, 0)
        candidates.append(Windows(count=count, picture=picture, layout="blocks", shift=shift))
    if (grid[0] * count[0], grid[1] * count[1]) == picture:
        candidates.append(Windows(count=count, picture=picture, layout="interleaved"))
    return candidates


def window_cells(windows: Windows, grid: tuple[int, int]) -> Cells:
    """(windows, tokens): the cell of the picture under each token as `Windows` defines it; -1 is padding."""
    (down, across), (rows, columns) = windows.count, grid
    i, j, r, c = np.meshgrid(np.arange(down), np.arange(across), np.arange(rows), np.arange(columns), indexing="ij")
    if windows.layout == "blocks":
        row = (i * rows + r + windows.shift[0]) % (down * rows)
        column = (j * columns + c + windows.shift[1]) % (across * columns)
    else:
        row, column = r * down + i, c * across + j
    inside = (row < windows.picture[0]) & (column < windows.picture[1])
    cells = np.where(inside, row * windows.picture[1] + column, -1)
    return cells.reshape(down * across, rows * columns)


def _factors(number: int) -> list[tuple[int, int]]:
    """All (a, b) with a * b = number."""
    return [(first, number // first) for first in range(1, number + 1) if number % first == 0]

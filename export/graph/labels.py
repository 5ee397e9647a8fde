"""Labels: one for each number of a tensor, the cell of a grid that the number is about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOWHERE = -1
"""Label of what is about no place, or about all of them. Below it are the special tokens: -2, -3, …"""

Cells = NDArray[np.int64]


@dataclass(frozen=True)
class Frame:
    """A grid that labels refer to. `order` rises along the graph; 0 is the frame of what is nowhere."""

    rows: int
    columns: int
    order: int

    @property
    def cells(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Labels:
    """One label a number, in the shape of the value: picture * frame.cells + row * columns + column."""

    frame: Frame
    cells: Cells

    @property
    def shape(self) -> tuple[int, ...]:
        return self.cells.shape


def nowhere(shape: tuple[int, ...]) -> Labels:
    return Labels(Frame(1, 1, 0), np.broadcast_to(np.int64(NOWHERE), shape))


def constant_along(cells: NDArray[Any], axis: int) -> bool:
    """Whether all slices across `axis` are equal."""
    return cells.strides[axis] == 0 or bool((cells == cells.take([0], axis)).all())


def _kept(parts: Sequence[Labels], shape: tuple[int, ...], carried: bool) -> Frame:
    """Which of several frames an operation on their numbers is in.

    Where a convolution among neighbours is added to what it was taken of (the MLPs of PVT V2 and SegFormer), the tokens
    stay those that they were: a residual stream carries each at its place, whatever of others is added to it, as it
    does through attention. So then of frames of one size, whose places lie on each other one by one, it is the oldest.
    """
    counts = [len(np.unique(part.cells[part.cells >= 0])) for part in parts]
    finest = [part for part, count in zip(parts, counts, strict=True) if count == max(counts)]
    oldest, newest = (which((part.frame for part in finest), key=lambda frame: frame.order) for which in (min, max))
    patches = [np.broadcast_to(np.maximum(part.cells, NOWHERE), shape) for part in finest]
    sizes = {(part.frame.rows, part.frame.columns) for part in finest}
    alike = len(sizes) == 1 and all(np.array_equal(cells, patches[0]) for cells in patches)
    return oldest if alike and carried else newest


class Grids:
    """The frames of one graph, and what becomes of labels where numbers of several places meet."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self._frames = 0
        self._specials: dict[Frame, int] = {}

    def fresh(self, shape: tuple[int, ...]) -> Labels:
        """(batch, channels, rows, columns), each place a cell of a new frame; what has another rank is nowhere."""
        if len(shape) != 4 or shape[0] != self.batch or shape[2] * shape[3] == 1:
            return nowhere(shape)
        frame = self._frame(shape[2], shape[3])
        cells = np.arange(self.batch * frame.cells).reshape(self.batch, 1, frame.rows, frame.columns)
        return Labels(frame, np.broadcast_to(cells, shape))

    def told(self, shape: tuple[int, ...], axis: int, grid: tuple[int, int]) -> Labels:
        """(batch, …): tokens along `axis` are the cells of a new frame row by row, behind special ones."""
        frame = self._frame(*grid)
        special = shape[axis] - frame.cells
        self._specials[frame] = special
        row = np.concatenate([NOWHERE - 1 - np.arange(special), np.arange(frame.cells)])
        pictures = frame.cells * np.arange(self.batch)[:, None]
        cells = np.where(row < 0, row, row + pictures).reshape(
            [length if at in (0, axis) else 1 for at, length in enumerate(shape)]
        )
        return Labels(frame, np.broadcast_to(cells, shape))

    def merged(self, labels: Labels, axes: tuple[int, ...]) -> Labels:
        """What a sum along `axes` is about; they stay, with length 1.

        A number about several cells is about one cell of a coarser frame: first rows and first columns, in order.
        """
        cells, frame = labels.cells, labels.frame
        if all(constant_along(cells, axis) for axis in axes):
            return Labels(frame, cells[tuple(slice(0, 1 if at in axes else None) for at in range(cells.ndim))])
        beyond = np.iinfo(np.int64).max
        picture = np.where(cells < 0, beyond, cells // frame.cells).min(axes, keepdims=True)
        row = np.where(cells < 0, beyond, cells % frame.cells // frame.columns).min(axes, keepdims=True)
        column = np.where(cells < 0, beyond, cells % frame.columns).min(axes, keepdims=True)
        about = picture != beyond
        rows, columns = np.unique(row[about]), np.unique(column[about])
        if len(rows) * len(columns) <= 1:
            return nowhere(row.shape)
        coarse = self._frame(len(rows), len(columns))
        found = picture * coarse.cells + np.searchsorted(rows, row) * coarse.columns + np.searchsorted(columns, column)
        return Labels(coarse, np.where(about, found, NOWHERE))

    def joined(self, parts: Sequence[Labels], shape: tuple[int, ...], *, carried: bool = False) -> Labels:
        """Of an operation on each number: the labels of the finest frame, the newest of several; of a sum whose oldest
        part is `carried` through it, see `_kept`.

        A patch goes before a special token, and that before nowhere; two patches, or two special tokens, are nowhere.
        """
        placed = [part for part in parts if part.frame.order]
        if not placed:
            return nowhere(shape)
        if len({part.frame for part in placed}) > 1:
            frame = _kept(placed, shape, carried)
            placed = [part for part in placed if part.frame == frame]
        result = np.broadcast_to(placed[0].cells, shape)
        for part in placed[1:]:
            cells = np.broadcast_to(part.cells, shape)
            if not np.array_equal(result, cells):
                low, high = np.minimum(result, cells), np.maximum(result, cells)
                clash = (low != high) & ((low >= 0) | ((low < NOWHERE) & (high < NOWHERE)))
                place = np.where((low < NOWHERE) & (high == NOWHERE), low, high)
                result = np.where(clash, NOWHERE, place)
        return Labels(placed[0].frame, result)

    def concatenated(self, parts: Sequence[Labels | NDArray[Any]], axis: int) -> Labels:
        """Side by side along `axis`. Constants beside places are special tokens, each with a number of its own, and so
        are special tokens of another grid.
        """
        placed = [part for part in parts if isinstance(part, Labels) and part.frame.order]
        if not placed:
            length = sum(part.shape[axis] for part in parts)
            return nowhere((*parts[0].shape[:axis], length, *parts[0].shape[axis + 1 :]))
        frame = max((part.frame for part in placed), key=lambda frame: frame.order)
        blocks: list[Cells] = []
        for part in parts:
            if isinstance(part, Labels) and (part.frame == frame or not (part.cells < NOWHERE).all()):
                blocks.append(part.cells if part.frame == frame else np.full(part.shape, NOWHERE))
                continue
            count = part.shape[axis]
            taken = self._specials.get(frame, 0)
            self._specials[frame] = taken + count
            numbers = (NOWHERE - 1 - taken - np.arange(count)).reshape(count, *[1] * (len(part.shape) - axis - 1))
            blocks.append(np.broadcast_to(numbers, part.shape))
        return Labels(frame, np.concatenate(blocks, axis))

    def _frame(self, rows: int, columns: int) -> Frame:
        self._frames += 1
        return Frame(rows, columns, self._frames)

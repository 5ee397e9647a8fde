"""The geometry promise: what lies under a cell on the original is what the model saw in that cell."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.decode import decode
from saccade.geometry import Region, cell, region
from saccade.manifest import Preprocessing
from saccade.preprocess import resize

SIZES = [(640, 480), (480, 640), (333, 257), (401, 1200), (64, 64), (1, 65500), (65500, 1), (1, 1), (7, 5)]


def spec(
    fit: str, height: int = 32, width: int = 32, edge: int | None = None, to: tuple[int, int] | None = None
) -> Preprocessing:
    values: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "height": height, "width": width, "fit": fit}
    if fit == "crop":
        return Preprocessing(**values, shortest_edge=edge or max(height, width))
    return Preprocessing(**values, stretch_to=to)


SPECS = [
    spec("stretch"),
    spec("stretch", 16, 24),
    spec("stretch", 16, 24, to=(20, 33)),
    spec("crop"),
    spec("crop", 32, 32, 37),
    spec("crop", 24, 40, 48),
    spec("crop", 40, 24, 41),
]


@pytest.mark.parametrize(
    ("size", "asked", "expected"),
    [
        # the shorter side becomes 32: scale 15, so 42 x 32 (640 / 15 = 42.67, cut); (42 - 32) // 2 = 5 columns go
        ((640, 480), spec("crop"), (5 * 640 / 42, 0.0, 32 * 640 / 42, 480.0)),
        ((480, 640), spec("crop"), (0.0, 5 * 640 / 42, 480.0, 32 * 640 / 42)),
        # 256, then the middle 224: 16 of 256 on each side of a square
        ((512, 512), spec("crop", 224, 224, 256), (32.0, 32.0, 448.0, 448.0)),
        ((512, 512), spec("crop"), (0.0, 0.0, 512.0, 512.0)),
        ((640, 480), spec("stretch"), (0.0, 0.0, 640.0, 480.0)),
        # stretched to 256 x 256, then the middle 224: 16 of 256 go on each side
        ((640, 480), spec("stretch", 224, 224, to=(256, 256)), (40.0, 30.0, 560.0, 420.0)),
        ((640, 480), spec("stretch", 32, 32, to=(32, 32)), (0.0, 0.0, 640.0, 480.0)),
        ((30, 20), spec("crop", 10, 20, 20), (5.0, 5.0, 20.0, 10.0)),
    ],
)
def test_the_region_is_what_resize_and_crop_leave(
    size: tuple[int, int], asked: Preprocessing, expected: tuple[float, ...]
) -> None:
    """By hand, from the words of the manifest."""
    assert region(*size, asked) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("asked", SPECS)
@pytest.mark.parametrize("size", SIZES)
def test_the_region_lies_on_the_picture_and_is_not_empty(size: tuple[int, int], asked: Preprocessing) -> None:
    """An overlay drawn from the answer never leaves the picture."""
    seen = region(*size, asked)
    assert seen.left >= 0
    assert seen.top >= 0
    assert seen.width > 0
    assert seen.height > 0
    assert np.float32(seen.left + seen.width) <= size[0]
    assert np.float32(seen.top + seen.height) <= size[1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("asked", SPECS)
def test_the_region_is_in_the_middle(size: tuple[int, int], asked: Preprocessing) -> None:
    """Within one pixel of the resized picture: crops start at a whole one."""
    seen = region(*size, asked)
    for start, extent, whole, pixels in (
        (seen.left, seen.width, size[0], asked.width),
        (seen.top, seen.height, size[1], asked.height),
    ):
        assert abs((whole - start - extent) - start) <= extent / pixels + 1e-9


@pytest.mark.parametrize("grid", [(1, 1), (4, 6), (14, 14), (3, 7)])
def test_cells_tile_the_region(grid: tuple[int, int]) -> None:
    """No gap, no overlap, nothing outside: each cell starts where its neighbour ends."""
    seen = Region(10.5, 3.25, 301.0, 199.5)
    rows, columns = grid
    for row in range(rows):
        for column in range(columns):
            here = cell(seen, grid, row, column)
            right = cell(seen, grid, row, column + 1).left if column + 1 < columns else seen.left + seen.width
            below = cell(seen, grid, row + 1, column).top if row + 1 < rows else seen.top + seen.height
            assert here.left + here.width == pytest.approx(right, abs=1e-9)
            assert here.top + here.height == pytest.approx(below, abs=1e-9)
    assert cell(seen, grid, 0, 0)[:2] == seen[:2]


@pytest.mark.parametrize("place", [(-1, 0), (0, -1), (4, 0), (0, 6)])
def test_a_cell_outside_of_the_grid_is_an_error(place: tuple[int, int]) -> None:
    with pytest.raises(IndexError, match=r"4 x 6"):
        cell(Region(0, 0, 10, 10), (4, 6), *place)


def stored(upright: Image.Image, orientation: int) -> bytes:
    """As a camera stores it: 6 lies on its left side, 8 on its right, 3 on its head."""
    turn = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    method = turn[orientation]
    picture = upright if method is None else upright.transpose(method)
    block = Image.Exif()
    block[274] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=block)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(
    "asked", [spec("stretch"), spec("stretch", 16, 24), spec("crop", 32, 32, 36), spec("crop", 16, 24)]
)
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (999, 333)])
def test_what_lies_in_a_cell_is_what_the_model_saw_there(
    size: tuple[int, int], asked: Preprocessing, orientation: int
) -> None:
    """A red square painted into one cell's rectangle of the original is red in that cell of the input, and only there.

    Through EXIF, resize and crop; for landscape, portrait, and inputs that are not square.
    """
    rows, columns = asked.height // 8, asked.width // 8
    seen = region(*size, asked)
    for row, column in ((0, 0), (rows - 1, columns - 1), (rows // 2, 0), (1, columns - 1)):
        rectangle = cell(seen, (rows, columns), row, column)
        original = Image.new("RGB", size, (0, 0, 255))
        edges = (rectangle.left, rectangle.top, rectangle.left + rectangle.width, rectangle.top + rectangle.height)
        left, top, right, bottom = (round(edge) for edge in edges)
        original.paste((255, 0, 0), (left, top, right, bottom))
        red = resize(decode(stored(original, orientation), (255, 255, 255)), asked)[..., 0].astype(float) / 255
        share = red.reshape(rows, 8, columns, 8).mean((1, 3))
        assert np.unravel_index(share.argmax(), share.shape) == (row, column)
        assert share[row, column] > 0.9
        assert np.delete(share.ravel(), row * columns + column).max() < 0.12

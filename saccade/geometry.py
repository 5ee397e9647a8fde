"""Where the model looked, in pixels of the upright original: the one place that knows what crop and resize leave out.

`preprocess` resizes exactly the region computed here, so that an answer's geometry cannot drift from the pixels.
"""

from typing import NamedTuple

from saccade.manifest import Preprocessing


class Region(NamedTuple):
    """A rectangle on the upright original, in pixels; fractions are meant."""

    left: float
    top: float
    width: float
    height: float


def region(width: int, height: int, spec: Preprocessing) -> Region:
    """The part of an upright `width` x `height` picture that the model sees.

    Where something is cropped this equals what "resize, then crop the middle" leaves, with the roundings of the
    field (torchvision, transformers: the long side is truncated to whole pixels, the crop starts at a whole pixel).
    """
    if spec.fit == "stretch":
        resized_height, resized_width = spec.stretch_to or (spec.height, spec.width)
        if (resized_height, resized_width) == (spec.height, spec.width):
            return Region(0.0, 0.0, float(width), float(height))
    else:
        edge = spec.shortest_edge
        assert edge is not None  # the manifest's validator guarantees it for "crop"
        short = min(width, height)
        resized_width = max(edge * width // short, spec.width)
        resized_height = max(edge * height // short, spec.height)
    scale_x, scale_y = width / resized_width, height / resized_height
    left = (resized_width - spec.width) // 2 * scale_x
    top = (resized_height - spec.height) // 2 * scale_y
    # min(): the last bit of a product must not put the box outside of the picture
    return Region(left, top, min(spec.width * scale_x, width - left), min(spec.height * scale_y, height - top))


def cell(seen: Region, grid: tuple[int, int], row: int, column: int) -> Region:
    """The rectangle of one grid cell on the upright original; the grid spans the region evenly."""
    rows, columns = grid
    if not (0 <= row < rows and 0 <= column < columns):
        raise IndexError(f"cell ({row}, {column}) is outside of the grid {rows} x {columns}")
    cell_width, cell_height = seen.width / columns, seen.height / rows
    return Region(seen.left + column * cell_width, seen.top + row * cell_height, cell_width, cell_height)

"""A map over a photograph: where it is hot the picture reddens, what the model did not see is dark."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from saccade.geometry import Region, cell, region
from saccade.manifest import Preprocessing
from saccade.overlay import colours, overlay

CROP = Preprocessing(height=16, width=16, shortest_edge=16, mean=(0, 0, 0), std=(1, 1, 1))
STRETCH = Preprocessing(height=16, width=16, fit="stretch", mean=(0, 0, 0), std=(1, 1, 1))


def one_hot(grid: tuple[int, int], row: int, column: int) -> NDArray[np.float32]:
    values = np.zeros(grid, np.float32)
    values[row, column] = 0.03
    return values


def redness(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of red among what a pixel shines."""
    return pixels[..., 0] / (pixels.sum(-1) + 1.0)


@pytest.mark.parametrize("spec", [CROP, STRETCH])
@pytest.mark.parametrize("size", [(320, 240), (240, 320), (161, 97)])
@pytest.mark.parametrize("place", [(0, 0), (3, 5), (1, 4), (2, 0)])
def test_the_hottest_cell_is_the_reddest_part(
    place: tuple[int, int], size: tuple[int, int], spec: Preprocessing
) -> None:
    """In the cell's own rectangle on the photograph, through the crop."""
    grid = (4, 6)
    seen = region(*size, spec)
    drawn = np.asarray(overlay(Image.new("RGB", size, (120, 120, 120)), one_hot(grid, *place), seen))
    hot = cell(seen, grid, *place)
    row, column = np.unravel_index(redness(drawn).argmax(), drawn.shape[:2])
    assert hot.left - 1 <= column <= hot.left + hot.width
    assert hot.top - 1 <= row <= hot.top + hot.height


@pytest.mark.parametrize("size", [(320, 240), (240, 320)])
def test_what_the_model_did_not_see_is_darkened(size: tuple[int, int]) -> None:
    """To less than half of its brightness, outside of the region and nowhere else."""
    seen = region(*size, CROP)
    drawn = np.asarray(overlay(Image.new("RGB", size, (200, 200, 200)), np.zeros((2, 2), np.float32), seen))
    left, top = round(seen.left), round(seen.top)
    inside = np.zeros(drawn.shape[:2], bool)
    inside[top : round(seen.top + seen.height), left : round(seen.left + seen.width)] = True
    assert drawn[~inside].max() < 100
    assert drawn[inside].min() >= 199


def test_a_picture_seen_whole_has_no_dark_part_and_no_frame() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    drawn = overlay(picture, np.zeros((3, 3), np.float32), region(60, 40, STRETCH))
    assert np.array_equal(np.asarray(drawn), np.asarray(picture))


@pytest.mark.parametrize("values", [np.zeros((3, 4)), -np.ones((3, 4)), np.full((3, 4), -1e30), np.zeros((1, 1))])
def test_a_map_without_evidence_leaves_the_picture(values: NDArray[np.float64]) -> None:
    """Zero and negative evidence is nothing to see, and no error."""
    picture = Image.new("RGB", (30, 30), (10, 200, 90))
    drawn = overlay(picture, values.astype(np.float32), region(30, 30, CROP))
    assert np.array_equal(np.asarray(drawn), np.asarray(picture))


def test_only_the_proportions_of_a_map_matter() -> None:
    """A map that sums to 1 over a thousand cells is as visible as one of logits."""
    picture, seen = Image.new("RGB", (64, 64), (90, 90, 90)), Region(0, 0, 64, 64)
    values = np.random.default_rng(0).random((4, 4)).astype(np.float32)
    one, other = (np.asarray(overlay(picture, values * scale, seen)).astype(int) for scale in (1.0, 1e-6))
    assert np.abs(one - other).max() <= 1


@pytest.mark.parametrize("spec", [CROP, STRETCH])
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2), (2, 1), (1, 3), (1, 4), (4, 1), (1, 9), (2, 7), (1, 3000), (3000, 1), (33, 32)]
)
def test_every_size_of_picture_can_be_drawn_on(size: tuple[int, int], spec: Preprocessing) -> None:
    """The output has the picture's size, down to one pixel."""
    picture = Image.new("RGB", size, (50, 60, 70))
    before = picture.tobytes()
    drawn = overlay(picture, one_hot((2, 2), 1, 1), region(*size, spec))
    assert (drawn.size, drawn.mode) == (size, "RGB")
    assert picture.tobytes() == before


def test_colours_go_from_blue_to_red() -> None:
    """Turbo (Mikhailov 2019): its table begins at (48, 18, 59) and ends at (122, 4, 3), green in the middle.

    Its polynomial is farthest from the table at the two ends.
    """
    first, middle, last = colours(np.array([0.0, 0.5, 1.0], np.float32))
    assert np.abs(first - (48, 18, 59)).max() < 32
    assert np.abs(last - (122, 4, 3)).max() < 32
    assert middle.argmax() == 1
    assert colours(np.zeros((5, 4), np.float32)).shape == (5, 4, 3)

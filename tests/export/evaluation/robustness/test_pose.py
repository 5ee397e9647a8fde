"""Rotation, zoom and translation against other implementations, and to the bit where they change nothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.transform import rotate as skimage_rotate

from export.evaluation.robustness.conditions import DEGREES, FACTORS, SHIFTS
from export.evaluation.robustness.pose import rotate, translate, zoom
from export.evaluation.robustness.randomness import generator
from tests.export.evaluation.robustness.conftest import Pixels


def levels_apart(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left.astype(np.float64) - right).max())


def test_no_rotation_zoom_or_translation_is_the_picture(picture: Pixels) -> None:
    """To the bit, whatever its form."""
    np.testing.assert_array_equal(rotate(picture, 0), picture)
    np.testing.assert_array_equal(zoom(picture, 1), picture)
    np.testing.assert_array_equal(translate(picture, 0, generator(0, 0, "translation")), picture)
    assert 0 in DEGREES
    assert 1 in FACTORS
    assert 0 in SHIFTS


def test_the_curves_go_as_far_as_promised() -> None:
    """Rotation from -90 to 90 degrees, zoom from 0.5 to 1.5, translation to a quarter of the side."""
    assert (min(DEGREES), max(DEGREES)) == (-90, 90)
    assert (min(FACTORS), max(FACTORS)) == (0.5, 1.5)
    assert max(SHIFTS) == 0.25


def test_a_quarter_turn_is_exact(pictures: list[Pixels]) -> None:
    """numpy turns anticlockwise too."""
    for picture in pictures:
        np.testing.assert_array_equal(rotate(picture, 90), np.rot90(picture))
        np.testing.assert_array_equal(rotate(picture, -90), np.rot90(picture, -1))


@pytest.mark.parametrize("degrees", [-75, -30, 15, 45])
def test_a_turn_is_that_of_scikit_image(picture: Pixels, degrees: int) -> None:
    """Bilinear, mirrored at the edge."""
    expected = skimage_rotate(picture.astype(np.float64), degrees, order=1, mode="reflect", preserve_range=True)
    assert levels_apart(rotate(picture, degrees), expected) < 0.51


@pytest.mark.parametrize("factor", [1.1, 1.5])
def test_enlarging_is_that_of_torch(picture: Pixels, factor: float) -> None:
    """Bilinear about the middle. Pillow rounds to levels once along each axis."""
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].double()
    grid = F.affine_grid(torch.eye(2, 3, dtype=torch.float64)[None] / factor, list(image.shape), align_corners=False)
    expected = F.grid_sample(image, grid, align_corners=False)[0].permute(1, 2, 0).numpy()
    assert levels_apart(zoom(picture, factor), expected) < 2


def test_reducing_is_that_of_torch(pictures: list[Pixels]) -> None:
    """To a half, with antialiasing; what surrounds it is the picture mirrored."""
    for picture in pictures:
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].double()
        wide = F.pad(image, (20, 20, 20, 20), mode="reflect")  # 72 x 72, so that the kernel meets no edge
        half = F.interpolate(wide, scale_factor=0.5, mode="bilinear", antialias=True)
        expected = half[0, :, 2:-2, 2:-2].permute(1, 2, 0).numpy()
        assert levels_apart(zoom(picture, 0.5), expected) < 2


def test_a_translation_moves_the_whole_picture(picture: Pixels) -> None:
    """In each of four directions, and what comes in is mirrored, as in torch."""
    height, width = picture.shape[:2]
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].double()
    down, right = round(height / 4), round(width / 4)
    wide = F.pad(image, (right, right, down, down), mode="reflect")[0].permute(1, 2, 0).numpy()
    starts = {(0, right), (2 * down, right), (down, 0), (down, 2 * right)}
    expected = {wide[top : top + height, left : left + width].astype(np.uint8).tobytes() for top, left in starts}
    seen = {translate(picture, 0.25, generator(0, index, "translation")).tobytes() for index in range(40)}
    assert seen == expected
    assert len(seen) == 4

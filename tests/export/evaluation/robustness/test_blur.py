"""Blur against scikit-image, torch, and plain loops."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.filters import gaussian

from export.evaluation.robustness import blur
from export.evaluation.robustness.randomness import generator
from tests.export.evaluation.robustness.conftest import Pixels, parts

ANY = generator(0, 0, "blur")


@pytest.mark.parametrize("side", [32, 64])
def test_gaussian_blur_is_that_of_scikit_image(side: int) -> None:
    """The deviation grows with the picture."""
    x = parts(side, side + 3, count=1)[0] / 255
    expected = gaussian(x, sigma=0.7 * side / 32, channel_axis=-1)
    np.testing.assert_allclose(blur.gaussian_blur(x, ANY, 0.7), expected, atol=1e-12)


@pytest.mark.parametrize(("radius", "deviation"), [(0.3, 0.4), (1.0, 0.2), (1.5, 0.1)])
def test_defocus_is_a_convolution_with_a_smoothed_disk(pictures: list[Pixels], radius: float, deviation: float) -> None:
    """The kernel as published, typed anew: a disk of whole pixels, then a Gaussian of 3 x 3; mirrored at the edge."""
    x = torch.from_numpy(pictures[0]).permute(2, 0, 1)[:, None].double() / 255
    along = torch.arange(-4, 5)
    disk = (along[:, None] ** 2 + along**2 <= radius**2).double()
    line = torch.exp(-(torch.arange(-1, 2).double() ** 2) / (2 * deviation**2))
    kernel = F.conv2d(
        (disk / disk.sum())[None, None], (torch.outer(line, line) / line.sum() ** 2)[None, None], padding=1
    )
    expected = F.conv2d(F.pad(x, (4, 4, 4, 4), mode="reflect"), kernel)[:, 0].permute(1, 2, 0)
    np.testing.assert_allclose(
        blur.defocus_blur(pictures[0] / 255, ANY, radius, deviation), expected.numpy(), atol=1e-12
    )


@pytest.mark.parametrize(("degrees", "step"), [(0, (0, 1)), (90, (1, 0)), (-90, (-1, 0))])
def test_motion_is_a_mean_along_a_line(pictures: list[Pixels], degrees: float, step: tuple[int, int]) -> None:
    """By a loop over the pixels, along an axis: half a Gaussian of 2 · 6 + 1 steps, the edge going on."""
    x = pictures[0] / 255
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 2.0**2))
    weights /= weights.sum()
    seen = blur.smear(x, 6, 2.0, degrees)
    for row, column in product((0, 5, 31), repeat=2):
        along = [
            x[np.clip(row + index * step[0], 0, 31), np.clip(column + index * step[1], 0, 31)] for index in range(13)
        ]
        np.testing.assert_allclose(seen[row, column], weights @ np.array(along), atol=1e-6)


def test_motion_goes_up_to_45_degrees_either_way(pictures: list[Pixels]) -> None:
    """The angle is drawn for each picture: each is that of `smear` at an angle from -45 to 45."""
    point = np.zeros((33, 33, 3))
    point[16, 16] = 1
    for index in range(20):
        rows, columns = np.nonzero(blur.motion_blur(point, generator(0, index, "motion_blur"), 9, 2.5)[..., 0] > 1e-3)
        assert columns.max() == 16  # the light comes from the right
        assert (np.abs(rows - 16) <= 16 - columns + 1).all()


def test_zoom_blur_is_a_mean_of_enlargements(pictures: list[Pixels]) -> None:
    """By torch: of the picture, and of itself enlarged by 0 to 11 hundredths."""
    image = torch.from_numpy(pictures[0]).permute(2, 0, 1)[None].double() / 255
    total = image.clone()
    for step in range(12):
        turn = torch.eye(2, 3, dtype=torch.float64)[None] / (1 + step / 100)
        total += F.grid_sample(image, F.affine_grid(turn, list(image.shape), align_corners=False), align_corners=False)
    expected = (total / 13)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(blur.zoom_blur(pictures[0] / 255, ANY, 11), expected, atol=1 / 255)


def test_frosted_glass_gives_each_pixel_a_neighbours_colour() -> None:
    """Where nothing is smoothed: at most one pixel away in each direction, more in a larger picture."""
    for side, reach in ((32, 1), (64, 2)):
        rows, columns = np.indices((side, side))
        place = np.stack([rows, columns, rows], -1) / side  # a picture that says where each colour is from
        seen = blur.glass_blur(place, generator(0, 0, "glass_blur"), 0.05, 1, 1)
        moved = np.abs(seen - place) * side
        assert moved.max() == pytest.approx(reach)
        assert (moved[..., :2].max(-1) > 0).mean() > 0.5

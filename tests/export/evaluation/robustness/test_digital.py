"""What processing does to a picture, against scikit-image and Pillow."""

import io

import numpy as np
import pytest
from PIL import Image
from skimage.color import hsv2rgb, rgb2hsv
from skimage.transform import AffineTransform, warp

from export.evaluation.robustness import digital
from export.evaluation.robustness.randomness import generator
from tests.export.evaluation.robustness.conftest import Pixels

ANY = generator(0, 0, "digital")


def test_contrast_is_about_the_mean_of_each_channel(picture: Pixels) -> None:
    """The mean stays, the deviation is multiplied."""
    seen = digital.contrast(picture / 255, ANY, 0.15)
    for channel in range(3):
        before = picture[..., channel] / 255
        assert seen[..., channel].mean() == pytest.approx(before.mean())
        assert seen[..., channel].std() == pytest.approx(0.15 * before.std())


@pytest.mark.parametrize(("factor", "amount"), [(0.1, 0), (2.5, 0.2)])
def test_saturation_is_that_of_hsv(picture: Pixels, factor: float, amount: float) -> None:
    """As by scikit-image."""
    hsv = rgb2hsv(picture / 255)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + amount, 0, 1)
    np.testing.assert_allclose(digital.saturate(picture / 255, ANY, factor, amount), hsv2rgb(hsv), atol=1e-6)


def test_elastic_without_displacements_is_an_affine_map(picture: Pixels) -> None:
    """Of three points that move by the numbers drawn; the warp itself by scikit-image."""
    height, width = picture.shape[:2]
    side = min(height, width)
    middle, third = np.array([height // 2, width // 2]), side // 3
    points = np.array([middle + third, [middle[0] + third, middle[1] - third], middle - third], float)
    moved = points + generator(0, 4, "elastic").uniform(-0.08 * side, 0.08 * side, (3, 2))
    back = AffineTransform(dimensionality=2)
    matrix = np.linalg.solve(np.c_[moved[:, ::-1], np.ones(3)], points[:, ::-1]).T  # x, y as scikit-image has them
    back = AffineTransform(matrix=np.r_[matrix, [[0, 0, 1]]])
    expected = warp(picture / 255, back, order=1, mode="reflect")
    seen = digital.elastic(picture / 255, generator(0, 4, "elastic"), 0.0, 0.0, 0.08)
    np.testing.assert_allclose(seen, expected, atol=1e-9)


def test_displacements_are_as_large_as_their_formula_says() -> None:
    """A tenth of the side times the deviation of even noise smoothed by a Gaussian of 0.04 sides: 1 / (2 √π σ √3)."""
    rows, columns = np.indices((32, 32)) / 31
    ramp = np.stack([rows, columns, rows], -1)
    moved = [
        (digital.elastic(ramp, generator(0, index, "elastic"), 0.1, 0.04, 0.0) - ramp)[8:24, 8:24] * 31
        for index in range(100)
    ]
    deviation = 3.2 / (2 * np.pi**0.5 * 1.28) / 3**0.5
    assert np.std(moved) == pytest.approx(deviation, rel=0.06)


def test_pixels_are_means_of_boxes(pictures: list[Pixels]) -> None:
    """By half: every 2 x 2 pixels become their mean."""
    blocks = pictures[0].reshape(16, 2, 16, 2, 3).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(digital.pixelate(pictures[0] / 255, ANY, 0.5) * 255, blocks, atol=1)


@pytest.mark.parametrize("quality", [80, 40])
def test_jpeg_is_a_file_of_that_quality(picture: Pixels, quality: int) -> None:
    """The very levels that Pillow reads back."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file))
    np.testing.assert_array_equal(np.rint(digital.jpeg(picture / 255, ANY, quality) * 255), expected)

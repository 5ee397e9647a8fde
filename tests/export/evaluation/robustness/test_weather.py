"""Weather by its formulas, typed anew."""

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.color import hsv2rgb, rgb2hsv

from export.evaluation.robustness import weather
from export.evaluation.robustness.randomness import generator
from tests.export.evaluation.robustness.conftest import Pixels


def diamond_square(size: int, decay: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Point by point; the edges are joined. Numbers are drawn for all squares' middles, then along the two edges."""
    field, step, reach = np.zeros((size, size)), size, 1e4
    while step >= 2:
        half = step // 2
        corners = [(row, column) for row in range(0, size, step) for column in range(0, size, step)]

        def set_middles(places: list[tuple[int, int]], around: list[tuple[int, int]]) -> None:
            drawn = random.uniform(-reach, reach, (size // step, size // step)).ravel()  # noqa: B023 - called at once
            values = [
                np.mean([field[(row + down) % size, (column + right) % size] for down, right in around])
                for row, column in places
            ]
            for place, value, number in zip(places, values, drawn, strict=True):
                field[place] = value + number

        diagonal = [(-half, -half), (-half, half), (half, -half), (half, half)]
        straight = [(-half, 0), (half, 0), (0, -half), (0, half)]
        set_middles([(row + half, column + half) for row, column in corners], diagonal)
        set_middles([(row, column + half) for row, column in corners], straight)
        set_middles([(row + half, column) for row, column in corners], straight)
        step, reach = half, reach / decay**2
    return (field - field.min()) / (field.max() - field.min())


def test_plasma_is_diamond_square() -> None:
    """Against a loop over the points."""
    seen = weather.plasma(16, 1.75, generator(0, 0, "fog"))
    np.testing.assert_allclose(seen, diamond_square(16, 1.75, generator(0, 0, "fog")), atol=1e-12)
    assert (seen.min(), seen.max()) == (0, 1)


def test_fog_is_light_that_leaves_the_brightest_as_bright(picture: Pixels) -> None:
    """(x + 1.5 plasma) m / (m + 1.5)."""
    x, size = picture / 255, 64 if max(picture.shape) > 32 else 32
    cloud = weather.plasma(size, 1.75, generator(0, 0, "fog"))[: x.shape[0], : x.shape[1], None]
    expected = (x + 1.5 * cloud) * x.max() / (x.max() + 1.5)
    np.testing.assert_allclose(weather.fog(x, generator(0, 0, "fog"), 1.5, 1.75), expected)


def test_snow_without_a_flake_only_whitens(picture: Pixels) -> None:
    """0.8 x + 0.2 max(x, 1.5 grey + 0.5)."""
    x = picture / 255
    grey = 0.299 * x[..., :1] + 0.587 * x[..., 1:2] + 0.114 * x[..., 2:]
    expected = 0.8 * x + 0.2 * np.maximum(x, 1.5 * grey + 0.5)
    seen = weather.snow(x, generator(0, 0, "snow"), -9, 0.3, 1.25, 0.65, 14, 12, 0.8)
    np.testing.assert_allclose(seen, expected)


def test_flakes_add_light_and_fall() -> None:
    """On black, without whitening: what is added is the same turned by half a turn, and streaks are rather upright."""
    seen = weather.snow(np.full((32, 32, 3), -0.5), generator(0, 1, "snow"), 0.1, 0.2, 1, 0.5, 10, 4, 1.0) + 0.5
    np.testing.assert_allclose(seen, seen[::-1, ::-1])
    assert seen.min() >= 0
    light = seen[..., 0]
    assert np.abs(np.diff(light, axis=0)).sum() < np.abs(np.diff(light, axis=1)).sum()


def test_water_lights_up(pictures: list[Pixels]) -> None:
    """It adds its colour where the drops are, at most by its strength, and nothing where none is."""
    for index, picture in enumerate(pictures):
        x = picture / 255
        seen = weather.spatter(x, generator(0, index, "spatter"), 0.65, 0.3, 1.0, 0.69, 0.5, mud=False)
        water = (seen - x) / weather.WATER
        np.testing.assert_allclose(water, water[..., :1].repeat(3, -1), atol=1e-12)
        assert water.max() == pytest.approx(0.5)
        assert water.min() == pytest.approx(0)
        assert (seen == x).all(-1).any()


def test_mud_hides(picture: Pixels) -> None:
    """Under mud there is mud, at its edge a mixture, and elsewhere the picture."""
    x = picture / 255
    seen = weather.spatter(x, generator(0, 3, "spatter"), 0.65, 0.3, 0.7, 0.69, 0.6, mud=True)
    apart = np.abs(weather.MUD - x) > 0.05
    cover = (seen - x)[apart] / (weather.MUD - x)[apart]
    assert cover.max() > 0.8
    assert cover.max() <= 1 + 1e-9
    assert cover.min() >= -1e-9
    assert (seen == x).all(-1).any()


@pytest.mark.parametrize("amount", [0.05, 0.3])
def test_brightness_is_the_value_of_hsv(picture: Pixels, amount: float) -> None:
    """As by scikit-image; black becomes grey."""
    x = picture / 255
    x[0, 0] = 0
    hsv = rgb2hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + amount, 0, 1)
    np.testing.assert_allclose(weather.brightness(x, generator(0, 0, "brightness"), amount), hsv2rgb(hsv), atol=1e-6)

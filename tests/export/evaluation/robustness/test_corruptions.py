"""The set as a whole: five severities of each corruption, fixed by the seed, worse and worse."""

from itertools import pairwise

import numpy as np
import pytest

from export.evaluation.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from export.evaluation.robustness.randomness import generator
from tests.export.evaluation.robustness.conftest import Pixels, parts

DRAWN = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "glass_blur",
    "motion_blur",
    "fog",
    "snow",
    "spatter",
    "elastic",
)
UNEVEN = ("glass_blur", "spatter", "saturate", "elastic")
"""Whose published constants do not go from mild to strong in every step, seen pixel by pixel."""


def psnr(left: Pixels, right: Pixels) -> float:
    return float(10 * np.log10(255**2 / ((left.astype(np.float64) - right) ** 2).mean()))


def test_the_computable_corruptions_of_cifar_10_c_are_there() -> None:
    """All nineteen but frost, which is made of photographs."""
    assert len(CORRUPTIONS) == 18
    assert SEVERITIES == (1, 2, 3, 4, 5)
    assert all(len(corruption.constants) == 5 for corruption in CORRUPTIONS.values())


def test_the_constants_are_the_published_ones() -> None:
    """Those of the paper's make_cifar_c.py, typed anew in its own form: lengths of `elastic` there are in pixels of 32,
    zooms are steps, and mud is 1.
    """
    zooms = [np.arange(1, end, 0.01) for end in (1.06, 1.11, 1.16, 1.21, 1.26)]
    pixels = [(32 * 0, 32 * 0, 32 * 0.08), (32 * 0.05, 32 * 0.2, 32 * 0.07), (32 * 0.08, 32 * 0.06, 32 * 0.06),
              (32 * 0.1, 32 * 0.04, 32 * 0.05), (32 * 0.1, 32 * 0.03, 32 * 0.03)]  # fmt: skip
    published = {
        "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],
        "shot_noise": [500, 250, 100, 75, 50],
        "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
        "speckle_noise": [0.06, 0.1, 0.12, 0.16, 0.2],
        "gaussian_blur": [0.4, 0.6, 0.7, 0.8, 1],
        "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        "glass_blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        "zoom_blur": [len(steps) - 1 for steps in zooms],
        "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        "snow": [(0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
                 (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)],
        "spatter": [(0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0), (0.65, 0.3, 1, 0.69, 0.5, 0),
                    (0.65, 0.1, 0.7, 0.69, 0.6, 1), (0.65, 0.1, 0.5, 0.68, 0.6, 1)],
        "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
        "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
        "saturate": [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
        "elastic": [tuple(length / 32 for length in lengths) for lengths in pixels],
        "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],
        "jpeg": [80, 65, 58, 50, 40],
    }  # fmt: skip
    assert {name: corruption.constants for name, corruption in CORRUPTIONS.items()} == {
        name: tuple(one if isinstance(one, tuple) else (one,) for one in constants)
        for name, constants in published.items()
    }


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_0_is_the_picture(picture: Pixels, name: str) -> None:
    """To the bit."""
    np.testing.assert_array_equal(corrupt(picture, name, 0, generator(0, 0, name)), picture)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_seed_fixes_every_bit(picture: Pixels, name: str) -> None:
    """The picture keeps its form; other seeds, and other pictures' numbers, draw something else."""
    first = corrupt(picture, name, 3, generator(0, 5, name))
    assert (first.dtype, first.shape) == (np.uint8, picture.shape)
    np.testing.assert_array_equal(first, corrupt(picture, name, 3, generator(0, 5, name)))
    for others in ([(seed, 5) for seed in range(1, 9)], [(0, index) for index in range(6, 14)]):
        changed = [(corrupt(picture, name, 3, generator(*other, name)) != first).any() for other in others]
        assert any(changed) == (name in DRAWN)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in UNEVEN])
@pytest.mark.parametrize("size", [(32, 32), (48, 64)], ids=str)
def test_severities_are_worse_and_worse(name: str, size: tuple[int, int]) -> None:
    """Peak signal-to-noise ratio, mean over pictures, falls from one severity to the next."""
    ratios = [
        np.mean([psnr(one, corrupt(one, name, severity, generator(0, index, name)))
                 for index, one in enumerate(parts(*size))])
        for severity in SEVERITIES
    ]  # fmt: skip
    assert all(later < earlier + 0.3 for earlier, later in pairwise(ratios)), ratios
    assert ratios[-1] < ratios[0] - 1


@pytest.mark.parametrize("name", UNEVEN)
def test_the_others_change_the_picture_at_each_severity(pictures: list[Pixels], name: str) -> None:
    """None of them is nothing, and none leaves nothing."""
    for severity in SEVERITIES:
        changed = [corrupt(one, name, severity, generator(0, index, name)) for index, one in enumerate(pictures)]
        assert 10 < np.mean([psnr(*pair) for pair in zip(pictures, changed, strict=True)]) < 35

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

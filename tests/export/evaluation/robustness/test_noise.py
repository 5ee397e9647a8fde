"""Noise has the spread that its formula says, on an even grey."""

import numpy as np
import pytest

from export.evaluation.robustness import noise
from export.evaluation.robustness.randomness import generator

GREY = np.full((200, 200, 3), 0.4)


@pytest.mark.parametrize(
    ("change", "constant", "deviation"),
    [
        (noise.gaussian_noise, 0.08, 0.08),
        (noise.speckle_noise, 0.2, 0.2 * 0.4),
        (noise.shot_noise, 100, (0.4 / 100) ** 0.5),
    ],
)
def test_mean_and_deviation(change: object, constant: float, deviation: float) -> None:
    """Nothing is added on average; within 1 % of the deviation, for 120,000 values."""
    seen = change(GREY, generator(0, 0, "noise"), constant)  # type: ignore[operator]
    assert seen.mean() == pytest.approx(0.4, abs=4 * deviation / 120_000**0.5)
    assert seen.std() == pytest.approx(deviation, rel=0.01)


def test_photons_are_counted() -> None:
    """Shot noise gives whole numbers of them, and none in the dark."""
    seen = noise.shot_noise(np.array([[[0.0, 0.3, 1.0]]]), generator(0, 0, "noise"), 50)
    np.testing.assert_allclose(seen * 50, np.rint(seen * 50))
    assert seen[0, 0, 0] == 0


def test_impulses_are_black_and_white_in_equal_parts() -> None:
    """That share of the values, channel by channel; the others stay as they are."""
    seen = noise.impulse_noise(GREY, generator(0, 0, "noise"), 0.07)
    assert (seen == 0).mean() == pytest.approx(0.035, abs=0.002)
    assert (seen == 1).mean() == pytest.approx(0.035, abs=0.002)
    assert ((seen == 0) | (seen == 1) | (seen == 0.4)).all()

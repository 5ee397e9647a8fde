"""Mixup and cutmix against the papers' formulas, typed anew in float64 and one picture at a time."""

from typing import Any

import numpy as np
import pytest
import torch

from export.mix import Mix, cutmix
from export.recipe import TrainingConfig
from tests.conftest import tiny_recipe
from tests.export.conftest import float64

CLASSES = 5


def config(**training: Any) -> TrainingConfig:
    return tiny_recipe("tiny-cct", **{"epochs": 10, **training}).training


def batch(count: int = 6, height: int = 9, width: int = 14) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, height, width, generator=generator).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, CLASSES, (count,), generator=generator)


def test_mixup_blends_pictures_and_labels_by_the_same_share() -> None:
    """x = l x_i + (1 - l) x_j and the same of the one-hot labels, l from Beta(a, a), j from the batch's other end."""
    images, labels = batch()
    mixed, targets = Mix(config(mixup=0.8), CLASSES)(images, labels, np.random.default_rng(4))
    share = np.random.default_rng(4).beta(0.8, 0.8)
    for index in range(6):
        own, other = float64(images[index]), float64(images[5 - index])
        np.testing.assert_allclose(float64(mixed[index]), share * own + (1 - share) * other, atol=1e-6)
        expected = np.zeros(CLASSES)
        expected[labels[index]] += share
        expected[labels[5 - index]] += 1 - share
        np.testing.assert_allclose(float64(targets[index]), expected, atol=1e-6)


def test_cutmix_puts_a_rectangle_of_the_other_picture_in_its_place() -> None:
    """Every pixel is one of the two, the other's form a rectangle, and the labels have the share of the pixels."""
    images, labels = batch()
    mix = Mix(config(cutmix=1.0), CLASSES)
    cut = 0
    for seed in range(30):
        mixed, targets = mix(images, labels, np.random.default_rng(seed))
        foreign = (mixed == images.flip(0)).all(1)
        assert torch.equal(mixed, torch.where(foreign[:, None], images.flip(0), images))
        assert all(torch.equal(foreign[0], one) for one in foreign)
        rows, columns = foreign[0].any(1), foreign[0].any(0)
        assert torch.equal(foreign[0], rows[:, None] & columns)
        share = 1 - float(foreign[0].double().mean())
        for index in range(6):
            expected = np.zeros(CLASSES)
            expected[labels[index]] += share
            expected[labels[5 - index]] += 1 - share
            np.testing.assert_allclose(float64(targets[index]), expected, atol=1e-6)
        cut += int(0 < share < 1)
    assert cut > 20


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.0, 0.99), (0.99, 0.0)])
def test_a_rectangle_at_the_edge_is_cut_off_there(centre: tuple[float, float]) -> None:
    """Its sides are sqrt(1 - l) of the picture's around the centre that was drawn; what lies outside is not counted."""
    images, _ = batch(2, 9, 14)
    mixed, share = cutmix(images, images.flip(0), 0.8, np.array(centre))
    expected = images.clone()
    half_height, half_width = int(9 * np.sqrt(0.2)) // 2, int(14 * np.sqrt(0.2)) // 2
    row, column = int(centre[0] * 9), int(centre[1] * 14)
    top, bottom = max(row - half_height, 0), min(row + half_height, 9)
    left, right = max(column - half_width, 0), min(column + half_width, 14)
    expected[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    assert torch.equal(mixed, expected)
    assert share == pytest.approx(1 - (bottom - top) * (right - left) / (9 * 14))


def test_a_coin_decides_between_the_two_and_both_end_when_the_recipe_says() -> None:
    """Switched on in the first `mix_epochs` epochs, in all of them where it does not say, never where both are 0."""
    images, labels = batch()
    both = Mix(config(mixup=0.8, cutmix=1.0, mix_epochs=3), CLASSES)
    blended = 0
    for seed in range(200):
        mixed, _ = both(images, labels, np.random.default_rng(seed))
        same = (mixed == images) | (mixed == images.flip(0))
        blended += not bool(same.all())
    assert 70 < blended < 130
    assert [both.on(epoch) for epoch in range(5)] == [True, True, True, False, False]
    assert all(Mix(config(mixup=0.8), CLASSES).on(epoch) for epoch in range(10))
    assert not any(Mix(config(), CLASSES).on(epoch) for epoch in range(10))

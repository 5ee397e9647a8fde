"""RandAugment of a batch at once, each operation against Pillow's on one picture at a time."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from export.randaugment import OPERATIONS, apply, randaugment

AFFINE, BILINEAR = Image.Transform.AFFINE, Image.Resampling.BILINEAR
GREY = (128, 128, 128)


def moved(picture: Image.Image, *matrix: float) -> Image.Image:
    return picture.transform(picture.size, AFFINE, matrix, BILINEAR, fillcolor=GREY)


PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "shear_x": lambda picture, level: moved(picture, 1, 0.3 * level, 0, 0, 1, 0),
    "shear_y": lambda picture, level: moved(picture, 1, 0, 0, 0.3 * level, 1, 0),
    "translate_x": lambda picture, level: moved(picture, 1, 0, 0.45 * level * picture.width, 0, 1, 0),
    "translate_y": lambda picture, level: moved(picture, 1, 0, 0, 0, 1, 0.45 * level * picture.height),
    "rotate": lambda picture, level: picture.rotate(30 * level, BILINEAR, fillcolor=GREY),
    "color": lambda picture, level: ImageEnhance.Color(picture).enhance(1 + 0.9 * level),
    "contrast": lambda picture, level: ImageEnhance.Contrast(picture).enhance(1 + 0.9 * level),
    "brightness": lambda picture, level: ImageEnhance.Brightness(picture).enhance(1 + 0.9 * level),
    "sharpness": lambda picture, level: ImageEnhance.Sharpness(picture).enhance(1 + 0.9 * level),
    "identity": lambda picture, level: picture,
    "autocontrast": lambda picture, level: ImageOps.autocontrast(picture),
    "equalize": lambda picture, level: ImageOps.equalize(picture),
    "posterize": lambda picture, level: ImageOps.posterize(picture, 8 - round(4 * abs(level))),
    "solarize": lambda picture, level: ImageOps.solarize(picture, 256 - int(256 * abs(level))),
}


def pictures(count: int, height: int = 24, width: int = 33) -> Tensor:
    """(count, 3, height, width) uint8: smooth ones of uneven levels, noise, one of a single colour."""
    generator = np.random.default_rng(0)
    made = []
    for index in range(count):
        noise = Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))
        smooth = noise.filter(ImageFilter.GaussianBlur(index % 4))
        made.append(np.asarray(smooth).astype(np.float64) * generator.uniform(0.4, 1) + generator.uniform(0, 60))
    made[0][:] = 77
    return torch.from_numpy(np.clip(np.stack(made), 0, 255).astype(np.uint8)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_pillows(name: str) -> None:
    """On every picture of a batch at a level of its own, both ways: no level of a pixel is off by more than one."""
    images = pictures(12)
    levels = np.linspace(-1, 1, 12)
    seen = apply(images, np.full(12, OPERATIONS.index(name)), levels)
    for image, level, augmented in zip(images, levels, seen, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.asarray(PILLOW[name](picture, level)).astype(int)
        difference = np.abs(augmented.permute(1, 2, 0).numpy().astype(int) - expected)
        exact = name in ("identity", "equalize", "posterize", "solarize")
        if name in ("shear_x", "shear_y", "rotate", "translate_x", "translate_y"):
            # which side of the edge a pixel's middle comes from may hang on the last bit
            assert np.mean(difference > 1) < 0.002, (level, difference.max())
        else:
            assert difference.max() <= (0 if exact else 1), level


def test_pictures_are_augmented_each_on_its_own_account() -> None:
    """A mixed batch gives what its pictures give alone."""
    images = pictures(2 * len(OPERATIONS))
    drawn = np.random.default_rng(1).permutation(np.repeat(np.arange(len(OPERATIONS)), 2))
    levels = np.random.default_rng(2).uniform(-1, 1, len(drawn))
    together = apply(images, drawn, levels)
    for index in range(len(drawn)):
        one = slice(index, index + 1)
        assert torch.equal(together[one], apply(images[one], drawn[one], levels[one]))


def test_every_operation_is_drawn_as_often_and_the_seed_decides() -> None:
    """One round changes all but about a fourteenth, that which drew the identity; no round changes nothing."""
    images = pictures(2)[1:].expand(700, 3, 24, 33)
    once = randaugment(images, 1, 9.0, 0.5, np.random.default_rng(3))
    unchanged = sum(torch.equal(before, after) for before, after in zip(images, once, strict=True))
    assert 700 / 14 * 0.5 < unchanged < 700 / 14 * 2
    assert torch.equal(randaugment(images, 1, 9.0, 0.5, np.random.default_rng(3)), once)
    assert torch.equal(randaugment(images, 0, 9.0, 0.5, np.random.default_rng(3)), images)

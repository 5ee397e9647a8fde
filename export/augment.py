"""Augmentation of a batch at once, on the device that trains, drawn from a generator that the epoch's seed fixes.

Numbers are drawn on the CPU, so that a run on a GPU draws the same ones.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.mix import Mix
from export.randaugment import randaugment
from export.recipe import Recipe
from saccade.manifest import Preprocessing
from saccade.preprocess import normalization

ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = 10 / 3
"""Of random erasing: shares of the picture, and width to height from the inverse to this, as published."""


class Augment:
    """uint8 pictures and their labels -> what the net is trained on."""

    def __init__(self, recipe: Recipe, classes: int, device: torch.device) -> None:
        self._config = recipe.training
        self._normalize = Normalize(recipe.preprocessing, device)
        self._mix = Mix(recipe.training, classes)

    def __call__(
        self, pictures: Tensor, labels: Tensor, flip: Tensor, epoch: int, random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) uint8 and (B,) -> the net's input of the same shape, and (B,) or, where mixed, (B, classes).

        `flip` (B,) says which pictures are mirrored where the recipe flips at all.
        """
        config = self._config
        if config.shift or config.flip:
            pictures = shift_and_flip(pictures, flip & config.flip, config.shift, random)
        if config.randaugment:
            pictures = randaugment(
                pictures, config.randaugment, config.randaugment_magnitude, config.randaugment_std, random
            )
        images = self._normalize(pictures)
        if config.erase:
            images = erase(images, config.erase, random)
        return self._mix(images, labels, random) if self._mix.on(epoch) else (images, labels)


class Normalize:
    """`saccade.preprocess.normalize` on the device, channels last in memory: convolutions are faster so."""

    def __init__(self, spec: Preprocessing, device: torch.device) -> None:
        scale, offset = normalization(spec)
        self._scale = torch.from_numpy(scale).view(3, 1, 1).to(device)
        self._offset = torch.from_numpy(offset).view(3, 1, 1).to(device)
        self._turned = spec.channels == "BGR"

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB -> float32 of the same shape, channels in the net's order."""
        images = images.contiguous(memory_format=torch.channels_last)
        return (images.flip(1) if self._turned else images) * self._scale + self._offset


def flip_mask(count: int, epoch: int, seed: int) -> NDArray[np.bool_]:
    """Which of `count` pictures are mirrored in this epoch: a random half, and the other half in the next epoch.

    Alternating flips show every picture both ways in any two epochs (Jordan 2024, https://arxiv.org/abs/2404.00498).
    """
    first = np.random.default_rng(seed).random(count) < 0.5
    return first ^ bool(epoch % 2)


def shift_and_flip(images: Tensor, flip: Tensor, shift: int, random: np.random.Generator) -> Tensor:
    """(B, 3, H, W) -> the same: moved by up to `shift` pixels each way, edges reflected; mirrored where `flip`."""
    batch, _, height, width = images.shape
    down, right = torch.from_numpy(random.integers(-shift, shift + 1, (2, batch, 1))).to(images.device)
    rows = _reflected(down + torch.arange(height, device=images.device), height)  # (B, H)
    columns = torch.arange(width, device=images.device).expand(batch, width)  # (B, W)
    columns = _reflected(right + torch.where(flip[:, None].to(images.device), columns.flip(1), columns), width)
    return images[
        torch.arange(batch, device=images.device)[:, None, None, None],
        torch.arange(3, device=images.device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _reflected(places: Tensor, size: int) -> Tensor:
    """Places up to `size` - 1 outside of a picture -> those inside that they mirror, the edge itself not repeated."""
    return (size - 1) - ((size - 1) - places.abs()).abs()


def erase(images: Tensor, share: float, random: np.random.Generator) -> Tensor:
    """Blanks a rectangle in that `share` of normalised pictures (Zhong et al. 2020, https://arxiv.org/abs/1708.04896).

    Blank is 0, the mean colour of the data. The published method fills with noise and finds the mean nearly as good.
    """
    batch, _, height, width = images.shape
    chosen, area, aspect, down, right = random.random((5, batch))
    low, high = ERASED_AREA
    area = height * width * (low + area * (high - low))
    aspect = np.exp((2 * aspect - 1) * math.log(ERASED_ASPECT))
    wide, tall = np.minimum(np.sqrt(area * aspect), width), np.minimum(np.sqrt(area / aspect), height)
    rows = _between(down * (height - tall), tall, height)  # (B, H)
    columns = _between(right * (width - wide), wide, width)  # (B, W)
    erased = rows[:, None, :, None] & columns[:, None, None, :] & (chosen < share)[:, None, None, None]
    return images.masked_fill(torch.from_numpy(erased).to(images.device), 0.0)


def _between(start: NDArray[np.float64], length: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """(B,) -> (B, size): which pixels' middles lie in each stretch."""
    middles = np.arange(size) + 0.5
    return (middles >= start[:, None]) & (middles < (start + length)[:, None])

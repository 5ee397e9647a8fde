"""Mixup and cutmix: pictures of a batch blended with each other, and their labels with them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from export.recipe import TrainingConfig


class Mix:
    """One of the two for each batch, as in timm: with both switched on, a coin decides which."""

    def __init__(self, config: TrainingConfig, classes: int) -> None:
        self._mixup = config.mixup
        self._cutmix = config.cutmix
        self._epochs = config.epochs if config.mix_epochs is None else config.mix_epochs
        self._classes = classes

    def on(self, epoch: int) -> bool:
        return epoch < self._epochs and bool(self._mixup or self._cutmix)

    def __call__(self, images: Tensor, labels: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) and (B,) -> blended images, and targets (B, classes): each picture with the one from the end."""
        cut = self._mixup == 0 or (self._cutmix > 0 and random.random() < 0.5)
        alpha = self._cutmix if cut else self._mixup
        share = random.beta(alpha, alpha)
        if cut:
            images, share = cutmix(images, images.flip(0), share, random.random(2))
        else:
            images = mixup(images, images.flip(0), share)
        targets = F.one_hot(labels, self._classes).float()
        return images, mixup(targets, targets.flip(0), share)


def mixup(own: Tensor, other: Tensor, share: float) -> Tensor:
    """The sum share * own + (1 - share) * other (Zhang et al. 2018, https://arxiv.org/abs/1710.09412)."""
    return torch.lerp(other, own, share)


def cutmix(own: Tensor, other: Tensor, share: float, centre: NDArray[np.float64]) -> tuple[Tensor, float]:
    """A rectangle of the other picture in its own place (Yun et al. 2019, https://arxiv.org/abs/1905.04899).

    It has 1 - `share` of the area around `centre`, two numbers of [0, 1) down and across, less what lies outside of
    the picture. Returns the share that is left to the picture itself.
    """
    height, width = own.shape[2:]
    cut_height, cut_width = int(height * np.sqrt(1 - share)), int(width * np.sqrt(1 - share))
    row, column = int(centre[0] * height), int(centre[1] * width)
    top, bottom = max(row - cut_height // 2, 0), min(row + cut_height // 2, height)
    left, right = max(column - cut_width // 2, 0), min(column + cut_width // 2, width)
    mixed = own.clone(memory_format=torch.preserve_format)
    mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)

"""Augmentation of a batch at once, on the device that trains, drawn from a generator that the epoch's seed fixes."""

import torch
from torch import Tensor
from torch.nn import functional as F


def flip_mask(count: int, epoch: int, seed: int) -> Tensor:
    """Which of `count` pictures are mirrored in this epoch: a random half, and the other half in the next epoch.

    Alternating flips show every picture both ways in any two epochs (Jordan 2024, https://arxiv.org/abs/2404.00498).
    """
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(count, generator=generator) < 0.5
    return first ^ bool(epoch % 2)


def shift_and_flip(images: Tensor, flip: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """(B, 3, H, W) -> the same: moved by up to `shift` pixels each way, edges reflected; mirrored where `flip`."""
    batch, _, height, width = images.shape
    if shift:
        images = F.pad(images.float(), (shift,) * 4, mode="reflect").to(images.dtype)
    down, right = torch.randint(0, 2 * shift + 1, (2, batch, 1), generator=generator).to(images.device).unbind(0)
    rows = down + torch.arange(height, device=images.device)  # (B, H)
    columns = torch.arange(width, device=images.device).expand(batch, width)  # (B, W)
    columns = right + torch.where(flip[:, None].to(images.device), columns.flip(1), columns)
    return images[
        torch.arange(batch, device=images.device)[:, None, None, None],
        torch.arange(3, device=images.device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]

"""RandAugment (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719), a batch at a time on the device that trains.

Each picture draws its own operations. Of each round, pictures that drew the same one are taken together; all that move
pixels share one resampling, all that blend with a poorer picture one blend. The operations are those of the paper, as
Pillow defines them, on uint8; a test holds each to Pillow. Magnitudes are on its scale of 0 to 10 and, as in timm's
"increasing" set, more is always stronger.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
BLENDS = ("color", "contrast", "brightness", "sharpness")
OTHERS = ("identity", "autocontrast", "equalize", "posterize", "solarize")
OPERATIONS = (*MOVES, *BLENDS, *OTHERS)

SHEAR = 0.3
TRANSLATE = 0.45  # of the edge
ROTATE = math.radians(30)
BLEND = 0.9  # 1 is the picture, 0 the poorer one, 2 twice as far away from it
POSTERIZE = 4  # bits that are lost
FILL = 128.0
"""What moves in from outside of the picture."""

GREY = (19595, 38470, 7471)
"""Weights of red, green and blue in 65536ths, ITU-R 601-2, as Pillow rounds them."""


Operation = Callable[[Tensor, NDArray[np.int64], NDArray[np.float64]], Tensor]
"""(b, 3, H, W) uint8, what each picture drew, and its level -> the same shape."""


def randaugment(images: Tensor, rounds: int, magnitude: float, std: float, random: np.random.Generator) -> Tensor:
    """(B, 3, H, W) uint8 -> the same, each picture through `rounds` operations of a magnitude around the one given."""
    batch = len(images)
    images = images.contiguous()
    for _ in range(rounds):
        drawn = random.integers(len(OPERATIONS), size=batch)
        levels = np.clip(random.normal(magnitude, std, batch), 0, 10) / 10
        levels *= random.choice((-1.0, 1.0), batch)  # only moves and blends have two directions
        images = apply(images, drawn, levels)
    return images


def apply(images: Tensor, drawn: NDArray[np.int64], levels: NDArray[np.float64]) -> Tensor:
    """(B, 3, H, W) uint8 -> each picture after `OPERATIONS[drawn]` at its level, between -1 and 1. One round."""
    result = images.clone()
    for names, act in ((MOVES, _move), (BLENDS, _blend), *(((name,), act) for name, act in _ALONE.items())):
        numbers = [OPERATIONS.index(name) for name in names]
        (places,) = np.nonzero(np.isin(drawn, numbers))
        if len(places):
            where = torch.from_numpy(places).to(images.device)
            result[where] = act(images[where], drawn[places], levels[places])
    return result


def _move(images: Tensor, drawn: NDArray[np.int64], levels: NDArray[np.float64]) -> Tensor:
    """Bilinear; a pixel is `FILL` where its middle comes from outside of the picture."""
    height, width = images.shape[2:]
    matrices = np.stack([_matrix(OPERATIONS[n], level, height, width) for n, level in zip(drawn, levels, strict=True)])
    across = torch.arange(width, device=images.device) + 0.5
    down = torch.arange(height, device=images.device) + 0.5
    a, b, c, d, e, f = torch.from_numpy(matrices.astype(np.float32)).to(images.device)[:, :, None, None].unbind(1)
    x = a * across + b * down[:, None] + c  # (B, H, W): where in the picture each pixel's middle comes from
    y = d * across + e * down[:, None] + f
    grid = torch.stack([2 * x / width - 1, 2 * y / height - 1], dim=-1)
    moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return _uint8(torch.where(inside[:, None], moved, FILL))


def _matrix(name: str, level: float, height: int, width: int) -> tuple[float, ...]:
    """(a, b, c, d, e, f): pixel (x, y) comes from (a x + b y + c, d x + e y + f), as in Pillow's AFFINE."""
    match name:
        case "shear_x":
            return 1, SHEAR * level, 0, 0, 1, 0
        case "shear_y":
            return 1, 0, 0, SHEAR * level, 1, 0
        case "translate_x":
            return 1, 0, TRANSLATE * level * width, 0, 1, 0
        case "translate_y":
            return 1, 0, 0, 0, 1, TRANSLATE * level * height
    cosine, sine = math.cos(ROTATE * level), math.sin(ROTATE * level)
    x, y = width / 2, height / 2
    return cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y


def _blend(images: Tensor, drawn: NDArray[np.int64], levels: NDArray[np.float64]) -> Tensor:
    """Each is poorer + factor * (picture - poorer), as Pillow's ImageEnhance."""
    factors = torch.from_numpy((1 + BLEND * levels).astype(np.float32)).to(images.device)
    original = images.float()
    poorer = torch.zeros_like(original)  # of brightness: black
    for name, make in _POORER.items():
        (places,) = np.nonzero(drawn == OPERATIONS.index(name))
        if len(places):
            where = torch.from_numpy(places).to(images.device)
            poorer[where] = make(images[where])
    return _uint8(torch.lerp(poorer, original, factors.view(-1, 1, 1, 1)))


def _grey(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> (B, 1, H, W) float32, whole numbers."""
    red, green, blue = (weight * channel for weight, channel in zip(GREY, images.int().unbind(1), strict=True))
    return ((red + green + blue + 0x8000) >> 16).float().unsqueeze(1)


def _flat(images: Tensor) -> Tensor:
    """The mean grey, rounded."""
    return (_grey(images).mean((1, 2, 3), keepdim=True) + 0.5).floor()


def _smooth(images: Tensor) -> Tensor:
    """Each pixel with its neighbours, weights 5 and 1 in 13ths; the outermost pixels stay."""
    original = images.float()
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = original.clone()
    smooth[:, :, 1:-1, 1:-1] = (F.conv2d(original, kernel, groups=3) / 13 + 0.5).floor()
    return smooth


def _autocontrast(images: Tensor, *_: object) -> Tensor:
    """Of each channel the darkest level becomes 0 and the brightest 255; a channel of one level stays."""
    low, high = (ends.float() for ends in (images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)))
    scale = torch.where(high > low, 255 / (high - low), 1.0)
    return torch.where(high > low, (images - low) * scale, images).clamp_(0, 255).to(torch.uint8)


def _equalize(images: Tensor, *_: object) -> Tensor:
    """Of each channel the levels are spread so that their counts are as even as can be."""
    batch, channels, height, width = images.shape
    levels = images.reshape(batch * channels, height * width).long()
    counts = torch.zeros(len(levels), 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels))
    brightest = counts.gather(1, levels.amax(1, keepdim=True))
    step = (height * width - brightest) // 255  # (B * 3, 1)
    below = counts.cumsum(1) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    spread = table.gather(1, levels)
    return torch.where(step > 0, spread, levels).to(torch.uint8).view_as(images)


def _posterize(images: Tensor, _: NDArray[np.int64], levels: NDArray[np.float64]) -> Tensor:
    lost = np.rint(POSTERIZE * np.abs(levels)).astype(np.int64)
    masks = torch.from_numpy((0xFF << lost & 0xFF).astype(np.uint8)).to(images.device)
    return images & masks.view(-1, 1, 1, 1)


def _solarize(images: Tensor, _: NDArray[np.int64], levels: NDArray[np.float64]) -> Tensor:
    """Inverts what is as bright as a threshold, which falls from 256 to 0."""
    threshold = torch.from_numpy(256 - (256 * np.abs(levels)).astype(np.int64)).to(images.device)
    return torch.where(images >= threshold.view(-1, 1, 1, 1), 255 - images, images)


def _uint8(levels: Tensor) -> Tensor:
    return levels.round_().clamp_(0, 255).to(torch.uint8)


_POORER: dict[str, Callable[[Tensor], Tensor]] = {"color": _grey, "contrast": _flat, "sharpness": _smooth}
_ALONE: dict[str, Operation] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "solarize": _solarize,
}

"""ResNet (He et al. 2016, https://arxiv.org/abs/1512.03385).

`stages = 3`, section 4.2, for pictures of 32 pixels: depth 6n + 2, three stages of n basic blocks of 16, 32 and 64
channels; shortcuts of option A (stride and zero channels, no weights), so that ResNet-20 has 269,722 parameters in
convolutions, norms and head, as in the widely used re-implementations.

`stages = 4`, section 4.1: depth 18, 34, 50, 101 or 152, four stages from 64 channels on, shortcuts of option B
(projections). `stem = "imagenet"` is the 7 x 7 convolution and the max pooling of the paper, which divide a side by 4;
`stem = "small"` is one 3 x 3 convolution, as is usual for 32 pixels; `stem = "pooled"` has 2 x 2 max pooling after it,
which spares the stages three quarters of the work. Bottlenecks stride in their 3 x 3 convolution, and the last norm of
a block starts at 0 (Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 5.1).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from export.nets.base import Net, Outputs, halved, pool_features
from saccade.frozen import Frozen

FOUR_STAGES: dict[int, tuple[int, ...]] = {
    18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3),
}  # fmt: skip
"""Depth -> blocks of each stage, table 1 of the paper; from 50 on they are bottlenecks."""

StemKind = Literal["small", "pooled", "imagenet"]
STEM_STRIDES: dict[StemKind, int] = {"small": 0, "pooled": 1, "imagenet": 2}
"""How often a stem halves the grid."""

MakeBlock = Callable[[int, int, int], nn.Module]
"""(channels before, channels after, stride) -> a block."""


class ResnetConfig(Frozen):
    kind: Literal["resnet"]
    depth: int
    stages: Literal[3, 4] = 3
    stem: StemKind = "small"


class BasicBlock(nn.Module):
    """3 x 3, 3 x 3. Where the shape changes the shortcut is a projection, or strided with zero channels beside it."""

    def __init__(self, before: int, after: int, stride: int, *, project: bool) -> None:
        super().__init__()
        self.conv1 = convolution(before, after, 3, stride)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = convolution(after, after, 3)
        self.norm2 = nn.BatchNorm2d(after)
        self.stride = stride
        self.new_channels = after - before
        self.projection = projection(before, after, stride) if project else None
        if project:
            nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, after, H / stride, W / stride), rounded up."""
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        return F.relu(residual + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.projection is not None:
            return self.projection(x)
        if self.stride == 1 and self.new_channels == 0:
            return x
        strided = x[:, :, :: self.stride, :: self.stride]
        half = self.new_channels // 2
        return F.pad(strided, (0, 0, 0, 0, half, self.new_channels - half))


class Bottleneck(nn.Module):
    """1 x 1 to `inner` channels (a quarter of `after`, without a word), 3 x 3 with the stride, 1 x 1."""

    def __init__(self, before: int, after: int, stride: int, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or after // 4
        self.conv1 = convolution(before, inner, 1)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = convolution(inner, inner, 3, stride)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = convolution(inner, after, 1)
        self.norm3 = nn.BatchNorm2d(after)
        self.projection = projection(before, after, stride)
        nn.init.zeros_(self.norm3.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, after, H / stride, W / stride), rounded up."""
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = F.relu(self.norm2(self.conv2(residual)))
        return F.relu(self.norm3(self.conv3(residual)) + self.projection(x))


class Resnet(Net):
    def __init__(self, config: ResnetConfig, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        if config.stages == 3:
            count, rest = divmod(config.depth - 2, 6)
            if rest or count < 1:
                raise ValueError(f"depth must be 6n + 2 with 3 stages, not {config.depth}")
            if config.stem != "small":
                raise ValueError(f"3 stages have the small stem, not the {config.stem} one")
            widths: tuple[int, ...] = (16, 32, 64)
            counts: tuple[int, ...] = (count,) * 3
            make: MakeBlock = partial(BasicBlock, project=False)
        else:
            if config.depth not in FOUR_STAGES:
                known = ", ".join(map(str, FOUR_STAGES))
                raise ValueError(f"depth must be one of {known} with 4 stages, not {config.depth}")
            expansion = 4 if config.depth >= 50 else 1
            widths, counts = tuple(64 * expansion * 2**stage for stage in range(4)), FOUR_STAGES[config.depth]
            make = Bottleneck if expansion == 4 else partial(BasicBlock, project=True)
        first = 16 if config.stages == 3 else 64
        self.stem, self.stem_norm, self.stem_pool = stem(first, config.stem)
        self.blocks = nn.Sequential(*stages(make, first, widths, counts))
        self.head = nn.Linear(widths[-1], classes)
        init_convolutions(self)

        self.class_grid = halved(size, STEM_STRIDES[config.stem] + len(widths) - 1)
        self.depths = (
            ("stem.", "stem_norm."),
            *((f"blocks.{index}.",) for index in range(len(self.blocks))),
            ("head.",),
        )

    def forward(self, images: Tensor) -> Tensor:
        return pool_features(self, self._features(images)).logits

    def explain(self, images: Tensor) -> Outputs:
        return pool_features(self, self._features(images))

    def _features(self, images: Tensor) -> Tensor:
        features = self.stem_pool(F.relu(self.stem_norm(self.stem(images))))
        return self.blocks(features)  # (B, width, rows, columns)


def stem(channels: int, kind: StemKind) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.Module]:
    """(convolution, its norm, what comes after the ReLU): 3 channels to `channels`, each stride rounded up."""
    if kind == "imagenet":
        return convolution(3, channels, 7, 2), nn.BatchNorm2d(channels), nn.MaxPool2d(3, stride=2, padding=1)
    pool = nn.MaxPool2d(2, ceil_mode=True) if kind == "pooled" else nn.Identity()
    return convolution(3, channels, 3), nn.BatchNorm2d(channels), pool


def stages(make: MakeBlock, before: int, widths: Sequence[int], counts: Sequence[int]) -> list[nn.Module]:
    """Blocks of all stages; each stage but the first begins with a stride of 2."""
    blocks = []
    for stage, (width, count) in enumerate(zip(widths, counts, strict=True)):
        for number in range(count):
            blocks.append(make(before, width, 2 if stage and not number else 1))
            before = width
    return blocks


def convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Without a bias, for a norm follows; padded so that a stride of 1 keeps the size."""
    return nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)


def projection(before: int, after: int, stride: int) -> nn.Module:
    """Shortcut of option B: nothing where the shape stays, else a 1 x 1 convolution and a norm."""
    if stride == 1 and before == after:
        return nn.Identity()
    return nn.Sequential(convolution(before, after, 1, stride), nn.BatchNorm2d(after))


def init_convolutions(module: nn.Module) -> None:
    """Normal of variance 2 / fan-in (He et al. 2015, https://arxiv.org/abs/1502.01852)."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight)

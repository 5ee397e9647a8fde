"""ResNet for 32-pixel pictures (He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2): depth 6n + 2.

Three stages of n basic blocks, 16, 32 and 64 channels; shortcuts of option A (stride and zero channels, no weights),
so that ResNet-20 has 269,722 parameters in convolutions, norms and head, as in the widely used re-implementations.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from export.nets.base import Net, Outputs
from saccade.manifest import Frozen


class ResnetConfig(Frozen):
    kind: Literal["resnet"]
    depth: int


class BasicBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.stride = stride
        self.new_channels = after - before

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        return F.relu(residual + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.new_channels == 0:
            return x
        strided = x[:, :, :: self.stride, :: self.stride]
        half = self.new_channels // 2
        return F.pad(strided, (0, 0, 0, 0, half, self.new_channels - half))


class Resnet(Net):
    def __init__(self, config: ResnetConfig, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        blocks, rest = divmod(config.depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6n + 2, not {config.depth}")
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        plan = [(16, 16, 1)] * blocks
        plan += [(16, 32, 2)] + [(32, 32, 1)] * (blocks - 1)
        plan += [(32, 64, 2)] + [(64, 64, 1)] * (blocks - 1)
        self.blocks = nn.Sequential(*(BasicBlock(*channels_and_stride) for channels_and_stride in plan))
        self.head = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

        self.class_grid = (-(-size[0] // 4), -(-size[1] // 4))  # two strides of 2, rounded up

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self._features(images).mean(dim=(2, 3)))

    def explain(self, images: Tensor) -> Outputs:
        features = self._features(images)
        tokens = features.flatten(2).transpose(1, 2)  # (B, P, 64)
        return Outputs(self.head(features.mean(dim=(2, 3))), (), None, tokens / tokens.shape[1])

    def _features(self, images: Tensor) -> Tensor:
        return self.blocks(F.relu(self.stem_norm(self.stem(images))))  # (B, 64, rows, columns)

"""ConvMixer (Trockman & Kolter 2022, https://arxiv.org/abs/2201.09792): a convolutional net in the shape of a ViT.

Patches, then layers that mix places (a depthwise convolution with a shortcut) and channels (a 1 x 1 convolution) at one
size and one grid throughout: what a ViT is, less the attention, which makes it the CNN to hold an attention net
against. ConvMixer-256/8 means width 256, 8 layers.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from export.nets.base import Net, Outputs, pool_features
from saccade.frozen import Frozen


class ConvmixerConfig(Frozen):
    kind: Literal["convmixer"]
    width: int = Field(ge=1)
    layers: int = Field(ge=1)
    kernel: int = Field(ge=1)
    patch: int = Field(ge=1)


class Mixer(nn.Module):
    """Places, with a shortcut; then channels. Each convolution is followed by GELU and a norm, in this order."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.places = nn.Sequential(
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width), nn.GELU(), nn.BatchNorm2d(width)
        )
        self.channels = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, rows, columns) -> the same shape."""
        return self.channels(x + self.places(x))


class Convmixer(Net):
    def __init__(self, config: ConvmixerConfig, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        height, width = size
        if height % config.patch or width % config.patch:
            raise ValueError(f"size {height} x {width} is not divisible by patches of {config.patch}")
        if config.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that the grid stays, not {config.kernel}")
        self.patches = nn.Sequential(
            nn.Conv2d(3, config.width, config.patch, stride=config.patch), nn.GELU(), nn.BatchNorm2d(config.width)
        )
        self.layers = nn.Sequential(*(Mixer(config.width, config.kernel) for _ in range(config.layers)))
        self.head = nn.Linear(config.width, classes)

        self.class_grid = (height // config.patch, width // config.patch)
        self.depths = (("patches.",), *((f"layers.{index}.",) for index in range(config.layers)), ("head.",))

    def forward(self, images: Tensor) -> Tensor:
        return pool_features(self, self.layers(self.patches(images))).logits

    def explain(self, images: Tensor) -> Outputs:
        return pool_features(self, self.layers(self.patches(images)))

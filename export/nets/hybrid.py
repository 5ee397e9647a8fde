"""Convolutions, then a last stage of self-attention: BoTNet (Srinivas et al. 2021, https://arxiv.org/abs/2101.11605).

Stages of a ResNet (three in the paper), then bottlenecks whose 3 x 3 convolution is multi-head self-attention over the
whole grid with 2-D relative positions: 1 x 1, attention, norm, ReLU, 1 x 1, as in the paper's appendix. The 1 x 1
convolution after it takes the place of W_O. With `stride = 2` the first of these blocks attends on the larger grid and
halves it by average pooling (the paper's BoT50); with `stride = 1` all share one grid (its BoT-S1-50).

Global average pooling stands before the head, so that the class map is exact.
"""

from functools import partial
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from export.nets.attention import Attention
from export.nets.base import Net, Outputs, attention_layer, halved, pool_features
from export.nets.resnet import (
    STEM_STRIDES,
    BasicBlock,
    Bottleneck,
    MakeBlock,
    StemKind,
    convolution,
    init_convolutions,
    projection,
    stages,
    stem,
)
from saccade.frozen import Count, Frozen
from saccade.manifest import AttentionLayer, Pooling


class HybridConfig(Frozen):
    kind: Literal["hybrid"]
    stem: StemKind
    block: Literal["basic", "bottleneck"]
    """Of the three convolutional stages; a bottleneck gives four times the stage's width."""
    blocks: tuple[Count, ...] = Field(min_length=1)
    """How many blocks each convolutional stage has."""
    width: Count = 64
    """Of the first stage; each further one has twice as much."""
    heads: tuple[Count, ...] = Field(min_length=1)
    """Of each attention block of the last stage, in their order; with another mixer, as many blocks."""
    attention_width: Count
    attention_expansion: Count = 4
    """Channels after an attention block, in units of `attention_width`."""
    stride: Literal[1, 2] = 2
    """Of the first attention block."""
    mixer: Literal["attention", "convolution"] = "attention"
    """What stands in the middle of the last stage's blocks; `convolution` is the 3 x 3 one that attention replaces: the
    net without attention to hold the other against."""


class AttentionBottleneck(nn.Module):
    """1 x 1, self-attention, average pooling where there is a stride, norm, ReLU, 1 x 1."""

    def __init__(self, before: int, inner: int, after: int, grid: tuple[int, int], heads: int, stride: int) -> None:
        super().__init__()
        self.grid = grid
        self.conv1 = convolution(before, inner, 1)
        self.norm1 = nn.BatchNorm2d(inner)
        self.attention = Attention(inner, heads, qkv_bias=False, positions=grid, project=False)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = convolution(inner, after, 1)
        self.norm3 = nn.BatchNorm2d(after)
        self.projection = projection(before, after, stride)
        nn.init.zeros_(self.norm3.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, rows, columns) -> (B, after, rows / stride, columns / stride)."""
        return self._finish(x, self.attention(self._tokens(x)))

    def weigh(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the attention weights (B, H, N, N) with N = rows * columns, before the stride."""
        attended, weights = self.attention.weigh(self._tokens(x))
        return self._finish(x, attended), weights

    def _tokens(self, x: Tensor) -> Tensor:
        return F.relu(self.norm1(self.conv1(x))).flatten(2).transpose(1, 2)  # (B, N, inner)

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        features = attended.transpose(1, 2).unflatten(2, self.grid)  # (B, inner, rows, columns)
        residual = F.relu(self.norm2(self.pool(features)))
        return F.relu(self.norm3(self.conv3(residual)) + self.projection(x))


class Hybrid(Net):
    undecayed = ("height", "width")

    def __init__(self, config: HybridConfig, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        expansion = 4 if config.block == "bottleneck" else 1
        make: MakeBlock = Bottleneck if config.block == "bottleneck" else partial(BasicBlock, project=True)
        widths = [config.width * expansion * 2**stage for stage in range(len(config.blocks))]
        self.stem, self.stem_norm, self.stem_pool = stem(config.width, config.stem)
        self.blocks = nn.Sequential(*stages(make, config.width, widths, config.blocks))

        grid = halved(size, STEM_STRIDES[config.stem] + len(config.blocks) - 1)
        if config.stride == 2 and (grid[0] % 2 or grid[1] % 2):
            pictures, seen = (f"{rows} x {columns}" for rows, columns in (size, grid))
            raise ValueError(f"stride 2 halves a grid of even sides; for pictures of {pictures} it is {seen}")
        before, after = widths[-1], config.attention_width * config.attention_expansion
        layers: list[AttentionLayer] = []
        blocks: list[nn.Module] = []
        for index, heads in enumerate(config.heads):
            stride = config.stride if index == 0 else 1
            if config.mixer == "attention":
                layers.append(attention_layer(index, grid, heads))
                blocks.append(AttentionBottleneck(before, config.attention_width, after, grid, heads, stride))
            else:
                blocks.append(Bottleneck(before, after, stride, inner=config.attention_width))
            before, grid = after, (grid[0] // stride, grid[1] // stride)
        self.attention_blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(after, classes)
        init_convolutions(self)

        self.class_grid = grid
        self.pooling = Pooling(kind="mean") if layers else None
        self.attention_layers = tuple(layers)
        self.depths = (
            ("stem.", "stem_norm."),
            *((f"blocks.{index}.",) for index in range(len(self.blocks))),
            *((f"attention_blocks.{index}.",) for index in range(len(blocks))),
            ("head.",),
        )

    def forward(self, images: Tensor) -> Tensor:
        features = self._features(images)
        for block in self.attention_blocks:
            features = block(features)
        return pool_features(self, features).logits

    def explain(self, images: Tensor) -> Outputs:
        features, attention = self._features(images), []
        for block in self.attention_blocks:
            if isinstance(block, AttentionBottleneck):
                features, weights = block.weigh(features)
                attention.append(weights)
            else:
                features = block(features)
        return pool_features(self, features, attention)

    def _features(self, images: Tensor) -> Tensor:
        """What the convolutional stages make of the pictures: (B, channels, rows, columns)."""
        return self.blocks(self.stem_pool(F.relu(self.stem_norm(self.stem(images)))))

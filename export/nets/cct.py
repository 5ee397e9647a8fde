"""Compact convolutional transformer (Hassani et al. 2021, https://arxiv.org/abs/2104.05704).

A convolutional tokenizer, a pre-norm encoder, and SeqPool: learned pooling weights w = softmax(g(x)) over the tokens.
CCT-2/3x2 means 2 layers, kernel 3, 2 convolutions. At 32 pixels CCT-2/3x2, 4/3x2, 7/3x2 and 7/3x1 have the parameters
of the published code (https://github.com/SHI-Labs/Compact-Transformers, src/cct.py), one for one.
The published code applies its second norm to the residual stream; here both norms are plain pre-norm.
"""

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from export.nets.attention import Encoder, init_transformer
from export.nets.base import Net, Outputs, attention_layer, encoder_depths
from saccade.frozen import Frozen
from saccade.manifest import Pooling


class CctConfig(Frozen):
    kind: Literal["cct"]
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    width: int = Field(ge=1)
    mlp_ratio: float = Field(gt=0)
    kernel: int = Field(ge=1)
    convolutions: int = Field(ge=1)
    tokenizer_width: int = Field(64, ge=1)
    drop_path: float = Field(0.0, ge=0, lt=1)


class Tokenizer(nn.Sequential):
    """Convolution, ReLU, 3x3 max pooling of stride 2, repeated: each stage halves the grid."""

    def __init__(self, config: CctConfig) -> None:
        inner = [config.tokenizer_width] * (config.convolutions - 1)
        channels = [3, *inner, config.width]
        stages: list[nn.Module] = []
        for before, after in pairwise(channels):
            convolution = nn.Conv2d(before, after, config.kernel, padding=config.kernel // 2, bias=False)
            nn.init.kaiming_normal_(convolution.weight)
            stages += [convolution, nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
        super().__init__(*stages)


class Cct(Net):
    undecayed = ("position",)

    def __init__(self, config: CctConfig, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(config)
        with torch.no_grad():
            rows, columns = self.tokenizer(torch.zeros(1, 3, *size)).shape[-2:]
        hidden = int(config.width * config.mlp_ratio)
        self.position = nn.Parameter(torch.empty(1, rows * columns, config.width))
        self.encoder = Encoder(
            config.layers, config.width, config.heads, hidden, qkv_bias=False, drop_path=config.drop_path
        )
        self.seq_pool = nn.Linear(config.width, 1)
        self.head = nn.Linear(config.width, classes)
        nn.init.trunc_normal_(self.position, std=0.2)
        init_transformer(self)

        self.class_grid = (rows, columns)
        self.pooling = Pooling(kind="learned")
        self.position_grid = (rows, columns)
        self.attention_layers = tuple(
            attention_layer(index, (rows, columns), config.heads) for index in range(config.layers)
        )
        self.depths = encoder_depths(config.layers, ("tokenizer.", "position"), after=("seq_pool.", "head."))

    def forward(self, images: Tensor) -> Tensor:
        return self._pool(self.encoder(self._tokens(images)))[0]

    def explain(self, images: Tensor) -> Outputs:
        tokens, attention = self.encoder.weigh(self._tokens(images))
        logits, weights = self._pool(tokens)
        return Outputs(logits, attention, weights, weights.unsqueeze(-1) * tokens)

    def _tokens(self, images: Tensor) -> Tensor:
        features = self.tokenizer(images)  # (B, width, rows, columns)
        return features.flatten(2).transpose(1, 2) + self.position  # (B, N, width)

    def _pool(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.seq_pool(tokens).squeeze(-1).softmax(dim=-1)  # (B, N)
        pooled = (weights.unsqueeze(1) @ tokens).squeeze(1)  # (B, width)
        return self.head(pooled), weights

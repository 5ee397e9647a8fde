"""Vision transformer (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929), class token or mean pooling.

With mean pooling the mean is taken after the closing norm, so that the class map is exact.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from export.nets.attention import Encoder, init_transformer
from export.nets.base import Net, Outputs, attention_layer
from saccade.manifest import Frozen, Pooling


class VitConfig(Frozen):
    kind: Literal["vit"]
    patch: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    width: int = Field(ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    pooling: Literal["class_token", "mean"] = "class_token"
    drop_path: float = Field(0.0, ge=0, lt=1)


class Vit(Net):
    def __init__(self, config: VitConfig, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        height, width = size
        if height % config.patch or width % config.patch:
            raise ValueError(f"size {height} x {width} is not divisible by patches of {config.patch}")
        rows, columns = height // config.patch, width // config.patch
        special = 1 if config.pooling == "class_token" else 0
        self.patches = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.class_token = nn.Parameter(torch.empty(1, special, config.width))
        self.position = nn.Parameter(torch.empty(1, special + rows * columns, config.width))
        hidden = int(config.width * config.mlp_ratio)
        self.encoder = Encoder(config.layers, config.width, config.heads, hidden, drop_path=config.drop_path)
        self.head = nn.Linear(config.width, classes)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)
        init_transformer(self)

        # Past its last layer a class token mixes with nothing: which patch argued for which class is not in a sum
        # over patches, so there is no exact class map.
        self.class_grid = None if special else (rows, columns)
        self.pooling = Pooling(kind=config.pooling)
        self.attention_layers = tuple(
            attention_layer(index, (rows, columns), config.heads, count=special, place="first")
            for index in range(config.layers)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self._pool(self.encoder(self._tokens(images)))

    def explain(self, images: Tensor) -> Outputs:
        tokens, attention = self.encoder.weigh(self._tokens(images))
        class_tokens = None if self.class_grid is None else tokens / tokens.shape[1]
        return Outputs(self._pool(tokens), attention, None, class_tokens)

    def _tokens(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)  # (B, P, width)
        special = self.class_token.expand(patches.shape[0], -1, -1)
        return torch.cat([special, patches], dim=1) + self.position  # (B, N, width)

    def _pool(self, tokens: Tensor) -> Tensor:
        pooled = tokens[:, 0] if self.class_grid is None else tokens.mean(dim=1)
        return self.head(pooled)

"""Vision transformer (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929), class token or mean pooling.

With mean pooling the mean is taken over the patches after the closing norm, so that the class map is exact.

Registers (Darcet et al. 2024, https://arxiv.org/abs/2309.16588) are learned tokens that nothing reads: room for the
global notes that a ViT otherwise keeps in patches without content. As in that paper's code (DINOv2) they stand between
the class token and the patches and have no position embedding; a mean leaves them out.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from export.nets.attention import Encoder, init_transformer
from export.nets.base import Net, Outputs, attention_layer, encoder_depths
from saccade.frozen import Frozen
from saccade.manifest import Pooling


class VitConfig(Frozen):
    kind: Literal["vit"]
    patch: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    width: int = Field(ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    pooling: Literal["class_token", "mean"] = "class_token"
    registers: int = Field(0, ge=0)
    drop_path: float = Field(0.0, ge=0, lt=1)


class Vit(Net):
    undecayed = ("position", "class_token", "registers")

    def __init__(self, config: VitConfig, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        height, width = size
        if height % config.patch or width % config.patch:
            raise ValueError(f"size {height} x {width} is not divisible by patches of {config.patch}")
        rows, columns = height // config.patch, width // config.patch
        class_tokens = 1 if config.pooling == "class_token" else 0
        self.patches = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.class_token = nn.Parameter(torch.empty(1, class_tokens, config.width))
        self.registers = nn.Parameter(torch.empty(1, config.registers, config.width))
        self.position = nn.Parameter(torch.empty(1, class_tokens + rows * columns, config.width))
        hidden = int(config.width * config.mlp_ratio)
        self.encoder = Encoder(config.layers, config.width, config.heads, hidden, drop_path=config.drop_path)
        self.head = nn.Linear(config.width, classes)
        for parameter in (self.class_token, self.registers, self.position):
            nn.init.trunc_normal_(parameter, std=0.02)
        init_transformer(self)

        # Past its last layer a class token mixes with nothing: which patch argued for which class is not in a sum
        # over patches, so there is no exact class map.
        self.class_grid = None if class_tokens else (rows, columns)
        self.pooling = Pooling(kind=config.pooling)
        self.position_grid = (rows, columns)
        self.special_tokens = class_tokens + config.registers
        self.attention_layers = tuple(
            attention_layer(index, (rows, columns), config.heads, count=self.special_tokens, place="first")
            for index in range(config.layers)
        )
        self.depths = encoder_depths(
            config.layers, ("patches.", "class_token", "registers", "position"), after=("head.",)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self._pool(self.encoder(self._tokens(images)))

    def explain(self, images: Tensor) -> Outputs:
        tokens, attention = self.encoder.weigh(self._tokens(images))
        patches = tokens[:, self.special_tokens :]  # (B, P, width)
        class_tokens = None if self.class_grid is None else patches / patches.shape[1]
        return Outputs(self._pool(tokens), attention, None, class_tokens)

    def _tokens(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)  # (B, P, width)
        batch, without_position = patches.shape[0], self.class_token.shape[1]
        class_position, patch_position = self.position[:, :without_position], self.position[:, without_position:]
        class_token = (self.class_token + class_position).expand(batch, -1, -1)
        return torch.cat([class_token, self.registers.expand(batch, -1, -1), patches + patch_position], dim=1)

    def _pool(self, tokens: Tensor) -> Tensor:
        """(B, N, width), normed -> logits."""
        return self.head(tokens[:, 0] if self.class_grid is None else tokens[:, self.special_tokens :].mean(dim=1))

"""The one self-attention of the project: softmax(Q Kᵀ / sqrt(d_k)) V with Q = X W_Q, K = X W_K, V = X W_V.

Two paths give the same result: `forward` runs the fused kernel and is for training; `weigh` also returns the softmax
weights and is what is exported. A test holds both to a float64 reference written from the formula.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RelativePositions(nn.Module):
    """Learned 2-D relative positions of a grid: r[i, j] = height[row j - row i] + width[column j - column i].

    What query i says of position j is q_i · r[i, j], the content-position logits of BoTNet (Srinivas et al. 2021,
    https://arxiv.org/abs/2101.11605, figure 4), after Shaw et al. 2018 and Ramachandran et al. 2019. All heads share
    the embeddings. Row k of `height` stands for k - (rows - 1) rows downwards, and `width` likewise.
    """

    row_steps: Tensor
    column_steps: Tensor

    def __init__(self, grid: tuple[int, int], head_width: int) -> None:
        super().__init__()
        rows, columns = grid
        self.grid = grid
        self.height = nn.Parameter(torch.empty(2 * rows - 1, head_width))
        self.width = nn.Parameter(torch.empty(2 * columns - 1, head_width))
        for embedding in (self.height, self.width):
            nn.init.normal_(embedding, std=head_width**-0.5)
        self.register_buffer("row_steps", _steps(rows), persistent=False)
        self.register_buffer("column_steps", _steps(columns), persistent=False)

    def forward(self, query: Tensor) -> Tensor:
        """(B, H, N, d_k) -> logits (B, H, N, N), not yet divided by sqrt(d_k); tokens stand row by row."""
        height = F.embedding(self.row_steps, self.height)  # (rows of i, rows of j, d_k)
        width = F.embedding(self.column_steps, self.width)  # (columns of i, columns of j, d_k)
        query = query.unflatten(2, self.grid)  # (B, H, rows, columns, d_k)
        vertical = torch.einsum("bhrcd,rkd->bhrck", query, height).unsqueeze(-1)  # (B, H, rows, columns, rows of j, 1)
        horizontal = torch.einsum("bhrcd,ckd->bhrck", query, width).unsqueeze(-2)
        return (vertical + horizontal).flatten(4).flatten(2, 3)


def _steps(count: int) -> Tensor:
    """(i, j) -> the row of an embedding that stands for the step from i to j."""
    places = torch.arange(count)
    return places - places[:, None] + count - 1


class Attention(nn.Module):
    """Multi-head scaled dot-product self-attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

    W_Q, W_K and W_V stand stacked in `qkv`, in this order; `output` is W_O. d_k = width / heads. With
    `positions`, a grid of (rows, columns), the scores are (Q Kᵀ + Q Rᵀ) / sqrt(d_k), R being `RelativePositions`.
    `project=False` leaves W_O out, where a linear layer follows anyway.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        qkv_bias: bool = True,
        positions: tuple[int, int] | None = None,
        project: bool = True,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.head_width = width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.positions = RelativePositions(positions, self.head_width) if positions else None
        self.output = nn.Linear(width, width) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width), fused."""
        query, key, value = self._project(x)
        bias = None if self.positions is None else self.positions(query) / math.sqrt(self.head_width)
        return self._merge(F.scaled_dot_product_attention(query, key, value, attn_mask=bias))

    def weigh(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, width) -> the same result, and the weights (B, H, N, N): row i is what each token gave to token i."""
        query, key, value = self._project(x)
        scores = query @ key.transpose(-2, -1)  # (B, H, N, N)
        if self.positions is not None:
            scores = scores + self.positions(query)
        weights = (scores / math.sqrt(self.head_width)).softmax(dim=-1)
        return self._merge(weights @ value), weights

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, _ = x.shape
        stacked = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_width)
        query, key, value = stacked.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, d_k)
        return query, key, value

    def _merge(self, heads: Tensor) -> Tensor:
        batch, _, tokens, _ = heads.shape
        return self.output(heads.transpose(1, 2).reshape(batch, tokens, -1))


class Mlp(nn.Sequential):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block: x + Attention(LN(x)), then x + MLP(LN(x)), each branch under stochastic depth."""

    def __init__(
        self, width: int, heads: int, mlp_hidden: int, *, qkv_bias: bool = True, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, qkv_bias=qkv_bias)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_hidden)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        x = x + self._drop(self.attention(self.attention_norm(x)))
        return x + self._drop(self.mlp(self.mlp_norm(x)))

    def weigh(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same as `forward` in evaluation mode, and the attention weights (B, H, N, N)."""
        attended, weights = self.attention.weigh(self.attention_norm(x))
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), weights

    def _drop(self, branch: Tensor) -> Tensor:
        """Stochastic depth a sample (Huang et al. 2016, https://arxiv.org/abs/1603.09382)."""
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        mask = torch.rand(branch.shape[0], 1, 1, device=branch.device, dtype=branch.dtype) < keep
        return branch * mask / keep


class Encoder(nn.Module):
    """A stack of blocks and the closing norm; stochastic depth grows linearly from 0 to `drop_path`."""

    def __init__(
        self, layers: int, width: int, heads: int, mlp_hidden: int, *, qkv_bias: bool = True, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            EncoderBlock(width, heads, mlp_hidden, qkv_bias=qkv_bias, drop_path=drop_path * index / max(layers - 1, 1))
            for index in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width), normed."""
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def weigh(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same, and the attention weights of each layer, (B, H, N, N)."""
        attention = []
        for block in self.blocks:
            x, weights = cast(EncoderBlock, block).weigh(x)
            attention.append(weights)
        return self.norm(x), tuple(attention)


def init_transformer(module: nn.Module) -> None:
    """Truncated normal of std 0.02 for linear weights, zero biases (Dosovitskiy et al. 2021, DeiT)."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=0.02)
            if child.bias is not None:
                nn.init.zeros_(child.bias)

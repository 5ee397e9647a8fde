"""Attention rollout in row form (Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928).

Only the pooled row is wanted, so instead of multiplying N x N matrices the row is carried down from the top layer:
r <- (r mean_h(A_l) + r) / 2 from r = w, which is O(L N^2) and equals w times the product of (mean_h(A_l) + I) / 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def rollout(attention: Sequence[Tensor], pooled_row: Tensor) -> Tensor:
    """Layers of (B, H, N, N) in order and the pooling row (B, N) -> (B, N), which sums to 1 where the row does."""
    row = pooled_row.unsqueeze(1)  # (B, 1, N)
    for weights in reversed(attention):
        row = (row @ weights.mean(dim=1) + row) / 2
    return row.squeeze(1)


def pooled_row(kind: str, index: int, tokens: Tensor, learned: Tensor | None) -> Tensor:
    """The pooling row w (B, N): learned, one-hot on the class token, or 1/N. `tokens` is any (B, ..., N)."""
    if kind == "learned":
        assert learned is not None
        return learned
    batch, count = tokens.shape[0], tokens.shape[-1]
    if kind == "class_token":
        row = torch.zeros(1, count, dtype=tokens.dtype, device=tokens.device)
        row[0, index] = 1.0
    else:
        row = torch.full((1, count), 1.0 / count, dtype=tokens.dtype, device=tokens.device)
    return row.expand(batch, count)

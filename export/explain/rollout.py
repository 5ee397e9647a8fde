"""Attention rollout in row form (Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928).

Only the pooled row is wanted, so instead of multiplying N x N matrices the row is carried down from the top layer:
r <- (r mean_h(A_l) + r) / 2 from r = w, which is O(L N^2) and equals w times the product of (mean_h(A_l) + I) / 2.
"""

from collections.abc import Sequence

from torch import Tensor


def rollout(attention: Sequence[Tensor], pooled_row: Tensor) -> Tensor:
    """Layers of (B, H, N, N) in order and the pooling row (B, N) -> (B, N), which sums to 1 where the row does."""
    row = pooled_row.unsqueeze(1)  # (B, 1, N)
    for weights in reversed(attention):
        row = (row @ weights.mean(dim=1) + row) / 2
    return row.squeeze(1)

"""Whole models of unusual shapes, held to float64 autograd: pools with heads, heads before windows."""

import torch
from torch import Tensor, nn

from export.explain.relevance import GRAD_ATTENTION, LEGRAD, RELEVANCE
from tests.export.explain.family_rows import Row, Small, failing, measure
from tests.export.graph.models import WIDTH, Classifier, HeadPool, attend


def head_pool() -> HeadPool:
    torch.manual_seed(0)
    return HeadPool().eval()


class NestedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """(B, windows, N, width); its weights are (B, heads, windows, N, N)."""
        query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(3, 0, 4, 1, 2, 5).unbind(0)
        attended, _ = attend(query, key, value)
        x = x + self.out(attended.permute(0, 2, 3, 4, 1).flatten(3))
        return x + self.mlp(x)


class Nested(Classifier):
    """NesT (Zhang et al. 2022): two windows of 4 x 3, then one over all of 2 x 3."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.merge = nn.Conv2d(3, WIDTH, 8, stride=8), nn.Conv2d(WIDTH, WIDTH, 2, stride=2)
        self.blocks = nn.ModuleList(NestedBlock() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).unflatten(3, (2, 3)).permute(0, 3, 2, 4, 1).flatten(2, 3)
        x = self.blocks[0](x).unflatten(2, (4, 3)).permute(0, 4, 2, 1, 3).flatten(3)
        x = self.merge(x).flatten(2).transpose(1, 2)[:, None]
        for block in self.blocks[1:]:
            x = block(x)
        return self.head(self.norm(x[:, 0]).mean(1))


def nested() -> Nested:
    torch.manual_seed(0)
    return Nested().eval()


def held(row: Row) -> None:
    assert row.said is None
    assert row.maps == (RELEVANCE, GRAD_ATTENTION, LEGRAD)
    assert not failing(row)


def test_a_learned_query_of_several_heads_is_a_pool() -> None:
    """As in SigLIP. Its evidence is the mean over its heads, as that of a layer; and its classifier can be asked for
    the mean of a block's tokens, though it brings a query for each picture.
    """
    row = measure(Small("it", "HeadPool", HeadPool.size, head_pool, head_pool))
    held(row)
    assert [*row.errors] == [*row.maps]


def test_heads_may_stand_before_windows_and_tokens_behind_an_axis_of_one() -> None:
    """As in NesT: the weights are compared in the order of the bundle; LeGrad is held to finite differences."""
    row = measure(Small("it", "Nested", Nested.size, nested, nested))
    held(row)
    assert (row.layers, row.of) == ((3, 3), 2)

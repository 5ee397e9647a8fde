"""Pooling by attention: maps start from what each head of it says."""

import torch

from export.explain.relevance import GRAD_ATTENTION, LEGRAD, RELEVANCE
from tests.export.explain.family_rows import Small, failing, measure
from tests.export.graph.models import HeadPool


def head_pool() -> HeadPool:
    torch.manual_seed(0)
    return HeadPool().eval()


def test_a_learned_query_of_several_heads_has_the_maps_of_float64_autograd() -> None:
    """As in SigLIP. The evidence of the pool is the mean over its heads, as that of a layer; the classifier can be
    asked for the mean of a block's tokens, though it brings a query for each picture.
    """
    row = measure(Small("it", "HeadPool", HeadPool.size, head_pool, head_pool))
    assert row.said is None
    assert row.maps == (RELEVANCE, GRAD_ATTENTION, LEGRAD)
    assert [*row.errors] == [*row.maps]
    assert not failing(row)

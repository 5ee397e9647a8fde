"""Rollout by rows against the product of matrices that Abnar and Zuidema published, typed anew in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from export.convert import Exported
from export.explain.rollout import rollout
from tests.export.conftest import float64, lively_net, noise


def random_attention(layers: int, heads: int, tokens: int) -> list[Tensor]:
    torch.manual_seed(layers)
    return [(3 * torch.randn(2, heads, tokens, tokens)).softmax(-1) for _ in range(layers)]


@pytest.mark.parametrize(("layers", "heads", "tokens"), [(1, 1, 4), (2, 3, 7), (12, 3, 20)])
def test_rows_give_what_the_product_of_matrices_gives(layers: int, heads: int, tokens: int) -> None:
    """The cheap form is the published one: w times the product of (mean over heads of A + I) / 2, last layer first."""
    attention = random_attention(layers, heads, tokens)
    row = torch.randn(2, tokens).softmax(-1)
    product = np.broadcast_to(np.eye(tokens), (2, tokens, tokens))
    for weights in attention:
        product = (float64(weights).mean(1) + np.eye(tokens)) / 2 @ product
    expected = np.einsum("bi,bij->bj", float64(row), product)
    np.testing.assert_allclose(float64(rollout(attention, row)), expected, atol=1e-6)


def test_tokens_that_look_only_at_themselves_leave_the_row_as_it_was() -> None:
    """Identity attention mixes nothing, so the map is the pooling row."""
    row = torch.randn(2, 9).softmax(-1)
    identity = torch.eye(9).expand(2, 4, 9, 9)
    torch.testing.assert_close(rollout([identity] * 5, row), row, atol=1e-7, rtol=0)


def test_over_all_tokens_rollout_sums_to_one() -> None:
    """Attention is passed on, never made or lost."""
    seen = rollout(random_attention(6, 2, 11), torch.randn(2, 11).softmax(-1))
    np.testing.assert_allclose(float64(seen).sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["tiny-cct", "tiny-vit", "tiny-vit-mean"])
def test_the_output_rollout_starts_at_the_nets_own_pooling(name: str) -> None:
    """The map in the graph leaves special tokens out, is not renormalised, and follows how this net pools."""
    net, images = lively_net(name), noise(name, 3)
    outputs = net.explain(images)
    tokens = outputs.attention[0].shape[-1]
    special = net.attention_layers[-1].special_tokens.count
    mean = np.where(np.arange(tokens) < special, 0, 1 / (tokens - special))  # registers are read by nobody
    row = {"tiny-vit": np.eye(tokens)[[0] * 3], "tiny-vit-mean": np.tile(mean, (3, 1))}.get(name)
    if outputs.pooling is not None:
        row = float64(outputs.pooling)
    assert row is not None
    for weights in reversed(outputs.attention):
        row = np.einsum("bi,bij->bj", row, (float64(weights).mean(1) + np.eye(tokens)) / 2)
    seen = Exported(net).arrays(images.numpy())["rollout"]
    np.testing.assert_allclose(seen, row[:, special:], atol=1e-6)

"""softmax(Q Kᵀ / sqrt(d_k)) V, held to the formula typed anew in float64."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.nets.attention import Attention, Encoder
from tests.export.conftest import float64

WIDTH = 24
Array = NDArray[np.float64]


def by_the_formula(
    attention: Attention, x: Array, heads: int, grid: tuple[int, int] | None = None
) -> tuple[Array, Array]:
    """(result, weights) of softmax(Q Kᵀ / sqrt(d_k)) V a picture and head at a time; W_Q, W_K, W_V stacked in qkv.

    With a grid, q_i · (k_j + r_height[steps down from i to j] + r_width[steps right]), a pair of tokens at a time.
    """
    stacked = float64(attention.qkv.weight)
    bias = np.zeros(3 * WIDTH) if attention.qkv.bias is None else float64(attention.qkv.bias)
    query, key, value = (
        x @ stacked[part : part + WIDTH].T + bias[part : part + WIDTH] for part in (0, WIDTH, 2 * WIDTH)
    )
    d_k = WIDTH // heads
    merged = np.empty_like(query)
    weights = np.empty((len(x), heads, x.shape[1], x.shape[1]))
    for picture in range(len(x)):
        for head in range(heads):
            columns = slice(head * d_k, (head + 1) * d_k)
            scores = query[picture][:, columns] @ key[picture][:, columns].T / np.sqrt(d_k)
            if grid is not None:
                scores += position_logits(attention, query[picture][:, columns], grid) / np.sqrt(d_k)
            powers = np.exp(scores - scores.max(-1, keepdims=True))
            weights[picture, head] = powers / powers.sum(-1, keepdims=True)
            merged[picture][:, columns] = weights[picture, head] @ value[picture][:, columns]
    if isinstance(attention.output, torch.nn.Identity):
        return merged, weights
    return merged @ float64(attention.output.weight).T + float64(attention.output.bias), weights


def position_logits(attention: Attention, query: Array, grid: tuple[int, int]) -> Array:
    """(N, N): query i times what stands for the way from i to j; the middle of each embedding is no step."""
    assert attention.positions is not None
    height, width = float64(attention.positions.height), float64(attention.positions.width)
    logits = np.empty((len(query), len(query)))
    for i, j in np.ndindex(*logits.shape):
        down, right = j // grid[1] - i // grid[1], j % grid[1] - i % grid[1]
        logits[i, j] = query[i] @ (height[down + grid[0] - 1] + width[right + grid[1] - 1])
    return logits


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("heads", [1, 2, 3, 8])
def test_both_paths_are_the_formula(heads: int, qkv_bias: bool) -> None:
    """What trains, what is exported and what the paper defines are one and the same attention."""
    torch.manual_seed(heads)
    attention = Attention(WIDTH, heads, qkv_bias=qkv_bias)
    x = 3 * torch.randn(3, 7, WIDTH)
    expected, expected_weights = by_the_formula(attention, float64(x), heads)
    fused = attention(x)
    weighed, weights = attention.weigh(x)
    np.testing.assert_allclose(float64(fused), expected, atol=1e-5)
    np.testing.assert_allclose(float64(weighed), expected, atol=1e-5)
    np.testing.assert_allclose(float64(weights), expected_weights, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 3, 8])
def test_in_double_precision_nothing_but_rounding_is_left(heads: int) -> None:
    """The agreement is that of one formula, not of two approximations."""
    torch.manual_seed(heads)
    attention = Attention(WIDTH, heads).double()
    x = 3 * torch.randn(2, 5, WIDTH, dtype=torch.float64)
    expected, expected_weights = by_the_formula(attention, float64(x), heads)
    weighed, weights = attention.weigh(x)
    np.testing.assert_allclose(float64(attention(x)), expected, atol=1e-13)
    np.testing.assert_allclose(float64(weighed), expected, atol=1e-13)
    np.testing.assert_allclose(float64(weights), expected_weights, atol=1e-13)


@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (4, 1)])
@pytest.mark.parametrize("heads", [1, 3])
def test_relative_positions_are_those_of_the_paper(heads: int, grid: tuple[int, int]) -> None:
    """Both paths add q · (r_height + r_width) to the scores, whatever the shape of the grid: BoTNet's attention."""
    torch.manual_seed(heads)
    tokens = grid[0] * grid[1]
    for project, dtype, allowed in ((True, torch.float32, 1e-5), (False, torch.float64, 1e-13)):
        attention = Attention(WIDTH, heads, qkv_bias=False, positions=grid, project=project).to(dtype)
        x = 3 * torch.randn(2, tokens, WIDTH, dtype=dtype)
        expected, expected_weights = by_the_formula(attention, float64(x), heads, grid)
        weighed, weights = attention.weigh(x)
        np.testing.assert_allclose(float64(attention(x)), expected, atol=allowed)
        np.testing.assert_allclose(float64(weighed), expected, atol=allowed)
        np.testing.assert_allclose(float64(weights), expected_weights, atol=allowed)


def test_relative_positions_are_trained_on_the_fused_path() -> None:
    """The gradient reaches them and is that of the other path."""
    torch.manual_seed(0)
    attention = Attention(WIDTH, 2, positions=(2, 3))
    x = torch.randn(2, 6, WIDTH)
    assert attention.positions is not None
    embeddings = [attention.positions.height, attention.positions.width]
    fused = torch.autograd.grad(attention(x).square().sum(), embeddings)
    other = torch.autograd.grad(attention.weigh(x)[0].square().sum(), embeddings)
    for ours, theirs in zip(fused, other, strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_each_row_of_weights_sums_to_one(heads: int) -> None:
    """Row i is how token i shares its look among all tokens: nothing negative, nothing lost."""
    weights = Attention(WIDTH, heads).weigh(3 * torch.randn(2, 9, WIDTH))[1]
    assert weights.shape == (2, heads, 9, 9)
    assert weights.min() >= 0
    np.testing.assert_allclose(float64(weights).sum(-1), 1, atol=1e-6)


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    """Both numbers are in the message."""
    with pytest.raises(ValueError, match="width 24 is not divisible by 5 heads"):
        Attention(WIDTH, 5)


def test_stochastic_depth_has_no_effect_in_evaluation() -> None:
    """It belongs to training: a served model never drops a branch."""
    plain, dropping = (Encoder(3, WIDTH, 2, 48, drop_path=share) for share in (0.0, 0.9))
    dropping.load_state_dict(plain.state_dict())
    x = torch.randn(4, 6, WIDTH)
    assert torch.equal(dropping.eval()(x), plain.eval()(x))
    assert not torch.equal(dropping.train()(x), plain(x))


def test_stochastic_depth_drops_whole_branches_and_keeps_the_mean() -> None:
    """In training each picture's branch is gone or scaled up by 1/keep, as published; the first layer is spared."""
    torch.manual_seed(0)
    encoder = Encoder(2, WIDTH, 2, 48, drop_path=0.5).train()
    first, last = encoder.blocks
    x = torch.randn(64, 6, WIDTH)
    torch.nn.init.zeros_(last.mlp[2].weight)
    torch.nn.init.zeros_(last.mlp[2].bias)
    branch = last.attention(last.attention_norm(x))
    seen = last(x) - x
    dropped = (seen == 0).flatten(1).all(1)
    torch.testing.assert_close(seen[~dropped], 2 * branch[~dropped], atol=1e-5, rtol=1e-5)
    assert 16 <= dropped.sum() <= 48
    assert torch.equal(first.train()(x), first.eval()(x))

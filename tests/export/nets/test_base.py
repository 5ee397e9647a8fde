"""What every net promises, whatever its kind."""

import captum.attr
import numpy as np
import pytest
import torch

from export.nets import build
from tests.conftest import NETS, SIZES, tiny_recipe
from tests.export.conftest import float64, lively_net, noise

EVERY_NET = pytest.mark.parametrize("name", NETS)


@EVERY_NET
def test_forward_and_explain_agree(name: str) -> None:
    """The net that explains itself is the net that was trained."""
    net, images = lively_net(name), noise(name, 5)
    np.testing.assert_allclose(float64(net.explain(images).logits), float64(net(images)), atol=2e-5)


@EVERY_NET
def test_class_tokens_sum_to_the_logits(name: str) -> None:
    """The exact class map leaves nothing out: its sum plus the bias is the logit, for every class."""
    net = lively_net(name)
    outputs = net.explain(noise(name, 5))
    assert (outputs.class_tokens is None) == (net.class_grid is None)
    if outputs.class_tokens is None or net.class_grid is None:
        assert name == "tiny-vit", "only a class-token net has no exact class map"
        return
    assert outputs.class_tokens.shape == (5, net.class_grid[0] * net.class_grid[1], net.head.in_features)
    maps = float64(outputs.class_tokens) @ float64(net.head.weight).T  # (B, P, classes)
    np.testing.assert_allclose(maps.sum(1) + float64(net.head.bias), float64(outputs.logits), atol=1e-5)


@EVERY_NET
def test_the_geometry_of_each_attention_layer_is_that_of_its_tensor(name: str) -> None:
    """Grid, heads and special tokens are stated, so that nobody takes a square root."""
    net = lively_net(name)
    attention = net.explain(noise(name, 3)).attention
    assert len(attention) == len(net.attention_layers)
    for index, (layer, weights) in enumerate(zip(net.attention_layers, attention, strict=True)):
        tokens = layer.grid[0] * layer.grid[1] + layer.special_tokens.count
        assert layer.output == f"attention_{index:02d}"
        assert weights.shape == (3, layer.heads, tokens, tokens)
        np.testing.assert_allclose(float64(weights).sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["tiny-cct", "tiny-vit", "tiny-vit-mean", "tiny-resnet"])
def test_a_picture_that_is_not_square_has_a_grid_that_is_not_square(name: str) -> None:
    """Rows come from the height and columns from the width."""
    down = {"tiny-cct": 2, "tiny-vit": 4, "tiny-vit-mean": 8, "tiny-resnet": 4}[name]
    net = build(tiny_recipe(name).net, (16, 40), 10).eval()
    outputs = net.explain(torch.randn(2, 3, 16, 40))
    grid = (16 // down, 40 // down)
    assert {layer.grid for layer in net.attention_layers} <= {grid}
    assert net.class_grid in (None, grid)
    assert outputs.class_tokens is None or outputs.class_tokens.shape[1] == grid[0] * grid[1]
    assert outputs.logits.shape == (2, 10)


def test_tokens_stand_row_by_row() -> None:
    """Token i is the patch in row i // columns and column i % columns: a change of one patch moves that token."""
    height, width = SIZES["tiny-vit"]
    net, image = lively_net("tiny-vit"), noise("tiny-vit", 1)
    changed = image.clone()
    changed[..., 4:8, 12:16] += 1  # row 1, column 3 of 4 rows and 6 columns
    moved = (net._tokens(changed) - net._tokens(image)).abs().sum(-1)[0]
    assert (height // 4, width // 4) == net.attention_layers[0].grid
    assert moved.nonzero().tolist() == [[1 + 1 * 6 + 3]]


def test_learned_pooling_is_a_share_of_one() -> None:
    """SeqPool's weights are a row of attention like any other."""
    pooling = lively_net("tiny-cct").explain(noise("tiny-cct", 4)).pooling
    assert pooling is not None
    assert pooling.shape == (4, 64)
    np.testing.assert_allclose(float64(pooling).sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (18, 30), (15, 17)])
def test_the_class_map_of_the_cnn_is_grad_cam(size: tuple[int, int]) -> None:
    """For a CNN with global average pooling it equals captum's Grad-CAM at the last stage, up to scale and ReLU."""
    torch.manual_seed(0)
    net = build(tiny_recipe("tiny-resnet").net, size, 10).eval()
    images = torch.randn(2, 3, *size)
    tokens = net.explain(images).class_tokens
    assert tokens is not None
    assert net.class_grid is not None
    for index in (0, 7):
        ours = (tokens @ net.head.weight[index]).reshape(2, *net.class_grid).relu()
        grad_cam = captum.attr.LayerGradCam(net, net.blocks)
        theirs = grad_cam.attribute(images, target=index, relu_attributions=True)[:, 0]
        scaled = [float64(maps / maps.amax((1, 2), keepdim=True)) for maps in (ours, theirs)]
        np.testing.assert_allclose(scaled[0], scaled[1], atol=1e-5)

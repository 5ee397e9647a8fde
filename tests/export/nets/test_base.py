"""What every net promises, whatever its kind."""

from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from export.nets import NetConfig, build
from export.nets.base import layer_rates
from export.nets.maps import output_names
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


@EVERY_NET
def test_a_picture_that_is_not_square_has_a_grid_that_is_not_square(name: str) -> None:
    """Rows come from the height and columns from the width."""
    down = {"tiny-cct": 2, "tiny-vit": 4, "tiny-vit-mean": 8, "tiny-hybrid": 8, "tiny-resnet": 4, "tiny-convmixer": 4}
    net = build(tiny_recipe(name).net, (16, 40), 10).eval()
    outputs = net.explain(torch.randn(2, 3, 16, 40))
    grid = (16 // down[name], 40 // down[name])
    grids = {layer.grid for layer in net.attention_layers}
    assert grids <= ({grid} if name != "tiny-hybrid" else {(4, 10), grid})  # it halves its grid after a layer
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


@EVERY_NET
def test_every_parameter_is_trained(name: str) -> None:
    """Under bfloat16 autocast too: each has a gradient that is finite, and some steps along them lower the loss."""
    torch.manual_seed(0)
    net = build(tiny_recipe(name).net, tiny_recipe(name).size, 10).train()
    images, labels = noise(name, 16), torch.arange(16) % 10
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    losses, moved = [], set()
    for _ in range(8):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(net(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        for parameter, tensor in net.named_parameters():
            assert tensor.grad is not None, parameter
            assert tensor.grad.isfinite().all(), parameter
            moved |= {parameter} if tensor.grad.any() else set()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert {parameter for parameter, tensor in net.named_parameters() if tensor.numel()} == moved


@EVERY_NET
def test_every_parameter_has_one_depth_and_the_head_the_last(name: str) -> None:
    """What layer-wise rates count: nothing is left out, nothing stands twice, and rates fall towards the picture."""
    net = lively_net(name)
    for parameter, _ in net.named_parameters():
        assert sum(parameter.startswith(beginnings) for beginnings in net.depths) == 1, parameter
    rates = layer_rates(net, 0.5)
    assert rates.keys() == dict(net.named_parameters()).keys()
    assert rates["head.weight"] == rates["head.bias"] == 1
    first = next(iter(rates.values())) if not name.startswith("tiny-vit") else rates["position"]
    assert first == min(rates.values()) == 0.5 ** (len(net.depths) - 1)
    assert set(rates.values()) == {0.5**distance for distance in range(len(net.depths))}


def test_rates_of_a_transformer_fall_block_by_block() -> None:
    """As BEiT counts: embeddings furthest from the head, each block one nearer, norm, pooling and head at the end."""
    rates = layer_rates(lively_net("tiny-cct"), 0.75)
    assert {rates[name] for name in rates if name.startswith("tokenizer") or name == "position"} == {0.75**3}
    assert {rates[name] for name in rates if name.startswith("encoder.blocks.0.")} == {0.75**2}
    assert {rates[name] for name in rates if name.startswith("encoder.blocks.1.")} == {0.75}
    assert {rates[name] for name in rates if name.startswith(("encoder.norm", "seq_pool", "head"))} == {1.0}


@pytest.mark.parametrize("pooling", ["class_token", "mean"])
def test_registers_are_tokens_without_a_place_that_no_head_reads(pooling: str) -> None:
    """They stand between class token and patches, get no position embedding, and are no part of a mean."""
    table = {**NETS["tiny-vit"], "pooling": pooling, "registers": 3}
    torch.manual_seed(0)
    net = build(TypeAdapter[Any](NetConfig).validate_python(table), (8, 12), 10).eval()
    first = 1 if pooling == "class_token" else 0
    assert {(layer.special_tokens.count, layer.special_tokens.place) for layer in net.attention_layers} == {
        (first + 3, "first")
    }
    images = torch.randn(2, 3, 8, 12)
    tokens = net._tokens(images)
    assert tokens.shape == (2, first + 3 + 6, 32)
    torch.testing.assert_close(tokens[:, first : first + 3], net.registers.expand(2, -1, -1))
    with torch.no_grad():
        net.position.add_(1)
    moved = (net._tokens(images) - tokens).abs().amax((0, 2))
    assert (moved > 0).tolist() == [True] * first + [False] * 3 + [True] * 6
    encoded = net.encoder(net._tokens(images))
    read = encoded[:, 0] if first else encoded[:, 3:].mean(1)
    torch.testing.assert_close(net(images), net.head(read))


def test_with_stride_1_the_hybrids_layers_share_a_grid_and_roll_out() -> None:
    """BoT-S1: rollout is offered where all layers share one grid, and only there."""
    tables = [{**NETS["tiny-hybrid"], "stride": stride, "heads": [2, 4, 2]} for stride in (1, 2)]
    one, two = (build(TypeAdapter[Any](NetConfig).validate_python(table), (24, 16), 10) for table in tables)
    assert [layer.grid for layer in one.attention_layers] == [(6, 4)] * 3
    assert [layer.grid for layer in two.attention_layers] == [(6, 4), (3, 2), (3, 2)]
    assert [layer.heads for layer in two.attention_layers] == [2, 4, 2]
    assert (one.class_grid, two.class_grid) == ((6, 4), (3, 2))
    assert "rollout" in output_names(one)
    assert "rollout" not in output_names(two)


def test_the_pooled_stem_is_a_convolution_and_2_x_2_max_pooling() -> None:
    """It halves the grid once, sides that are odd rounded up, and hides no pixel from the stages."""
    table = {**NETS["tiny-hybrid"], "stem": "pooled", "blocks": [1, 1], "stride": 1}
    net = build(TypeAdapter[Any](NetConfig).validate_python(table), (18, 14), 10).eval()
    images = torch.randn(2, 3, 18, 14)
    (features,) = (net.stem_pool(net.stem_norm(net.stem(images)).relu()),)
    expected = net.stem_norm(net.stem(images)).relu().unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    torch.testing.assert_close(features, expected)
    assert net.class_grid == (5, 4)
    assert net.explain(images).attention[0].shape == (2, 2, 20, 20)


def test_the_hybrids_counterpart_has_convolutions_where_that_attends_and_all_else_alike() -> None:
    """What is compared with attention differs from it in that alone; its class map is exact as well."""
    tables = [{**NETS["tiny-hybrid"], "mixer": mixer} for mixer in ("attention", "convolution")]
    one, other = (build(TypeAdapter[Any](NetConfig).validate_python(table), (24, 16), 10) for table in tables)
    shapes, others = ({name: value.shape for name, value in net.named_parameters()} for net in (one, other))
    assert set(shapes) ^ set(others) == {
        *(name for name in shapes if ".attention." in name),
        *(f"attention_blocks.{index}.conv2.weight" for index in (0, 1)),
    }
    assert all(others[name] == shapes[name] for name in set(shapes) & set(others))
    assert others["attention_blocks.0.conv2.weight"] == (16, 16, 3, 3)
    assert (other.attention_layers, other.pooling) == ((), None)
    assert other.class_grid == one.class_grid
    images = torch.randn(2, 3, 24, 16)
    outputs = other.eval().explain(images)
    assert outputs.attention == ()
    assert outputs.class_tokens is not None
    summed = outputs.class_tokens.sum(1) @ other.head.weight.T + other.head.bias
    torch.testing.assert_close(summed, other(images))

"""Recipes' [net] tables, and the nets that they become."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from export.nets import Net, NetConfig, build
from saccade.errors import RecipeError

CCT = {"kind": "cct", "layers": 2, "heads": 2, "width": 128, "mlp_ratio": 1.0, "kernel": 3, "convolutions": 2}
CCT_7 = {**CCT, "layers": 7, "heads": 4, "width": 256, "mlp_ratio": 2.0}
VIT_TINY = {"kind": "vit", "patch": 16, "layers": 12, "heads": 3, "width": 192}
VIT_SMALL = {**VIT_TINY, "heads": 6, "width": 384}
RESNET_50 = {"kind": "resnet", "depth": 50, "stages": 4, "stem": "imagenet"}
BOTNET_50 = {
    "kind": "hybrid",
    "stem": "imagenet",
    "block": "bottleneck",
    "blocks": [3, 4, 6],
    "heads": [4, 4, 4],
    "attention_width": 512,
}
HYBRID_S = {
    "kind": "hybrid",
    "stem": "pooled",
    "block": "basic",
    "blocks": [2, 2],
    "width": 96,
    "heads": [4, 4],
    "attention_width": 192,
    "attention_expansion": 2,
    "stride": 1,
}
CONVMIXER = {"kind": "convmixer", "width": 256, "layers": 8, "kernel": 5, "patch": 2}


def botnet_50(stride: int) -> int:
    """ResNet-50 with W_Q, W_K, W_V of 512 x 512 in place of three 3 x 3 convolutions, and relative positions of 128.

    The paper rounds it to 20.8 M.
    """
    grids = [14, 14 // stride, 14 // stride]
    return 25_557_032 - 3 * (9 - 3) * 512 * 512 + sum(2 * (2 * side - 1) * 128 for side in grids)


def convmixer(width: int, layers: int, kernel: int, patch: int, classes: int) -> int:
    """Patches, then a depthwise and a 1 x 1 convolution a layer, each with bias, scale and shift; and the head."""
    per_layer = width * kernel**2 + width * width + 2 * 3 * width
    return (3 * patch**2 + 3) * width + layers * per_layer + (width + 1) * classes


def hybrid_s(in_the_middle: int) -> int:
    """Two stages of 96 and 192 channels, two blocks around `in_the_middle` parameters; a norm has two a channel."""
    stem = 27 * 96 + 2 * 96
    stages = 4 * (9 * 96 * 96 + 2 * 96) + 9 * 96 * 192 + 3 * 9 * 192 * 192 + 96 * 192 + 5 * 2 * 192
    around = 192 * 192 + 2 * 2 * 192 + 192 * 384 + 2 * 384
    first, second = around + 192 * 384 + 2 * 384, around + (384 - 192) * 192
    return stem + stages + first + second + 2 * in_the_middle + 384 * 10 + 10


def net_of(table: dict[str, Any], size: tuple[int, int], classes: int) -> Net:
    return build(TypeAdapter[Any](NetConfig).validate_python(table), size, classes)


@pytest.mark.parametrize(
    ("table", "side", "classes", "published"),
    [
        # SHI-Labs/Compact-Transformers, src/cct.py, its modules counted
        pytest.param(CCT, 32, 10, 283_723, id="CCT-2/3x2"),
        pytest.param({**CCT, "layers": 4}, 32, 10, 482_123, id="CCT-4/3x2"),
        pytest.param(CCT_7, 32, 10, 3_853_259, id="CCT-7/3x2"),
        pytest.param({**CCT_7, "convolutions": 1}, 32, 10, 3_760_139, id="CCT-7/3x1"),
        pytest.param({"kind": "resnet", "depth": 20}, 32, 10, 269_722, id="ResNet-20"),
        pytest.param({"kind": "resnet", "depth": 56}, 32, 10, 853_018, id="ResNet-56, option A"),
        pytest.param({"kind": "resnet", "depth": 18, "stages": 4}, 32, 10, 11_173_962, id="ResNet-18, 32 pixels"),
        # torchvision's and timm's models
        pytest.param({**RESNET_50, "depth": 18}, 224, 1000, 11_689_512, id="ResNet-18"),
        pytest.param({**RESNET_50, "depth": 34}, 224, 1000, 21_797_672, id="ResNet-34"),
        pytest.param(RESNET_50, 224, 1000, 25_557_032, id="ResNet-50"),
        pytest.param({**RESNET_50, "depth": 101}, 224, 1000, 44_549_160, id="ResNet-101"),
        pytest.param({**RESNET_50, "depth": 152}, 224, 1000, 60_192_808, id="ResNet-152"),
        pytest.param(VIT_TINY, 224, 1000, 5_717_416, id="ViT-Ti/16"),
        pytest.param(VIT_SMALL, 224, 1000, 22_050_664, id="ViT-S/16"),
        pytest.param({**VIT_SMALL, "registers": 4}, 224, 1000, 22_050_664 + 4 * 384, id="ViT-S/16 with registers"),
        pytest.param(BOTNET_50, 224, 1000, botnet_50(stride=2), id="BoT50"),
        pytest.param({**BOTNET_50, "stride": 1}, 224, 1000, botnet_50(stride=1), id="BoT-S1-50"),
        pytest.param(HYBRID_S, 32, 10, hybrid_s(3 * 192 * 192 + 2 * 15 * 48), id="hybrid, pooled stem"),
        pytest.param({**HYBRID_S, "mixer": "convolution"}, 32, 10, hybrid_s(9 * 192 * 192), id="its counterpart"),
        pytest.param(CONVMIXER, 32, 10, convmixer(256, 8, 5, 2, 10), id="ConvMixer-256/8"),
        # 21.1 M in the paper, 21,110,248 in timm
        pytest.param(
            {**CONVMIXER, "width": 768, "layers": 32, "kernel": 7, "patch": 7},
            224,
            1000,
            21_110_248,
            id="ConvMixer-768/32",
        ),
    ],
)
def test_a_net_has_as_many_parameters_as_published(
    table: dict[str, Any], side: int, classes: int, published: int
) -> None:
    """A net that bears a published name has the published size."""
    with torch.device("meta"):
        assert net_of(table, (side, side), classes).parameter_count == published


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({**CCT, "heads": 3}, "width 128 is not divisible by 3 heads"),
        ({**VIT_TINY, "patch": 7}, "size 32 x 32 is not divisible by patches of 7"),
        ({"kind": "resnet", "depth": 21}, "depth must be 6n [+] 2 with 3 stages, not 21"),
        ({"kind": "resnet", "depth": 2}, "depth must be 6n [+] 2 with 3 stages, not 2"),
        ({"kind": "resnet", "depth": 20, "stem": "imagenet"}, "3 stages have the small stem, not the imagenet one"),
        ({"kind": "resnet", "depth": 20, "stages": 4}, "depth must be one of 18, 34, 50, 101, 152 with 4 stages"),
        ({**CONVMIXER, "patch": 5}, "size 32 x 32 is not divisible by patches of 5"),
        ({**CONVMIXER, "kernel": 4}, "kernel must be odd, so that the grid stays, not 4"),
        ({**BOTNET_50, "heads": [4, 5]}, "width 512 is not divisible by 5 heads"),
    ],
)
def test_numbers_that_clash_are_named(change: dict[str, Any], says: str) -> None:
    """A recipe that cannot be built says which of its numbers do not fit."""
    with pytest.raises(RecipeError, match=rf"\[net\]: {says}"):
        net_of(change, (32, 32), 10)


@pytest.mark.parametrize(
    ("table", "key"), [(CCT, "heads"), (CCT, "width"), (CCT, "layers"), (VIT_TINY, "patch"), (VIT_TINY, "heads")]
)
def test_a_zero_is_no_size(table: dict[str, Any], key: str) -> None:
    """Nothing is divided by zero: the recipe is refused with the key."""
    with pytest.raises(ValidationError, match=rf"{key}\n  Input should be greater than or equal to 1"):
        net_of({**table, key: 0}, (32, 32), 10)


def test_a_stride_that_would_cut_a_grid_is_refused_with_the_grid() -> None:
    """Average pooling of an odd grid would drop its last row, and the map would not show it."""
    with pytest.raises(RecipeError, match=r"\[net\]: stride 2 .* pictures of 224 x 240 it is 14 x 15"):
        net_of(BOTNET_50, (224, 240), 10)

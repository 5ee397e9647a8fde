"""Recipes' [net] tables, and the nets that they become."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from export.nets import Net, NetConfig, build
from saccade.errors import RecipeError

CCT = {"kind": "cct", "layers": 2, "heads": 2, "width": 128, "mlp_ratio": 1.0, "kernel": 3, "convolutions": 2}
VIT_TINY = {"kind": "vit", "patch": 16, "layers": 12, "heads": 3, "width": 192}


def net_of(table: dict[str, Any], size: tuple[int, int], classes: int) -> Net:
    return build(TypeAdapter[Any](NetConfig).validate_python(table), size, classes)


@pytest.mark.parametrize(
    ("table", "side", "classes", "published"),
    [
        pytest.param(CCT, 32, 10, 283_723, id="CCT-2/3x2"),
        pytest.param({"kind": "resnet", "depth": 20}, 32, 10, 269_722, id="ResNet-20"),
        pytest.param({"kind": "resnet", "depth": 56}, 32, 10, 853_018, id="ResNet-56, option A"),
        pytest.param(VIT_TINY, 224, 1000, 5_717_416, id="ViT-Ti/16"),
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
        ({"kind": "resnet", "depth": 21}, "depth must be 6n [+] 2, not 21"),
        ({"kind": "resnet", "depth": 2}, "depth must be 6n [+] 2, not 2"),
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

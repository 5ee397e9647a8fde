"""However a module is written, its graph is of plain operators and gives what the module gives in float64."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.graph.attention import find
from export.graph.places import Places
from export.names import LOGITS
from export.runtime import open_graph
from export.trace import name_after_modules, simplify, trace

SIZE = (4, 6)


def held(module: nn.Module) -> ir.Model:
    """Its graph, which gives what it gives for 1, 2 and 5 pictures."""
    model = trace(module.eval(), SIZE, [LOGITS])
    name_after_modules(model)
    simplify(model)
    answer = open_graph(ir.to_proto(model).SerializeToString())
    for count in (1, 2, 5):
        pixels = torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            expected = module.double()(pixels.double()).numpy()
        np.testing.assert_allclose(answer(pixels.numpy())[LOGITS], expected, atol=1e-5)
        module.float()
    return model


class Attends(nn.Module):
    """Over all pixels, in windows of a half, or in one head: queries of 5, 4 or 3 axes."""

    def __init__(self, rank: int, **settings: Any) -> None:
        super().__init__()
        self.rank, self.settings = rank, settings
        self.qkv, self.head = nn.Linear(3, 24), nn.Linear(8, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.qkv(pixel_values.flatten(2).transpose(1, 2))
        if self.rank == 5:
            x = x.unflatten(1, (2, -1))
        if self.rank > 3:
            x = x.unflatten(-1, (2, -1)).transpose(-2, -3)
        x = F.scaled_dot_product_attention(*x.chunk(3, -1), **self.settings)
        x = x if self.rank == 3 else x.transpose(-2, -3).flatten(-2)
        return self.head(x.flatten(1, -2).mean(1))


SETTINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "scale": {"scale": 0.7},
    "causal": {"is_causal": True},
    "booleans": {"attn_mask": torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) > 0.3},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("rank", [3, 5])
def test_fused_attention_may_have_any_number_of_axes(rank: int, setting: str) -> None:
    """torch's exporter takes 4 only; Twins, NesT, Hiera and SAM of timm have windows or no heads."""
    torch.manual_seed(0)
    settings = dict(SETTINGS[setting])
    if rank == 3 and setting == "booleans":
        settings["attn_mask"] = settings["attn_mask"].repeat(2, 2)
    model = held(Attends(rank, **settings))
    assert [node.op_type for node in model.graph].count("Softmax") == 1


@pytest.mark.parametrize("booleans", [True, False])
def test_a_query_whose_keys_are_all_masked_sees_nothing(booleans: bool) -> None:
    """As in PyTorch, which gives 0 there and no NaN."""
    torch.manual_seed(0)
    mask = torch.ones(24, 24, dtype=torch.bool)
    mask[3] = False
    module = Attends(3, attn_mask=mask)
    if not booleans:
        numbers = nn.Parameter(torch.where(mask, 0.0, -torch.inf))
        module.register_parameter("mask", numbers)
        module.settings["attn_mask"] = numbers
    model = held(module)
    (found,) = find(model, Places(model, SIZE).follow_all(model))
    assert found.tokens == (24, 24)


def test_numbers_are_added_to_the_scores_of_a_mask() -> None:
    torch.manual_seed(0)

    class Masked(Attends):
        def __init__(self) -> None:
            super().__init__(5)
            self.bias = nn.Parameter(torch.randn(2, 12, 12))

        def forward(self, pixel_values: Tensor) -> Tensor:
            self.settings = {"attn_mask": self.bias}
            return super().forward(pixel_values)

    held(Masked())


class Twice(nn.Module):
    """One module that attends twice, as ConViT's does (d'Ascoli et al. 2021), and once more when it is called again."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = x + (self.query(x) @ x.mT).softmax(-1) @ x
            return x

    def __init__(self) -> None:
        super().__init__()
        self.part, self.head = Twice.Part(), nn.Linear(3, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = pixel_values.flatten(2).transpose(1, 2)
        return self.head(self.part(self.part(x)).mean(1))


def test_each_attention_of_a_module_has_a_name_of_its_own() -> None:
    """ONNX Runtime loads no graph in which two nodes have one."""
    torch.manual_seed(0)
    model = held(Twice())
    names = [found.name for found in find(model, Places(model, SIZE).follow_all(model))]
    assert names[:3] == ["part", "part (2)", "part (3)"]
    assert len({*names}) == 4


class ChannelsLast(nn.Module):
    """A mean over pixels whose channels lie last in memory, as behind the blocks of most hybrids."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.pool = nn.AdaptiveAvgPool2d(1) if dimensions == 2 else nn.AdaptiveAvgPool1d(1)
        self.mix, self.head = nn.Linear(3, 8), nn.Linear(8, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.mix(pixel_values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.pool(x if self.dimensions == 2 else x.flatten(2)).flatten(1))


@pytest.mark.parametrize("dimensions", [1, 2])
def test_an_adaptive_pool_to_one_place_is_a_mean(dimensions: int) -> None:
    """PyTorch would write it as strides over all numbers of the batch, in which nobody knows a mean."""
    torch.manual_seed(0)
    operators = {node.op_type for node in held(ChannelsLast(dimensions)).graph}
    assert "ReduceMean" in operators
    assert "Gather" not in operators

"""A pool over a whole map, however it is written, is read as one; and what is pooled on the way does not count."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from export.explain.relevance import Classifier, add_relevance
from export.explain.source import last_features
from export.graph.expose import expose
from export.names import LOGITS
from export.runtime import open_graph
from export.trace import simplify, trace
from saccade.errors import BundleError


class Squeezing(nn.Module):
    """A convolution, its channels weighed by what a side branch pools (Hu et al. 2018), a pool, a linear layer."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 6, 1)
        self.weigh = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.pool, self.head = pool, nn.Linear(6, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        features = self.stem(pixel_values).relu()
        return self.head(self.pool(self.last(features * self.weigh(features))).flatten(1))


POOLS = {
    "larger than the map": nn.AvgPool2d(100, ceil_mode=True),
    "as large as the map": nn.AvgPool2d((4, 6)),
    "the greatest": nn.MaxPool2d((4, 6)),
    "adaptive": nn.AdaptiveAvgPool2d(1),
}


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_over_the_whole_map_is_read_as_one(pool: str) -> None:
    """EfficientNet's has a window of 1280 for a map of 7 x 7; what it gives is the same, and it has a class map."""
    torch.manual_seed(0)
    module = Squeezing(POOLS[pool]).eval()
    model = trace(module, (8, 12), [LOGITS])
    simplify(model)
    maps = expose(model, (8, 12)).maps
    assert (maps.class_map is not None) == (pool != "the greatest")
    assert not [node for node in model.graph if node.op_type in ("AveragePool", "MaxPool")]
    pixels = torch.randn(3, 3, 8, 12)
    with torch.no_grad():
        expected = module(pixels).numpy()
    seen = open_graph(ir.to_proto(model).SerializeToString())(pixels.numpy())
    np.testing.assert_allclose(seen[LOGITS], expected, atol=1e-6)


@pytest.mark.parametrize("pool", POOLS)
def test_the_last_features_are_what_all_logits_hang_on(pool: str) -> None:
    """Not what a side branch pools to weigh channels."""
    model = trace(Squeezing(POOLS[pool]).eval(), (8, 12), [LOGITS])
    simplify(model)
    expose(model, (8, 12))
    logits = next(value for value in model.graph.outputs if value.name == LOGITS)
    found = last_features(model, logits).producer()
    assert found is not None
    assert found.op_type == "Conv"
    assert found.inputs[1] is not None
    assert "last" in str(found.inputs[1].name)


class OverLines(nn.Module):
    """What the pictures give goes through a convolution over something else before the logits."""

    def __init__(self, *, patches: bool) -> None:
        super().__init__()
        self.patches = patches
        self.last, self.over, self.head = nn.Conv2d(3, 6, 4, 4), nn.Conv1d(6, 6, 1), nn.Linear(6, 5)
        self.pixels = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        if self.patches:  # each a picture of its own, as TNT has them (Han et al. 2021)
            patches = nn.functional.unfold(pixel_values, 4, stride=4).transpose(1, 2).reshape(-1, 3, 4, 4)
            patches = self.pixels(patches).reshape(-1, 6, 8).mean(2)
            return self.head(patches.reshape(pixel_values.shape[0], -1, 6).mean(1))
        return self.head(self.over(self.last(pixel_values).flatten(2)).mean(2))


def test_a_convolution_over_lines_gives_no_feature_map() -> None:
    """Grad-CAM is of the last one over rows and columns."""
    model = trace(OverLines(patches=False).eval(), (8, 12), [LOGITS])
    simplify(model)
    found = last_features(model, model.graph.outputs[0]).producer()
    assert found is not None
    assert found.inputs[1] is not None
    assert "last" in str(found.inputs[1].name)


def test_feature_maps_of_patches_give_no_map_of_the_picture() -> None:
    """One sentence says why there is none."""
    model = trace(OverLines(patches=True).eval(), (8, 12), [LOGITS])
    simplify(model)
    classifier = Classifier("it", model.graph.outputs[0], 5, (), (), None, None)
    with pytest.raises(BundleError, match=r"it: its last feature map is no \(batch, channels, rows, columns\)"):
        add_relevance(model, classifier)

"""What stands between two attention layers, or before the first: whether tokens are still those of the picture's grid.

The truth is in the nets: where a mirrored picture is convolved, no token lies where the grid says.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from export.graph.expose import expose
from export.names import LOGITS
from export.trace import simplify, trace
from tests.export.graph import models

Between = Callable[["Two", Tensor, Tensor], Tensor]
"""Of the net, the tokens before the first block and behind it."""


class Two(models.Classifier):
    """Patches, a block, something else, a block, the mean."""

    def __init__(self, between: Between, turn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        width = models.WIDTH
        self.between, self.turn = between, turn
        self.patch = nn.Conv2d(3, width, 8, stride=8)
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.rows = nn.Conv2d(width, width, (3, 1), padding=(1, 0))
        self.first, self.second = models.Block(), models.Block()
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, models.CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        self.begin()
        before = self.patch(self.turn(pixel_values)).flatten(2).transpose(1, 2)
        x = self.between(self, before, self.first(before, self))
        return self.head(self.norm(self.second(x, self)).mean(1))


def mixed(net: Two, x: Tensor) -> Tensor:
    """A convolution of neighbours."""
    return net.mix(x.transpose(1, 2).unflatten(2, (4, 6))).flatten(2).transpose(1, 2)


def in_lines(net: Two, x: Tensor) -> Tensor:
    """A convolution of what stands before and behind in the list of tokens, as over a picture one wide."""
    return net.rows(x.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)


def same(x: Tensor) -> Tensor:
    return x


SEEN = {
    "residual": (lambda net, _, x: x + mixed(net, x), same, [(4, 6), (4, 6)], True),
    "residual over lines": (lambda net, _, x: x + in_lines(net, x), same, [(4, 6), (4, 6)], True),
    "none": (lambda net, _, x: mixed(net, x), same, [(4, 6), (4, 6)], False),
    "a gate": (lambda net, _, x: mixed(net, x) * x.mean(-1, keepdim=True).sigmoid(), same, [(4, 6), (4, 6)], False),
    "over the attention": (lambda net, before, x: before + mixed(net, x), same, [(4, 6), (4, 6)], False),
    "mirrored": (lambda _, __, x: x, lambda pixels: pixels.flip(3), [], False),
    "turned": (lambda _, __, x: x, lambda pixels: pixels.transpose(2, 3), [], False),
    "rolled": (lambda _, __, x: x, lambda pixels: pixels.roll((8, 8), (2, 3)), [], False),
}


@pytest.mark.parametrize("name", SEEN)
def test_tokens_are_followed_as_far_as_they_keep_their_places(name: str) -> None:
    """Grids of the layers, and whether rollout may join both: only where a residual stream carries the tokens on."""
    between, turn, grids, joined = SEEN[name]
    torch.manual_seed(0)
    net = Two(between, turn)
    model = trace(net, net.size, [LOGITS])
    simplify(model)
    found = expose(model, net.size)
    assert [layer.grid for layer in found.layers] == grids
    assert (found.maps.rollout is not None) == joined

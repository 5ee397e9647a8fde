"""A class token that is handed from one stage to the next, beside patches that become fewer."""

import torch
from torch import Tensor, nn

from export.graph.expose import expose
from export.names import LOGITS
from export.trace import simplify, trace
from tests.export.graph import models


class HandedOn(models.Classifier):
    """Two stages, as PiT has them (Heo et al. 2021): patches by a convolution, the class token by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        width = models.WIDTH
        self.patches, self.fewer = nn.Conv2d(3, width, 8, 8), nn.Conv2d(width, width, 2, 2)
        self.token, self.on = nn.Parameter(torch.randn(1, 1, width)), nn.Linear(width, width)
        self.first, self.second = models.Block(), models.Block()
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, models.CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        self.begin()
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        x = self.first(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1), self)
        token, patches = x[:, :1], x[:, 1:].transpose(1, 2).unflatten(2, (4, 6))
        x = torch.cat([self.on(token), self.fewer(patches).flatten(2).transpose(1, 2)], 1)
        return self.head(self.norm(self.second(x, self)[:, 0]))


def test_a_class_token_stays_one_in_the_next_stage() -> None:
    """The classifier is said to read it, and each stage has it beside the patches of its own grid."""
    model = trace(HandedOn(), HandedOn.size, [LOGITS])
    simplify(model)
    found = expose(model, HandedOn.size)
    assert [(layer.grid, layer.special_tokens.count) for layer in found.layers] == [((4, 6), 1), ((2, 3), 1)]
    assert found.pooling is not None
    assert (found.pooling.kind, found.pooling.index) == ("class_token", 0)

"""What every net gives: logits on the fused path, and on the other one all that a bundle's outputs are made of."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from export.names import attention_output
from saccade.manifest import AttentionLayer, Pooling


class Outputs(NamedTuple):
    """What `Net.explain` returns; the attention-based parts are empty for a CNN."""

    logits: Tensor  # (B, classes)
    attention: tuple[Tensor, ...]  # one a layer, (B, heads, N, N), rows sum to 1
    pooling: Tensor | None  # (B, P) learned pooling weights
    class_tokens: Tensor | None  # (B, P, width): class_tokens @ head.weight.T summed over P, plus bias, is logits


class Net(nn.Module, ABC):
    """A classifier. `explain` and `forward` agree in evaluation mode."""

    head: nn.Linear
    class_grid: tuple[int, int] | None = None
    """Grid of the exact class map; None where the net has none."""
    pooling: Pooling | None = None
    attention_layers: tuple[AttentionLayer, ...] = ()

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> logits (B, classes)."""

    @abstractmethod
    def explain(self, images: Tensor) -> Outputs:
        """(B, 3, H, W) normalised -> everything."""

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def attention_layer(index: int, grid: tuple[int, int], heads: int, **special: object) -> AttentionLayer:
    """Geometry of layer `index` under the fixed name of its output."""
    return AttentionLayer.model_validate(
        {"output": attention_output(index), "grid": grid, "heads": heads, "special_tokens": special}
    )

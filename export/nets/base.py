"""What every net gives: logits on the fused path, and on the other one all that a bundle's outputs are made of."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
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
    position_grid: tuple[int, int] | None = None
    """Grid of the parameter `position` (1, special tokens + patches, width), whose last tokens are the patches."""
    depths: tuple[tuple[str, ...], ...]
    """Beginnings of the parameters' names, from those that meet the picture first to those that give the logits."""
    undecayed: tuple[str, ...] = ()
    """Last names of parameters that weight decay leaves alone, beside all of one dimension."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> logits (B, classes)."""

    @abstractmethod
    def explain(self, images: Tensor) -> Outputs:
        """(B, 3, H, W) normalised -> everything."""

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def depth_of(self, name: str) -> int:
        """Place of a parameter in `depths`, 0 next to the picture. Raises KeyError for a name that stands nowhere."""
        for depth, beginnings in enumerate(self.depths):
            if name.startswith(beginnings):
                return depth
        raise KeyError(name)


def layer_rates(net: Net, decay: float) -> dict[str, float]:
    """Parameter name -> factor of its learning rate: decay to the power of its distance from the head.

    Layer-wise rates (Howard & Ruder 2018, https://arxiv.org/abs/1801.06146; counted as in BEiT, Bao et al. 2022).
    """
    last = len(net.depths) - 1
    return {name: decay ** (last - net.depth_of(name)) for name, _ in net.named_parameters()}


def pool_features(net: Net, features: Tensor, attention: Sequence[Tensor] = ()) -> Outputs:
    """Global average pooling and the head: features (B, width, rows, columns) -> outputs with an exact class map."""
    tokens = features.flatten(2).transpose(1, 2)  # (B, P, width)
    return Outputs(net.head(features.mean(dim=(2, 3))), tuple(attention), None, tokens / tokens.shape[1])


def attention_layer(index: int, grid: tuple[int, int], heads: int, **special: object) -> AttentionLayer:
    """Geometry of layer `index` under the fixed name of its output."""
    return AttentionLayer.model_validate(
        {"output": attention_output(index), "grid": grid, "heads": heads, "special_tokens": special}
    )


def halved(size: tuple[int, int], times: int) -> tuple[int, int]:
    """(height, width) after so many strides of 2, each rounded up."""
    return -(-size[0] // 2**times), -(-size[1] // 2**times)


def encoder_depths(layers: int, before: tuple[str, ...], after: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Of a net around `encoder`: what stands before it, each block, and what stands after it with the closing norm."""
    return (before, *((f"encoder.blocks.{index}.",) for index in range(layers)), ("encoder.norm.", *after))

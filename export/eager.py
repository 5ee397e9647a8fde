"""What an eager PyTorch model attends to: the softmax weights themselves, taken where the framework computes them.

Whatever the model's code looks like (softmax(QKᵀ)V by hand, nn.MultiheadAttention, scaled_dot_product_attention, a
framework's own class), its weights are the result of one softmax in ATen. Fused kernels never have them as a whole, so
PyTorch is told to take its plain ones meanwhile.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from saccade.errors import BundleError
from saccade.manifest import AttentionLayer

_SOFTMAX = (torch.ops.aten._softmax.default, torch.ops.aten._safe_softmax.default)


class Logits(nn.Module):
    """A classifier of anybody's as a function of `pixel_values`: what is traced, and what is compared with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes). The model may give logits, or an object, a mapping or a tuple with them."""
        return logits_of(self.model(pixel_values))


def logits_of(given: Any) -> Tensor:
    """The logits in whatever a classifier returns. Raises BundleError where there are none."""
    if isinstance(given, Mapping) and "logits" in given:
        given = given["logits"]
    elif hasattr(given, "logits"):
        given = given.logits
    elif isinstance(given, (tuple, list)) and given:
        given = given[0]
    if not isinstance(given, Tensor) or given.ndim != 2:
        seen = f"a tensor of {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise BundleError(
            f"the model must give logits (batch, classes), alone or as `logits` or first; it gives {seen}"
        )
    return given


@contextmanager
def plain_attention() -> Iterator[None]:
    """Within it no fused kernel is taken: attention is MatMul, Softmax, MatMul, step by step."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class Reference:
    """The eager model as the source of truth: logits and the attention of the layers that the manifest names."""

    def __init__(self, model: nn.Module, layers: Sequence[AttentionLayer]) -> None:
        self.model = Logits(model).eval()
        self.layers = tuple(layers)

    @torch.no_grad()
    def arrays(self, pixels: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """(n, 3, H, W) -> logits (n, classes) and attention by output name, in the manifest's shapes."""
        with plain_attention(), _Softmaxes() as seen:
            logits = self.model(torch.from_numpy(pixels))
        return {"logits": logits.numpy(), **self._attention(len(pixels), seen.weights)}

    def _attention(self, count: int, weights: list[Tensor]) -> dict[str, NDArray[np.float32]]:
        """In the order in which they ran; batch and windows, or batch and heads, may be one axis in PyTorch."""
        left = iter(weights)
        found: dict[str, NDArray[np.float32]] = {}
        for layer in self.layers:
            shape = (count, *layer.shape)
            fitting = (one for one in left if one.shape[-2:] == shape[-2:] and one.numel() == np.prod(shape))
            tensor = next(fitting, None)
            if tensor is None:
                seen = ", ".join(str(tuple(one.shape)) for one in weights) or "none"
                raise BundleError(f"the eager model has no softmax of {shape} for {layer.output}; it has {seen}")
            found[layer.output] = tensor.reshape(shape).numpy()
        return found


class _Softmaxes(TorchDispatchMode):
    """Every softmax over the last axis of something at least three-dimensional, in the order in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _SOFTMAX and result.ndim >= 3 and args[1] in (-1, result.ndim - 1):
            self.weights.append(result.detach().float())
        return result

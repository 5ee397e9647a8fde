"""What an eager PyTorch model attends to: the softmax weights themselves, taken where the framework computes them.

Whatever the model's code looks like (softmax(QKᵀ)V by hand, nn.MultiheadAttention, scaled_dot_product_attention, a
framework's own class), its weights are the result of one softmax in ATen. Fused kernels never have them as a whole, so
PyTorch is told to take its plain ones meanwhile.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from export.names import LOGITS
from export.reference import Limits
from export.trace import plain_attention
from saccade.errors import BundleError
from saccade.manifest import Manifest

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


CHUNK = 8
"""Pictures in a batch where weights are compared with their float64."""


class Eager:
    """An eager model as the source of truth for a bundle; a `Reference` of `export.reference`."""

    pictures = 32

    def __init__(self, said: str, manifest: Manifest, model: nn.Module, **asked: Any) -> None:
        """`model` is asked as `model(pixels, **asked)`, in evaluation mode."""
        self.said = said
        self._manifest = manifest
        self._model = model
        self._asked = asked

    def arrays(self, pixels: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """(n, 3, H, W) -> logits, attention and the weights of learned pooling, by output name, in their shapes.

        Where the model itself reports its attention (`attentions`, as transformers does), those are among the weights
        seen, to the last bit. Raises BundleError where something that the manifest promises is not.
        """
        return {
            name: tensor.float().numpy() for name, tensor in self._run(self._model, torch.from_numpy(pixels)).items()
        }

    def limits(self, pixels: NDArray[np.float32]) -> Limits:
        """4 times as far as the model's own float32 is from its float64, where that is more than usual: sharp attention
        and large logits are rounded more roughly, here and in every engine.
        """
        usual, exact = Limits(), copy.deepcopy(self._model).double()
        logits, attention = usual
        for start in range(0, len(pixels), CHUNK):
            chunk = torch.from_numpy(pixels[start : start + CHUNK])
            try:
                precise = self._run(exact, chunk.double())
            except (RuntimeError, BundleError):  # float32 is written into its code
                return usual
            apart = {
                name: 4 * float((it - precise[name]).abs().max()) for name, it in self._run(self._model, chunk).items()
            }
            logits = max(logits, apart.pop(LOGITS))
            attention = max(attention, *apart.values(), 0.0)
        return Limits(logits, attention)

    def _run(self, model: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
        # Under inference mode PyTorch takes its kernels where no dispatch mode sees them.
        with torch.inference_mode(False), torch.no_grad(), plain_attention(), _Softmaxes() as seen:
            given = model(pixels, **self._asked)
        for reported in getattr(given, "attentions", None) or ():
            if not any(
                one.shape == reported.shape and torch.equal(one.to(reported.dtype), reported) for one in seen.weights
            ):
                raise BundleError(f"{self.said} reports attention {tuple(reported.shape)} that no softmax of it gave")
        return {LOGITS: logits_of(given), **self._weights(len(pixels), seen.weights)}

    def _weights(self, count: int, weights: list[Tensor]) -> dict[str, Tensor]:
        """In the order in which they ran; batch and windows, or batch and heads, may be one axis in PyTorch."""
        shapes = {layer.output: layer.shape for layer in self._manifest.attention}
        if self._manifest.maps.pooling:
            shapes[self._manifest.maps.pooling] = (self._manifest.attention[-1].tokens,)
        left = iter(weights)
        found: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            size, tail = count * math.prod(shape), shape[-2:]
            tensor = next((one for one in left if one.numel() == size and one.shape[-len(tail) :] == tail), None)
            if tensor is None:
                seen = ", ".join(str(tuple(one.shape)) for one in weights) or "none"
                raise BundleError(f"{self.said} has no softmax of {(count, *shape)} for {name}; it has {seen}")
            found[name] = tensor.reshape(count, *shape)
        return found


class _Softmaxes(TorchDispatchMode):
    """The results of all softmaxes in the order in which they run, the axis that sums to 1 being the last."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _SOFTMAX and result.ndim >= 2:
            self.weights.append(result.detach().movedim(args[1], -1))
        return result

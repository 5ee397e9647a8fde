"""What an eager PyTorch model attends to: the softmax weights themselves, taken where the framework computes them.

Whatever the model's code looks like (softmax(QKᵀ)V by hand, nn.MultiheadAttention, scaled_dot_product_attention, a
framework's own class), its weights are the result of one softmax in ATen. Fused kernels never have them as a whole, so
PyTorch is told to take its plain ones meanwhile.
"""

import copy
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.names import LOGITS
from export.reference import Limits
from export.softmaxes import Softmaxes, laid_out, orders_of, places_of
from export.trace import plain_attention
from saccade.bundle import Bundle
from saccade.errors import BundleError


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

    def __init__(self, said: str, bundle: Bundle, model: nn.Module, **asked: Any) -> None:
        """`model` is asked as `model(pixels, **asked)`, in evaluation mode."""
        self.said = said
        self._bundle = bundle
        self._model = model
        self._asked = asked
        manifest = bundle.manifest
        self._shapes: dict[str, tuple[int, ...]] = {layer.output: layer.shape for layer in manifest.attention}
        if manifest.maps.pooling:
            self._shapes[manifest.maps.pooling] = (manifest.attention[-1].tokens,)

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

        Raises BundleError for a model that answers differently each time, which nothing can be held to.
        """
        usual, exact = Limits(), copy.deepcopy(self._model).double()
        self._check_repeats(pixels[:CHUNK])
        logits, attention = usual.logits, usual.attention
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
        return Limits(logits, attention, sums=logits, batch=attention)

    def _check_repeats(self, pixels: NDArray[np.float32]) -> None:
        """PyTorch on a CPU does the same sums in the same order: there is no difference that would be allowed."""
        first, second = self.arrays(pixels), self.arrays(pixels)
        different = [name for name, array in first.items() if not np.array_equal(array, second[name], equal_nan=True)]
        if different:
            apart = max(float(np.abs(first[name] - second[name]).max()) for name in different)
            raise BundleError(
                f"{self.said} answers differently each time it is asked (dropout? random noise?): twice the same "
                f"pictures, and {different[0]} is up to {apart:.3g} away"
            )

    def _run(self, model: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
        given, ran = self._ask(model, pixels)
        for reported in getattr(given, "attentions", None) or ():
            if not any(one.shape == reported.shape and torch.equal(one.to(reported.dtype), reported) for one in ran):
                raise BundleError(f"{self.said} reports attention {tuple(reported.shape)} that no softmax of it gave")
        return {LOGITS: logits_of(given), **self._weights(len(pixels), ran)}

    def _ask(self, model: nn.Module, pixels: Tensor) -> tuple[Any, list[Tensor]]:
        """(what the model gives, its softmaxes in the order in which they ran)."""
        # Under inference mode PyTorch takes its kernels where no dispatch mode sees them.
        with torch.inference_mode(False), torch.no_grad(), plain_attention(), Softmaxes() as seen:
            return model(pixels, **self._asked), seen.ran

    @cached_property
    def _places(self) -> dict[str, int]:
        spec = self._bundle.manifest.preprocessing
        _, ran = self._ask(self._model, torch.zeros(1, 3, spec.height, spec.width))
        return places_of(self._bundle, tuple(self._shapes), ran)

    @cached_property
    def _orders(self) -> dict[str, tuple[int, ...] | None]:
        return orders_of(self._bundle, tuple(self._shapes))

    def _weights(self, count: int, ran: list[Tensor]) -> dict[str, Tensor]:
        """By output."""
        found = {}
        for name, shape in self._shapes.items():
            tensor = ran[self._places[name]] if self._places[name] < len(ran) else torch.empty(0)
            if name == self._bundle.manifest.maps.pooling and tensor.ndim == 4 and len(tensor) == count:
                tensor = tensor.mean(1)  # over heads
            if tensor.numel() != count * math.prod(shape) or tensor.shape[-1] != shape[-1]:
                raise BundleError(
                    f"{self.said} has a softmax of {tuple(tensor.shape)} for {name}; it must be {(count, *shape)}"
                )
            found[name] = laid_out(tensor, self._orders[name], shape)
        return found

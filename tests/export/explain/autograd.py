"""Gradients of a PyTorch model by its attention probabilities, as autograd gives them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from export.eager import logits_of

SOFTMAX = (torch.softmax, Tensor.softmax, F.softmax)


class Probabilities(TorchFunctionMode):
    """The results of all softmaxes, as the model goes on with them; in float64 where the model computes in it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in SOFTMAX and args[0].dtype == torch.float64:
            kwargs.pop("dtype", None)  # float32 is written into some models
        result = func(*args, **kwargs)
        if func in SOFTMAX and result.ndim > 2 and result.requires_grad:
            self.seen.append(result)
        return result


def gradients(model: nn.Module, pixels: Tensor, seed: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """(probabilities, their gradients (k, *shape)) of the softmaxes that the logits hang on, in the order they run."""
    with Probabilities() as mode:
        logits = logits_of(model(pixels))
    rows = [torch.autograd.grad(logits, mode.seen, one, retain_graph=True, allow_unused=True) for one in seed]
    used = [index for index, one in enumerate(rows[0]) if one is not None]
    return [mode.seen[index] for index in used], [torch.stack([row[index] for row in rows]) for index in used]


def matching(values: Sequence[NDArray[np.float32]], seen: Sequence[Tensor]) -> list[int]:
    """Of each value of the graph the softmax that it is, both in depth order; a graph leaves some out."""
    left = iter(enumerate(seen))
    return [next(index for index, one in left if _is(value, one)) for value in values]


def _is(value: NDArray[np.float32], one: Tensor) -> bool:
    if one.numel() != value.size or one.shape[-2:] != value.shape[-2:]:
        return False
    return _as_it_stands(value, one) or (one.ndim == 5 and _as_it_stands(value, one.transpose(1, 2)))


def _as_it_stands(value: NDArray[np.float32], one: Tensor) -> bool:
    return np.allclose(one.detach().reshape(value.shape).numpy(), value, atol=1e-3)


def windows_first(value: NDArray[np.float32], one: Tensor, tensor: Tensor) -> Tensor:
    """Of the softmax that a value is, or its gradients: in the value's order where heads stand before windows."""
    return tensor if _as_it_stands(value, one) else tensor.transpose(-4, -3)


class Blocks:
    """Each block's tokens and, from the last one, the mean of those of block `asked`, the same for all tokens: so the
    model itself says what it makes of that mean.
    """

    def __init__(self, blocks: Sequence[nn.Module], method: str, axes: tuple[int, ...]) -> None:
        self.tokens: list[Tensor] = []
        self.asked: int | None = None
        self._axes = axes
        for number, block in enumerate(blocks):
            setattr(block, method, self._instead(getattr(block, method), last=number == len(blocks) - 1))

    def _instead(self, original: Callable[..., Any], *, last: bool) -> Callable[..., Any]:
        def run(*inputs: Any, **settings: Any) -> Any:
            given = original(*inputs, **settings)
            result, *more = given if isinstance(given, tuple) else (given,)
            self.tokens.append(result)
            if last and self.asked is not None:
                chosen = self.tokens[self.asked]
                result = chosen.mean(self._axes, keepdim=True).expand(chosen.shape)
            return (result, *more) if isinstance(given, tuple) else result

        return run


def by_autograd(
    model: Callable[[], tuple[Tensor, Sequence[Tensor]]],
    blocks: Blocks,
    layers: Sequence[int],
    *,
    class_token: bool,
) -> NDArray[np.float64]:
    """(classes, B, N): the sum over `layers` of the mean over heads and queries of (d s_l / d A_l)+, the layers' logits
    s_l from a run for each; of a class token those of the last layer are the model's. `model` gives logits and all
    attention.
    """
    total: Any = 0
    for layer in layers:
        blocks.tokens, blocks.asked = [], None if class_token and layer == layers[-1] else layer
        logits, attention = model()
        gradients = [torch.autograd.grad(one.sum(), attention[layer], retain_graph=True)[0] for one in logits.T]
        total = total + torch.stack(gradients).clamp(min=0).mean(dim=(2, 3)).numpy()
    return np.asarray(total)

"""Gradients of a PyTorch model by its attention probabilities, as autograd gives them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
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


def matching(shapes: Sequence[tuple[int, ...]], seen: Sequence[Tensor]) -> list[int]:
    """Of each value of the graph the softmax that it is, both in depth order; a graph leaves some out."""
    left = iter(enumerate(seen))
    return [
        next(index for index, one in left if one.numel() == math.prod(shape) and one.shape[-2:] == shape[-2:])
        for shape in shapes
    ]

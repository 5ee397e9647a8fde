"""What moves the weights: the optimizer and its groups, the learning rate of each step, the moving average."""

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from export.nets import Net
from export.recipe import TrainingConfig

START = 1 / 25
"""Share of the highest rate that one_cycle begins with, as in torch's OneCycleLR."""


def build_optimizer(
    net: Net, config: TrainingConfig, rate_factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov's momentum, over all parameters.

    `rate_factors` gives the learning rate of a parameter, by its name, as a multiple of the recipe's; 1 where it is not
    named.
    """
    groups: dict[tuple[bool, float], list[Tensor]] = {}
    for name, parameter in net.named_parameters():
        key = decays(net, name, parameter), (rate_factors or {}).get(name, 1.0)
        groups.setdefault(key, []).append(parameter)
    given = [
        {"params": groups[key], "weight_decay": config.weight_decay if key[0] else 0.0, "rate_factor": key[1]}
        for key in sorted(groups, reverse=True)
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(given, lr=config.learning_rate, fused=True)
    return torch.optim.SGD(given, lr=config.learning_rate, momentum=config.momentum, nesterov=True, fused=True)


def decays(net: Net, name: str, parameter: Tensor) -> bool:
    """Whether weight decay pulls at it: at matrices and convolutions, not at norms, biases, positions and tokens."""
    return parameter.ndim > 1 and name.rpartition(".")[2] not in net.undecayed


def rate_share(step: int, steps: int, config: TrainingConfig) -> float:
    """Learning rate of a step, from 0 to `steps` - 1 over all epochs, as a share of the highest."""
    warmup = round(config.warmup_epochs * steps / config.epochs)
    floor = config.final_rate / config.learning_rate
    if config.schedule == "one_cycle":  # Smith and Topin 2018, https://arxiv.org/abs/1708.07120; two straight lines
        top = max(warmup - 1, 0)
        if step < top:
            return START + (1 - START) * step / top
        return 1 - (1 - floor) * (step - top) / (steps - top)
    if step < warmup:
        return (step + 1) / warmup
    # Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, without restarts
    done = (step - warmup) / (steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


class Average:
    """A net whose weights are the exponential moving average of another's (Polyak and Juditsky 1992)."""

    def __init__(self, net: Net, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self._decay = decay
        pairs = list(zip(self.net.state_dict().values(), net.state_dict().values(), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counted = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step `step`. Early steps count more, so that the start is forgotten."""
        decay = min(self._decay, (1 + step) / (10 + step))
        averages, weights = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, count in self._counted:
            average.copy_(count)

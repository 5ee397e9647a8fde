"""Groups of the optimizer, and learning rates against torch's own schedulers."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR

from export.nets import build
from export.optimize import build_optimizer, rate_share, set_rate
from export.recipe import TrainingConfig
from tests.conftest import NETS, tiny_recipe

STEPS = 50
"""Of an epoch."""


def config(**training: Any) -> TrainingConfig:
    return tiny_recipe("tiny-cct", **{"epochs": 4, "learning_rate": 0.4, **training}).training


def rates(given: TrainingConfig) -> np.ndarray:
    steps = given.epochs * STEPS
    return given.learning_rate * np.array([rate_share(step, steps, given) for step in range(steps)])


def theirs(make: Any, steps: int = 4 * STEPS) -> np.ndarray:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    scheduler = make(optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(seen)


def test_cosine_is_torchs() -> None:
    """A straight line up over the warm-up, then CosineAnnealingLR down to the final rate."""
    warmup = round(0.5 * STEPS)
    rest = 4 * STEPS - warmup
    rising = theirs(lambda it: LinearLR(it, start_factor=1 / warmup, total_iters=warmup - 1), warmup)
    falling = theirs(lambda it: CosineAnnealingLR(it, T_max=rest, eta_min=0.01), rest)
    seen = rates(config(warmup_epochs=0.5, final_rate=0.01))
    np.testing.assert_allclose(seen, np.concatenate([rising, falling]), rtol=1e-9)


def test_one_cycle_is_torchs() -> None:
    """OneCycleLR in straight lines: from a 25th of the highest rate up to it, and down to the final one."""
    warmup = 1.2 * STEPS

    def make(optimizer: torch.optim.Optimizer) -> OneCycleLR:
        return OneCycleLR(
            optimizer, max_lr=0.4, total_steps=4 * STEPS + 1, pct_start=warmup / (4 * STEPS + 1),
            anneal_strategy="linear", cycle_momentum=False, final_div_factor=0.4 / 25 / 0.002,
        )  # fmt: skip

    given = config(schedule="one_cycle", warmup_epochs=1.2, final_rate=0.002)
    np.testing.assert_allclose(rates(given), theirs(make), rtol=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_without_a_warm_up_the_first_rate_is_the_highest(schedule: str) -> None:
    """And no later one is higher, whatever the numbers of steps."""
    given = config(schedule=schedule, warmup_epochs=0)
    seen = rates(given)
    assert seen[0] == 0.4
    assert (np.diff(seen) < 0).all()
    assert seen[-1] > 0


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_parameter_is_in_one_group_and_matrices_alone_decay(net: str, optimizer: str) -> None:
    """And a rate that is a multiple of the recipe's stays one whatever the schedule says."""
    recipe = tiny_recipe(net, optimizer=optimizer, weight_decay=0.3)
    built = build(recipe.net, recipe.size, 10)
    factors = {"head.weight": 1.0, "head.bias": 0.5, next(iter(dict(built.named_parameters()))): 0.25}
    made = build_optimizer(built, recipe.training, factors)
    set_rate(made, 0.02)
    found = {id(tensor): group for group in made.param_groups for tensor in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in made.param_groups) == len(list(built.parameters()))
    matrices = {
        f"{name}.weight" for name, module in built.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    for name, parameter in built.named_parameters():
        group = found[id(parameter)]
        assert group["weight_decay"] == (0.3 if name in matrices else 0.0), name
        assert group["lr"] == pytest.approx(0.02 * factors.get(name, 1.0)), name
        assert group.get("nesterov", True)

"""Nets and pictures for the tests of the offline half, and what a test may ask of a training run."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from export.data import Digits
from export.examples import Examples
from export.nets import Net, build
from saccade.bundle import Bundle, open_bundle
from tests.conftest import tiny_recipe


def lively_net(name: str, *, seed: int = 0) -> Net:
    """One of NETS in evaluation mode, with weights that make attention uneven and norms count."""
    recipe = tiny_recipe(name)
    torch.manual_seed(seed)
    net = build(recipe.net, recipe.size, 10)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for key, buffer in net.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + (0.5 if key.endswith("var") else -0.5))
    return net.eval()


def noise(name: str, count: int, *, seed: int = 0) -> Tensor:
    """Normalised inputs for one of NETS, (count, 3, H, W)."""
    return torch.randn(count, 3, *tiny_recipe(name).size, generator=torch.Generator().manual_seed(seed))


def float64(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().numpy().astype(np.float64)


class FewDigits(Digits):
    """The first 200 training digits: an epoch of the tiny nets takes a fraction of a second."""

    def training(self) -> Examples:
        return super().training().choose(np.arange(200))


@contextmanager
def after_each_step(act: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    """Calls `act` with the optimizer after every step of a training run."""
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: act(optimizer))
    try:
        yield
    finally:
        handle.remove()


def same_tensors(left: Path, right: Path) -> bool:
    """Whether two safetensors files hold the same names with the same bits."""
    first, second = load_file(left), load_file(right)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Callable[[str], Bundle]:
    """A function: name of a model -> its bundle, alone in another place."""

    def copied(name: str) -> Bundle:
        shutil.copytree(models / name / "1", tmp_path / "elsewhere" / name / "1")
        return open_bundle(tmp_path / "elsewhere" / name / "1")

    return copied

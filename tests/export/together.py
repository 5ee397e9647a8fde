"""What the tests of training together run in each process, alone or under torchrun: one start for all of them.

torchrun --standalone --nproc-per-node 2 -m tests.export.together FOLDER
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, distributed
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from export.data import Digits
from export.examples import Examples
from export.recipe import Recipe, load_recipe
from export.train import train
from saccade.cli import main
from saccade.errors import SaccadeError
from tests.conftest import tiny_recipe

RANK = int(os.environ.get("RANK", "0"))


class FewDigits(Digits):
    def training(self) -> Examples:
        return super().training().choose(np.arange(200))


def recipe(**training: object) -> Recipe:
    """No batch norm and no augmentation, so that nothing but the sum over a batch is shared out."""
    base = load_recipe("digits-cct").model_dump()
    plain = {"epochs": 1, "optimizer": "sgd", "learning_rate": 0.05, "shift": 0, "clip": 1e9, "batch": 64}
    return Recipe.model_validate({**base, "training": {**base["training"], **plain, **training}})


def lively() -> Recipe:
    """Two epochs with all that is random."""
    base = recipe(epochs=2, shift=1, flip=True, randaugment=1, mixup=0.8, cutmix=1.0, erase=0.25)
    return base.model_copy(update={"net": base.net.model_copy(update={"drop_path": 0.2})})


@contextmanager
def first_gradient(path: Path) -> Iterator[None]:
    kept: dict[str, Tensor] = {}

    def keep(optimizer: Optimizer, *_: object) -> None:
        tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        for number, tensor in enumerate(tensors):
            kept.setdefault(str(number), tensor.grad.clone(memory_format=torch.contiguous_format))

    handle = register_optimizer_step_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()
    save_file(kept, path)


def without_augmentation(folder: Path) -> None:
    with first_gradient(folder / f"gradient-{RANK}.safetensors"):
        train(recipe(), FewDigits(), folder / "plain")


def interrupted(folder: Path) -> None:
    train(lively(), FewDigits(), folder / "whole")
    for stop_after in (1, None):
        train(lively(), FewDigits(), folder / "stopped", stop_after=stop_after, resident="never", workers=0)


def convolutional(folder: Path) -> None:
    """Convolutions of all sizes, whose strides must be those of their gradients."""
    for kind, net in (("hybrid", "tiny-hybrid"), ("convmixer", "tiny-convmixer")):
        train(tiny_recipe(net, epochs=1, batch=64), FewDigits(), folder / kind)


def failing(folder: Path) -> None:
    """The last process alone has a loss that is no number; then a batch of 63 for two; each says why it stopped."""

    def blow_up(optimizer: Optimizer, *_: object) -> None:
        if RANK == 1:
            optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))

    said = []
    for broken, what in ((recipe(batch=32), "nan"), (recipe(batch=63), "odd")):
        handle = register_optimizer_step_post_hook(blow_up)
        try:
            train(broken, FewDigits(), folder / what)
        except SaccadeError as error:
            said.append(str(error))
        finally:
            handle.remove()
    (folder / f"said-{RANK}").write_text("\n".join(said))


def command(folder: Path) -> None:
    """The command line, as torchrun starts it."""
    (folder / f"recipe-{RANK}.json").write_text(recipe().model_dump_json())
    with redirect_stderr(StringIO()) as progress:
        code = main(["train", str(folder / f"recipe-{RANK}.json"), "--out", str(folder / "command"), "--workers", "0"])
    (folder / f"command-{RANK}").write_text(f"{code}\n{progress.getvalue()}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for scene in (without_augmentation, interrupted, convolutional, failing, command):
        scene(Path(sys.argv[1]))
        distributed.barrier()
    distributed.destroy_process_group()

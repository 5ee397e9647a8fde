"""Trains a recipe: read top to bottom. Stopping and resuming gives the same weights as not stopping.

Each epoch draws its order, augmentation and stochastic depth from a seed made of the recipe's, its own number and the
process, so no generator state has to be kept.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from export.augment import Augment, Normalize, flip_mask
from export.crop import DRAWS
from export.distributed import World, join
from export.examples import Source, held_out
from export.init import Weights, begin
from export.loader import Loader, Order, Resident, open_loader
from export.losses import Losses, Progress
from export.nets import Net, build
from export.nets.base import layer_rates
from export.nets.maps import checked_maps
from export.optimize import Average, build_optimizer, rate_share, set_rate
from export.recipe import Recipe, TrainingConfig
from export.run import Learner, Run
from saccade.errors import SetupError

LOOK = 20
"""Steps between two looks at the loss."""
EVALUATION_BATCH = 512
_ORDER, _AUGMENTATION = 1, 2
"""What numbers are drawn for, as the first part of a seed: no two draws share one."""


def train(
    recipe: Recipe,
    source: Source,
    folder: Path,
    *,
    device: str = "cpu",
    init: Callable[[], Weights] | None = None,
    resident: Resident = "auto",
    workers: int = 0,
    stop_after: int | None = None,
) -> None:
    """Trains to the recipe's last epoch, or resumes the run in `folder`; with others, where torchrun started it.

    `init` reads the weights to begin with; a run that is resumed has its own. `resident` and `workers` say how
    pictures come to the device (see `open_loader`), and change nothing else. `stop_after` ends the call after that
    many epochs in all, as if interrupted there. Raises DataError where the folder holds another run or beginning or
    another process trains into it, a picture cannot be read, or loss, gradient or weights are no longer finite;
    SetupError where the recipe is to be compiled and nothing here can.
    """
    config = recipe.training
    with join(device) as world:
        torch.manual_seed(recipe.seed)
        net = build(recipe.net, recipe.size, len(source.classes)).to(world.device)
        checked_maps(net, recipe.default_maps)
        if config.compile and world.device.type == "cpu":
            check_compiler()
        examples = source.training()
        run = Run(folder, recipe, source, examples, world)
        if init is not None:
            begin(net, run, init)
        mask = held_out(examples.labels, source.classes)
        learner = _learner(net, config)
        loader = open_loader(
            examples, recipe.preprocessing, world.device, crop_area=config.crop_area, resident=resident, workers=workers
        )
        with run.open(learner):
            trainer = _Trainer(recipe, len(source.classes), learner, loader, mask, world)
            for epoch in range(run.epoch, min(config.epochs, stop_after or config.epochs)):
                progress = Progress(epoch, config.epochs, quiet=world.rank > 0)
                seen = trainer.epoch(epoch, progress)
                metrics = {"epoch": epoch + 1, **seen, "held_out_accuracy": trainer.accuracy()}
                run.save(learner, {**metrics, "time": time.time()})
                progress.end(metrics)


class _Trainer:
    """The loop. What changes from epoch to epoch is all in `learner`."""

    def __init__(
        self, recipe: Recipe, classes: int, learner: Learner, loader: Loader, mask: NDArray[np.bool_], world: World
    ) -> None:
        self._recipe, self._learner, self._loader, self._world = recipe, learner, loader, world
        self._pictures, self._held_out = np.flatnonzero(~mask), np.flatnonzero(mask)
        self._batch = min(recipe.training.batch, len(self._pictures))
        self._part = world.part(self._batch, recipe.training.batch)
        self._steps = len(self._pictures) // self._batch
        self._augment = Augment(recipe, classes, world.device)
        self._normalize = Normalize(recipe.preprocessing, world.device)
        model = world.wrap(learner.net)
        self._model: Callable[[Tensor], Tensor] = torch.compile(model) if recipe.training.compile else model

    def epoch(self, epoch: int, progress: Progress) -> dict[str, float]:
        """One pass over the pictures that are not held out, the rest of the last batch left out; its metrics."""
        config, learner, device = self._recipe.training, self._learner, self._world.device
        orders = self._orders(epoch)
        flips = torch.from_numpy(flip_mask(len(self._pictures) + len(self._held_out), epoch, self._recipe.seed))
        random = np.random.default_rng([_AUGMENTATION, self._recipe.seed, epoch, self._world.rank])
        torch.manual_seed(int(random.integers(2**63)))  # stochastic depth
        losses = Losses(self._world, epoch)
        rate = 0.0
        learner.net.train()
        for step, (images, labels) in enumerate(self._loader.batches(orders)):
            now = epoch * self._steps + step
            rate = config.learning_rate * rate_share(now, config.epochs * self._steps, config)
            set_rate(learner.optimizer, rate)
            inputs, targets = self._augment(images, labels, flips[orders[step].indices], epoch, random)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"), attention(device):
                logits = self._model(inputs)
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(learner.net.parameters(), config.clip)
            learner.optimizer.step()
            learner.optimizer.zero_grad(set_to_none=True)
            learner.average.update(now)
            losses.add(loss, norm, rate)
            if (step + 1) % LOOK == 0:
                progress.step(step + 1, self._steps, losses.mean(), self._batch)
        loss_mean = losses.mean()
        losses.check_finite(learner.tensors().values())
        return {
            "loss": loss_mean,
            "learning_rate": rate,
            "images_per_second": self._steps * self._batch / progress.seconds,
            "seconds": progress.seconds,
        }

    @torch.inference_mode()
    def accuracy(self) -> float:
        """Of the averaged weights on the held-out pictures, shared out among the processes."""
        net, world = self._learner.average.net, self._world
        world.share(net.buffers())  # of batch norms, which each process averages from its own part
        mine = self._held_out[world.rank :: world.size]
        parts = [Order(mine[start : start + EVALUATION_BATCH]) for start in range(0, len(mine), EVALUATION_BATCH)]
        right = torch.zeros((), dtype=torch.int64, device=world.device)
        for images, labels in self._loader.batches(parts):
            right += (net(self._normalize(images)).argmax(-1) == labels).sum()
        return int(world.total(right)) / len(self._held_out)

    def _orders(self, epoch: int) -> list[Order]:
        """The part of each batch that is this process's; all draw the same whole."""
        random = np.random.default_rng([_ORDER, self._recipe.seed, epoch])
        order = random.permutation(self._pictures)[: self._steps * self._batch].reshape(self._steps, self._batch)
        indices = order[:, self._part]
        if self._recipe.training.crop_area is None:
            return [Order(part) for part in indices]
        crops = random.random((*order.shape, DRAWS))[:, self._part]
        return [Order(part, crop) for part, crop in zip(indices, crops, strict=True)]


def _learner(net: Net, config: TrainingConfig) -> Learner:
    channels_last(net)
    return Learner(net, Average(net, config.ema), build_optimizer(net, config, layer_rates(net, config.layer_decay)))


def channels_last(net: Net) -> None:
    """In place; convolutions are faster so on CPU and on CUDA.

    Those of 1 x 1 are in both orders at once. They too get the strides of the gradient, which `contiguous` would not
    give them: DistributedDataParallel warns of others, and copies.
    """
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = torch.empty_like(parameter, memory_format=torch.channels_last).copy_(parameter.data)


def check_compiler() -> None:
    """Raises SetupError where torch.compile would find no compiler, instead of its own trace at the first step."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # here, because few recipes want them
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise SetupError("compile = true needs a C++ compiler: install g++, or name one in CXX") from error


def attention(device: torch.device) -> AbstractContextManager[None]:
    """How attention is computed while it is trained: the gradient of CPUs' fused kernel takes several times as long."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()

"""Trains a recipe: read top to bottom. Stopping and resuming gives the same weights as not stopping.

Each epoch draws its order, augmentation and stochastic depth from a seed made of the recipe's and its own number, so
no generator state has to be kept.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from export.augment import flip_mask, shift_and_flip
from export.checkpoint import State
from export.data import Pictures, Source, load, split
from export.init import Weights, begin
from export.nets import Net, build
from export.nets.base import layer_rates
from export.nets.maps import checked_maps
from export.recipe import Recipe, TrainingConfig
from export.run import Learner, Run
from saccade.errors import DataError
from saccade.preprocess import normalization


def train(
    recipe: Recipe,
    source: Source,
    folder: Path,
    *,
    device: str = "cpu",
    init: Callable[[], Weights] | None = None,
    stop_after: int | None = None,
) -> None:
    """Trains to the recipe's last epoch, or resumes the run in `folder`.

    `init` reads the weights to begin with; a run that is resumed has its own. `stop_after` ends the call after that
    many epochs in all, as if interrupted there. Raises DataError where the folder holds a run of another recipe or
    beginning, or the loss is no longer finite.
    """
    _check_device(device)
    config = recipe.training
    to_train_on, held_out = split(load(source.training(), recipe.preprocessing))
    images, labels = _resident(to_train_on, device)
    torch.manual_seed(recipe.seed)
    net = build(recipe.net, recipe.size, len(source.classes)).to(device)
    checked_maps(net, recipe.default_maps)
    run = Run(folder, recipe, source.classes, source.name)
    if init is not None:
        begin(net, run, init)
    learner = _learner(net, config)
    run.open(learner)

    batch = min(config.batch, len(labels))
    steps = len(labels) // batch
    to_input = _Normalize(recipe, device)
    flips = torch.zeros(len(labels), dtype=torch.bool)
    for epoch in range(run.epoch, min(config.epochs, stop_after or config.epochs)):
        started = time.monotonic()
        torch.manual_seed(recipe.seed * 100_003 + epoch)  # stochastic depth
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        order = torch.randperm(len(labels), generator=generator)
        if config.flip:
            flips = flip_mask(len(labels), epoch, recipe.seed)
        net.train()
        total_loss = 0.0
        for step in range(steps):
            now = epoch * steps + step
            chosen = order[step * batch : (step + 1) * batch]
            pictures = shift_and_flip(images[chosen.to(device)], flips[chosen], config.shift, generator)
            for group in learner.optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(now, steps, config) * group["rate_factor"]
            with torch.autocast(device, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
                logits = net(to_input(pictures))
            loss = F.cross_entropy(logits.float(), labels[chosen.to(device)], label_smoothing=config.label_smoothing)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip)
            learner.optimizer.step()
            learner.optimizer.zero_grad(set_to_none=True)
            _average(learner.average, net, config.ema, now)
            total_loss += loss.item()
            if not math.isfinite(total_loss):
                rate = config.learning_rate * _schedule(now, steps, config)
                raise DataError(f"the loss is {loss.item()} at epoch {epoch + 1}, step {step + 1}, rate {rate:g}")
            if (step + 1) % 20 == 0:
                elapsed = time.monotonic() - started
                left = ((config.epochs - epoch) * steps - step - 1) * elapsed / (step + 1)
                _show(
                    f"epoch {epoch + 1}/{config.epochs}  step {step + 1}/{steps}  loss {total_loss / (step + 1):.4f}"
                    f"  {(step + 1) * batch / elapsed:.0f} images/s  {left / 60:.1f} min left"
                )

        seconds = time.monotonic() - started
        metrics = {
            "epoch": epoch + 1,
            "loss": total_loss / steps,
            "held_out_accuracy": _accuracy(recipe, learner.average, held_out, len(source.classes), device),
            "images_per_second": steps * batch / seconds,
            "seconds": seconds,
        }
        run.save(learner, metrics)
        _show(
            f"epoch {epoch + 1}/{config.epochs}  loss {metrics['loss']:.4f}"
            f"  held-out accuracy {metrics['held_out_accuracy']:.4f}  {metrics['images_per_second']:.0f} images/s",
            end="\n",
        )


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"torch has no device {device!r} here: {str(error).splitlines()[0]}") from error


def _learner(net: Net, config: TrainingConfig) -> Learner:
    channels_last(net)
    average = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    return Learner(net, average, _optimizer(net, config, layer_rates(net, config.layer_decay)))


def channels_last(net: Net) -> None:
    """In place; convolutions are faster so on CPU and on CUDA."""
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _resident(pictures: Pictures, device: str) -> tuple[Tensor, Tensor]:
    """All pictures of a split on the device: (n, 3, H, W) uint8, and labels (n,)."""
    images = torch.from_numpy(pictures.pixels).permute(0, 3, 1, 2).contiguous()
    return images.to(device), torch.from_numpy(pictures.labels).to(device)


class _Normalize:
    """uint8 -> normalised float32 on the device, with the constants of the one preprocessing."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        scale, offset = normalization(recipe.preprocessing)
        self.scale = torch.from_numpy(scale).view(3, 1, 1).to(device)
        self.offset = torch.from_numpy(offset).view(3, 1, 1).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        return (images * self.scale + self.offset).contiguous(memory_format=torch.channels_last)


def _optimizer(net: Net, config: TrainingConfig, rate_factors: Mapping[str, float]) -> torch.optim.Optimizer:
    """No weight decay on norms, biases, positions and special tokens; the rate of each parameter by its factor."""
    grouped: dict[tuple[bool, float], list[Tensor]] = {}
    for name, parameter in net.named_parameters():
        exempt = parameter.ndim < 2 or name in ("position", "class_token", "registers") or ".positions." in name
        grouped.setdefault((exempt, rate_factors[name]), []).append(parameter)
    groups = [
        {"params": grouped[key], "weight_decay": 0.0 if key[0] else config.weight_decay, "rate_factor": key[1]}
        for key in sorted(grouped)
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True)


def _schedule(step: int, steps_an_epoch: int, config: TrainingConfig) -> float:
    """Share of the learning rate: linear warm-up, then a cosine to 0."""
    warmup = config.warmup_epochs * steps_an_epoch
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1.0, config.epochs * steps_an_epoch - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@torch.no_grad()
def _average(average: State, net: Net, decay: float, step: int) -> None:
    """Exponential moving average; early steps count more, so that the start is forgotten."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor, weight)
        else:
            average[name].copy_(tensor)


@torch.inference_mode()
def _accuracy(recipe: Recipe, weights: State, pictures: Pictures, classes: int, device: str) -> float:
    net = build(recipe.net, recipe.size, classes).to(device)
    net.load_state_dict(weights)
    net.eval()
    images, labels = _resident(pictures, device)
    to_input = _Normalize(recipe, device)
    right = sum(
        int((net(to_input(images[part])).argmax(-1) == labels[part]).sum())
        for part in (slice(start, start + 500) for start in range(0, len(labels), 500))
    )
    return right / len(labels)


def _show(line: str, end: str = "") -> None:
    """Over the line before."""
    print(f"\r{line:100}", end=end, file=sys.stderr, flush=True)

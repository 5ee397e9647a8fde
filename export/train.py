"""Trains a recipe: read top to bottom. Stopping and resuming gives the same weights as not stopping.

Each epoch draws its order, augmentation and stochastic depth from a seed made of the recipe's and its own number, so
no generator state has to be kept. The run folder holds recipe.json, metrics.jsonl, checkpoint.safetensors (the last
epoch) and best.safetensors (the averaged weights that did best on the held-out pictures).
"""

import json
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from export import checkpoint
from export.augment import flip_mask, shift_and_flip
from export.data import Pictures, Source, load, split
from export.nets import Net, build
from export.recipe import Recipe, TrainingConfig
from saccade.errors import DataError
from saccade.preprocess import normalization

RECIPE_FILE = "recipe.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "checkpoint.safetensors"
BEST_FILE = "best.safetensors"


def train(recipe: Recipe, source: Source, run: Path, *, device: str = "cpu", stop_after: int | None = None) -> None:
    """Trains to the recipe's last epoch, or resumes the run in that folder.

    `stop_after` ends the call after that many epochs in all, as if interrupted there. Raises DataError where the
    folder holds a run of another recipe or the loss is no longer finite.
    """
    config = recipe.training
    to_train_on, held_out = split(load(source.training(), recipe.preprocessing))
    images, labels = _resident(to_train_on, device)
    torch.manual_seed(recipe.seed)
    net = build(recipe.net, recipe.size, len(source.classes)).to(device)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
    average = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = _optimizer(net, config)
    first_epoch, best = _open_run(recipe, source, run, net, average, optimizer)

    steps = max(1, len(labels) // config.batch)
    batch = min(config.batch, len(labels))
    to_input = _Normalize(recipe, device)
    for epoch in range(first_epoch, min(config.epochs, stop_after or config.epochs)):
        started = time.monotonic()
        torch.manual_seed(recipe.seed * 100_003 + epoch)  # stochastic depth
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        order = torch.randperm(len(labels), generator=generator)
        flips = flip_mask(len(labels), epoch, recipe.seed) if config.flip else torch.zeros(len(labels), dtype=torch.bool)
        net.train()
        total_loss = 0.0
        for step in range(steps):
            now = epoch * steps + step
            chosen = order[step * batch : (step + 1) * batch]
            pictures = shift_and_flip(images[chosen.to(device)], flips[chosen], config.shift, generator)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(now, steps, config)
            with _autocast(config, device):
                logits = net(to_input(pictures))
            loss = F.cross_entropy(logits.float(), labels[chosen.to(device)], label_smoothing=config.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            _average(average, net, config.ema, now)
            total_loss += loss.item()
            if not math.isfinite(total_loss):
                rate = optimizer.param_groups[0]["lr"]
                raise DataError(f"the loss is {loss.item()} at epoch {epoch + 1}, step {step + 1}, learning rate {rate:g}")
            _progress(epoch, step, steps, config.epochs, batch, total_loss, started)

        seconds = time.monotonic() - started
        accuracy = _accuracy(recipe, average, held_out, len(source.classes), device)
        metrics = {
            "epoch": epoch + 1,
            "loss": total_loss / steps,
            "held_out_accuracy": accuracy,
            "images_per_second": steps * batch / seconds,
            "seconds": seconds,
        }
        _keep(run, recipe, source, net, average, optimizer, metrics, best)
        best = max(best, accuracy)
        print(
            f"\repoch {epoch + 1}/{config.epochs}  loss {metrics['loss']:.4f}  held-out accuracy {accuracy:.4f}"
            f"  {metrics['images_per_second']:.0f} images/s".ljust(100),
            file=sys.stderr,
            flush=True,
        )


def _resident(pictures: Pictures, device: str) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(pictures.pixels).permute(0, 3, 1, 2).contiguous()  # (n, 3, H, W) uint8
    return images.to(device), torch.from_numpy(pictures.labels).to(device)


class _Normalize:
    """uint8 -> normalised float32 on the device, with the constants of the one preprocessing."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        scale, offset = normalization(recipe.preprocessing)
        self.scale = torch.from_numpy(scale).view(3, 1, 1).to(device)
        self.offset = torch.from_numpy(offset).view(3, 1, 1).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        return (images * self.scale + self.offset).contiguous(memory_format=torch.channels_last)


def _autocast(config: TrainingConfig, device: str) -> torch.autocast:
    return torch.autocast(device, dtype=torch.bfloat16, enabled=config.precision == "bfloat16")


def _optimizer(net: Net, config: TrainingConfig) -> torch.optim.Optimizer:
    """No weight decay on norms, biases, positions and special tokens."""
    decayed, plain = [], []
    for name, parameter in net.named_parameters():
        exempt = parameter.ndim < 2 or name in ("position", "class_token")
        (plain if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
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
def _average(average: checkpoint.State, net: Net, decay: float, step: int) -> None:
    """Exponential moving average; early steps count more, so that the start is forgotten."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor, weight)
        else:
            average[name].copy_(tensor)


@torch.inference_mode()
def _accuracy(recipe: Recipe, weights: checkpoint.State, pictures: Pictures, classes: int, device: str) -> float:
    net = build(recipe.net, recipe.size, classes).to(device)
    net.load_state_dict(weights)
    net.eval()
    images, labels = _resident(pictures, device)
    to_input = _Normalize(recipe, device)
    right = sum(
        int((net(to_input(batch)).argmax(-1) == truth).sum())
        for batch, truth in zip(images.split(500), labels.split(500), strict=True)
    )
    return right / len(labels)


def _open_run(
    recipe: Recipe, source: Source, run: Path, net: Net, average: checkpoint.State, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """(first epoch, best accuracy so far); restores all state where the folder holds a run of this recipe."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        (run / RECIPE_FILE).touch()
    except OSError as error:
        raise DataError(f"could not write to {run}: {error}") from error
    if not (run / CHECKPOINT_FILE).exists():
        (run / RECIPE_FILE).write_text(recipe.model_dump_json(indent=2) + "\n")
        (run / METRICS_FILE).write_text("")
        return 0, -1.0
    tensors, state = checkpoint.read(run / CHECKPOINT_FILE)
    if Recipe.model_validate(state["recipe"]) != recipe or state["classes"] != list(source.classes):
        raise DataError(f"{run} holds a run of another recipe or other classes: give another --out")
    net.load_state_dict(checkpoint.without_prefix("net", tensors))
    average.update(checkpoint.without_prefix("average", tensors))
    checkpoint.restore_optimizer(optimizer, checkpoint.without_prefix("optimizer", tensors))
    lines = (run / METRICS_FILE).read_text().splitlines()[: state["epoch"]]  # the rest was not checkpointed
    (run / METRICS_FILE).write_text("".join(f"{line}\n" for line in lines))
    return state["epoch"], state["best"]


def _keep(
    run: Path,
    recipe: Recipe,
    source: Source,
    net: Net,
    average: checkpoint.State,
    optimizer: torch.optim.Optimizer,
    metrics: dict[str, Any],
    best: float,
) -> None:
    accuracy = metrics["held_out_accuracy"]
    state = {
        "recipe": recipe.model_dump(mode="json"),
        "classes": list(source.classes),
        "data": source.name,
        "epoch": metrics["epoch"],
        "best": max(best, accuracy),
        "torch": torch.__version__,
        "hardware": _hardware(net),
    }
    with (run / METRICS_FILE).open("a") as file:
        file.write(json.dumps(metrics) + "\n")
    if accuracy > best:
        checkpoint.write(run / BEST_FILE, average, state)
    tensors = {
        **checkpoint.with_prefix("net", net.state_dict()),
        **checkpoint.with_prefix("average", average),
        **checkpoint.with_prefix("optimizer", checkpoint.optimizer_tensors(optimizer)),
    }
    checkpoint.write(run / CHECKPOINT_FILE, tensors, state)


def _hardware(net: Net) -> str:
    device = next(net.parameters()).device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of {platform.machine()} CPU"


def _progress(epoch: int, step: int, steps: int, epochs: int, batch: int, loss: float, started: float) -> None:
    if (step + 1) % 20 and step + 1 < steps:
        return
    elapsed = time.monotonic() - started
    left = ((epochs - epoch) * steps - step - 1) * elapsed / (step + 1)
    print(
        f"\repoch {epoch + 1}/{epochs}  step {step + 1}/{steps}  loss {loss / (step + 1):.4f}"
        f"  {(step + 1) * batch / elapsed:.0f} images/s  {left / 60:.1f} min left   ",
        end="",
        file=sys.stderr,
        flush=True,
    )


def read_run(run: Path) -> tuple[Recipe, checkpoint.State, dict[str, Any], list[dict[str, Any]]]:
    """(recipe, best weights, their state, metrics of all epochs). Raises DataError where the folder holds no run."""
    try:
        recipe = Recipe.model_validate_json((run / RECIPE_FILE).read_text())
        metrics = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
    except (OSError, ValidationError, ValueError) as error:
        raise DataError(f"{run} is not a run folder: {error}") from error
    weights, state = checkpoint.read(run / BEST_FILE)
    if Recipe.model_validate(state["recipe"]) != recipe:
        raise DataError(f"{run / BEST_FILE} belongs to another recipe than {RECIPE_FILE}")
    return recipe, weights, state, metrics

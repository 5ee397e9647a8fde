"""Training against the plain loop that most people would write, in images a second, in pairs of one run.

    python -m benchmarks.training [--rounds 15] [--steps 24] [--batch 128] [--device cpu] [--out FILE]

The same net (the recipe's), batch, pictures and augmentation (shift by 4 with reflected edges, flip). The plain loop is
a DataLoader with workers, transforms of one picture at a time as torchvision's are on PIL, float32, the optimizer as it
comes, and the loss read in every step. It has no moving average and clips no gradient; ours does both. Pictures are
noise: what they show does not change the speed. The plain loop runs with several numbers of workers; the best counts.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import machine, versions
from benchmarks.stats import median_interval, paired_ratio
from export.examples import HELD_OUT_SHARE, Examples, Source
from export.nets import build
from export.recipe import Recipe, load_recipe
from export.train import train

WARMUP = 4
"""Steps before the clock starts: memory is laid out, workers are up."""
SHIFT = 4
CLASSES = 10


class Noise(Examples):
    """Pictures of the size of CIFAR-10's."""

    def __init__(self, count: int) -> None:
        self._pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
        self.labels = np.arange(count) % CLASSES

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[index])

    def fingerprint(self) -> str:
        return "noise"


class NoiseSource(Source):
    name = "noise"
    classes = tuple("0123456789")

    def __init__(self, count: int) -> None:
        self._examples = Noise(count)

    def training(self) -> Examples:
        return self._examples

    test = training


class Transformed(Dataset[tuple[Tensor, int]]):
    """What a torchvision data set gives: RandomCrop with padding, RandomHorizontalFlip, ToTensor, Normalize."""

    def __init__(self, examples: Noise, recipe: Recipe) -> None:
        self._examples = examples
        self._mean, self._std = recipe.preprocessing.mean, recipe.preprocessing.std

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = self._examples.picture(index)
        padded = Image.fromarray(np.pad(np.asarray(picture), ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), "reflect"))
        left, top = random.randint(0, 2 * SHIFT), random.randint(0, 2 * SHIFT)
        picture = padded.crop((left, top, left + picture.width, top + picture.height))
        if random.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(picture, np.uint8, copy=True)).permute(2, 0, 1).contiguous().float().div(255)
        mean, std = torch.tensor(self._mean).view(-1, 1, 1), torch.tensor(self._std).view(-1, 1, 1)
        return tensor.sub_(mean).div_(std), int(self._examples.labels[index])


class Plain:
    """The loop of a tutorial."""

    def __init__(self, recipe: Recipe, examples: Noise, device: str, workers: int) -> None:
        self._recipe, self._device = recipe, device
        self._loader = DataLoader(
            Transformed(examples, recipe),
            batch_size=recipe.training.batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device == "cuda",
        )

    def epoch(self) -> None:
        config = self._recipe.training
        net = build(self._recipe.net, self._recipe.size, CLASSES).to(self._device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        total = 0.0
        for images, labels in self._loader:
            optimizer.zero_grad()
            logits = net(images.to(self._device))
            loss = F.cross_entropy(logits, labels.to(self._device), label_smoothing=config.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item()


@contextmanager
def clock(device: str, batch: int, steps: int) -> Iterator[list[float]]:
    """Gives a list that holds images a second, between the ends of step WARMUP and of the last one."""
    done = 0
    times: list[float] = []
    speed: list[float] = []

    def step(*_: Any) -> None:
        nonlocal done
        done += 1
        if done in (WARMUP, steps):
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    handle = register_optimizer_step_post_hook(step)
    try:
        yield speed
        assert done == steps, f"{done} steps, not {steps}"
        speed.append((steps - WARMUP) * batch / (times[1] - times[0]))
    finally:
        handle.remove()


def measure(recipe: Recipe, device: str, steps: int, rounds: int, workers: list[int]) -> dict[str, Any]:
    """Images a second of each loop in each round."""
    batch = recipe.training.batch
    count = -(-steps * batch * HELD_OUT_SHARE // ((HELD_OUT_SHARE - 1) * CLASSES)) * CLASSES
    source = NoiseSource(count)
    examples = Noise(steps * batch)
    plain = {f"plain, {number} workers": Plain(recipe, examples, device, number) for number in workers}

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            train(recipe, source, Path(folder) / "run", device=device, stop_after=1)

    loops = {"ours": ours, **{name: loop.epoch for name, loop in plain.items()}}
    seen: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds):
        turn = number % len(loops)
        for name in (*list(loops)[turn:], *list(loops)[:turn]):
            with clock(device, batch, steps) as speed:
                loops[name]()
            seen[name] += speed
        print("  ".join(f"{name}: {speeds[-1]:,.0f}" for name, speeds in seen.items()), flush=True)
    return seen


def summary(seen: dict[str, list[float]]) -> dict[str, Any]:
    """Medians with their intervals, and the ratio to the best plain loop."""
    plain = max((name for name in seen if name != "ours"), key=lambda name: median_interval(seen[name]).median)
    return {
        "images_per_second": {name: median_interval(speeds)._asdict() for name, speeds in seen.items()},
        "against": plain,
        "ratio": paired_ratio(seen["ours"], seen[plain])._asdict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cifar10-cct")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="of torch, for both loops (default: torch's own)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    recipe = load_recipe(given.recipe)
    training = recipe.training.model_copy(update={"batch": given.batch, "shift": SHIFT, "flip": True})
    recipe = recipe.model_copy(update={"training": training})
    seen = measure(recipe, given.device, given.steps, given.rounds, given.workers)
    found = {
        "recipe": given.recipe,
        "batch": given.batch,
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "versions": versions(("torch", "numpy", "pillow")),
        **summary(seen),
        "rounds": seen,
    }
    ratio = found["ratio"]
    print(
        f"ours / {found['against']}: {ratio['median']:.2f}"
        f" ({ratio['low']:.2f} to {ratio['high']:.2f}, {ratio['pairs']} pairs)"
    )
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

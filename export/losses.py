"""The losses of an epoch, and what is said of it while it runs."""

import math
import sys
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from export.distributed import World
from saccade.errors import DataError


class Losses:
    """Left on the device until they are looked at: each look waits for the device, and for the other processes."""

    def __init__(self, world: World, epoch: int) -> None:
        self._world = world
        self._epoch = epoch
        self._waiting: list[Tensor] = []
        self._rates: list[float] = []
        self._seen: list[float] = []

    def add(self, loss: Tensor, rate: float) -> None:
        self._waiting.append(loss.detach())
        self._rates.append(rate)

    def mean(self) -> float:
        """Of all steps so far, over all processes. Raises DataError at the first that is not finite, in all of them."""
        if self._waiting:
            summed = self._world.total(torch.stack(self._waiting))
            self._seen += (summed / self._world.size).tolist()
            self._waiting.clear()
        for step, (loss, rate) in enumerate(zip(self._seen, self._rates, strict=True), start=1):
            if not math.isfinite(loss):
                raise DataError(f"the loss is {loss} at epoch {self._epoch + 1}, step {step}, rate {rate:g}")
        return math.fsum(self._seen) / len(self._seen)


class Progress:
    """One line on standard error, over the line before; of the first process alone."""

    def __init__(self, epoch: int, epochs: int, *, quiet: bool) -> None:
        self._epoch, self._epochs = epoch, epochs
        self._quiet = quiet
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the epoch began."""
        return time.monotonic() - self._began

    def step(self, done: int, steps: int, loss: float, batch: int) -> None:
        """After `done` of `steps` steps."""
        left = ((self._epochs - self._epoch) * steps - done) * self.seconds / done
        self._show(
            f"epoch {self._epoch + 1}/{self._epochs}  step {done}/{steps}  loss {loss:.4f}"
            f"  {done * batch / self.seconds:.0f} images/s  {left / 60:.1f} min left"
        )

    def end(self, metrics: Mapping[str, float]) -> None:
        self._show(
            f"epoch {self._epoch + 1}/{self._epochs}  loss {metrics['loss']:.4f}"
            f"  held-out accuracy {metrics['held_out_accuracy']:.4f}  {metrics['images_per_second']:.0f} images/s",
            end="\n",
        )

    def _show(self, line: str, end: str = "") -> None:
        if not self._quiet:
            print(f"\r{line:100}", end=end, file=sys.stderr, flush=True)

"""The losses and gradients of an epoch, held to be finite, and what is said of it while it runs."""

import math
import sys
import time
from collections.abc import Iterable, Mapping

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

    def add(self, loss: Tensor, norm: Tensor, rate: float) -> None:
        """`norm` is that of the gradient, before it is clipped."""
        self._waiting.append(torch.stack([loss.detach(), norm]))
        self._rates.append(rate)

    def mean(self) -> float:
        """Of all steps so far, over all processes.

        Raises DataError, in all of them, at the first step whose loss or gradient is not finite.
        """
        if self._waiting:
            means = self._world.total(torch.stack(self._waiting)) / self._world.size
            self._waiting.clear()
            for loss, norm in means.tolist():
                self._seen.append(loss)
                self._check("the loss", loss)
                self._check("the norm of the gradient", norm)
        return math.fsum(self._seen) / len(self._seen)

    def check_finite(self, tensors: Iterable[Tensor]) -> None:
        """Holds what the steps left to the same, which no loss has seen yet after the last of them."""
        wrong = [~tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
        if self._world.total(torch.stack(wrong).sum().to(self._world.device)):
            raise DataError(f"weights are not finite after {self._where()}")

    def _check(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise DataError(f"{what} is {value} at {self._where()}")

    def _where(self) -> str:
        step = len(self._seen)
        return f"epoch {self._epoch + 1}, step {step}, rate {self._rates[step - 1]:g}"


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

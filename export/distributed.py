"""The processes that train together: started by torchrun, one a device; or this one alone.

Each takes its part of every batch, and DistributedDataParallel averages their gradients, so that together they do what
one would do with the whole batch. Batch norms are the exception: each process norms with the statistics of its own part
(as the usual ImageNet recipes do), and those of the first are kept.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn

from saccade.errors import DataError, RecipeError


class World:
    """One process, `rank` among `size`. The first, of rank 0, writes; what it writes is true of all."""

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1) -> None:
        self.device = device
        self.rank = rank
        self.size = size

    def part(self, batch: int, asked: int) -> slice:
        """Which pictures of a batch are this process's. Raises RecipeError where it cannot be shared out evenly.

        `asked` is the recipe's batch, which is larger where there are fewer pictures.
        """
        if batch % self.size:
            why = f", but there are {batch} pictures to train on" if batch < asked else ""
            raise RecipeError(f"training.batch is {asked}{why}; {self.size} processes cannot share {batch} evenly")
        own = batch // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def wrap(self, net: nn.Module) -> nn.Module:
        """The net, whose gradients are averaged over all processes as they come."""
        if self.size == 1:
            return net
        return nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in every one of them."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites them with those of the first process."""
        for tensor in tensors if self.size > 1 else ():
            distributed.broadcast(tensor, src=0)


@contextmanager
def join(device: str) -> Iterator[World]:
    """Meets the others, if torchrun started this process; on CUDA each takes the GPU of its local rank.

    Raises DataError where torch has no such device.
    """
    together = distributed.is_torchelastic_launched()
    local = int(os.environ["LOCAL_RANK"]) if together else 0
    own = _device(f"cuda:{local}" if together and device == "cuda" else device)
    if not together:
        yield World(own)
        return
    if own.type == "cuda":
        torch.cuda.set_device(own)
    begins = not distributed.is_initialized()  # by a program that trains more than once: torchrun lets them meet once
    if begins:
        distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield World(own, distributed.get_rank(), distributed.get_world_size())
    finally:
        if begins:
            distributed.destroy_process_group()


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"torch has no device {name!r} here: {str(error).splitlines()[0]}") from error

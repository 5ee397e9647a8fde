"""Batches of pictures on the device that trains: from memory where they fit, else read anew in each epoch.

Which pictures a batch has, and in which part of them a random crop lies, is decided before a loader is asked. So a run
is the same however its pictures come, and with any number of worker processes.
"""

import multiprocessing
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from export.crop import crop_region
from export.examples import Examples
from saccade.errors import DataError
from saccade.manifest import Preprocessing
from saccade.preprocess import resample, resize

Resident = Literal["auto", "always", "never"]

SHARE = 0.5
"""Of free memory: so much may be filled with pictures without being asked for."""
PREFETCH = 4
"""Batches that each worker prepares ahead."""
FILL = 256
"""Pictures a batch while those that stay are read."""
WORTH_A_WORKER = 2_000
"""Pictures read once: fewer are read sooner than a process is started."""

_CGROUP = tuple(
    (Path("/sys/fs/cgroup") / limit, Path("/sys/fs/cgroup") / used)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    )
)

Key = tuple[int, NDArray[np.float64] | None]


class Order(NamedTuple):
    """Which pictures make up a batch."""

    indices: NDArray[np.int64]  # (B,)
    crops: NDArray[np.float64] | None = None  # (B, crop.DRAWS), of a random resized crop


class Batch(NamedTuple):
    pictures: Tensor  # (B, 3, height, width) uint8
    labels: Tensor  # (B,) int64


class Loader(ABC):
    @abstractmethod
    def batches(self, orders: Sequence[Order]) -> Iterator[Batch]:
        """One batch an order, on the device. Raises DataError naming a picture that cannot be read."""


def open_loader(
    examples: Examples,
    spec: Preprocessing,
    device: torch.device,
    *,
    crop_area: float | None = None,
    resident: Resident = "auto",
    workers: int = 0,
) -> Loader:
    """All pictures in the device's memory, or a loader that streams them. `workers` processes read, at most.

    Random resized crops are taken from pictures at their full size, so they are always streamed. Raises DataError where
    pictures that must be resident cannot be.
    """
    if crop_area is not None:
        if resident == "always":
            raise DataError("training.crop_area takes pictures at their full size: they cannot be resident")
        return _Streaming(examples, spec, device, crop_area, workers)
    size, free = len(examples) * 3 * spec.height * spec.width, free_bytes(device)
    if resident == "always" and size > free:
        raise DataError(f"{len(examples)} pictures take {size} bytes; {free} are free on {device}")
    if resident == "always" or (resident == "auto" and size <= SHARE * free):
        reading = _Streaming(examples, spec, device, None, min(workers, len(examples) // WORTH_A_WORKER))
        return _Resident(reading, examples.labels, spec, device)
    return _Streaming(examples, spec, device, None, workers)


def free_bytes(device: torch.device) -> int:
    """Memory that pictures could take on a device.

    On the CPU what the system or the container still has, over the processes that torchrun started here: each fills it.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    for limit, used in _CGROUP:
        try:
            free = min(free, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # the other version of cgroups, none, or "max"
            continue
    return max(free, 0) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class _Resident(Loader):
    """Filled batch by batch where it stays: what is held at most is the pictures and a few batches."""

    def __init__(self, reading: Loader, labels: NDArray[np.int64], spec: Preprocessing, device: torch.device) -> None:
        self._pictures = torch.empty((len(labels), 3, spec.height, spec.width), dtype=torch.uint8, device=device)
        self._labels = torch.from_numpy(labels).to(device)
        starts = range(0, len(labels), FILL)
        orders = [Order(np.arange(start, min(start + FILL, len(labels)))) for start in starts]
        for start, batch in zip(starts, reading.batches(orders), strict=True):
            self._pictures[start : start + FILL] = batch.pictures

    def batches(self, orders: Sequence[Order]) -> Iterator[Batch]:
        for order in orders:
            chosen = torch.from_numpy(order.indices).to(self._labels.device, non_blocking=True)
            yield Batch(self._pictures[chosen], self._labels[chosen])


class _Streaming(Loader):
    def __init__(
        self, examples: Examples, spec: Preprocessing, device: torch.device, crop_area: float | None, workers: int
    ) -> None:
        self._examples = examples
        self._device = device
        self._keys = _Keys()
        self._loader = DataLoader(
            _Prepared(examples, spec, crop_area),
            batch_sampler=self._keys,
            num_workers=workers,
            collate_fn=_stack,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCH if workers else None,
            multiprocessing_context=_workers_begin() if workers else None,
            generator=torch.Generator(),  # else each epoch would draw from the one that stochastic depth draws from
        )

    def batches(self, orders: Sequence[Order]) -> Iterator[Batch]:
        self._keys.orders = orders
        prepared = iter(self._loader)
        for order in orders:
            try:
                pictures = next(prepared)
            except RuntimeError as error:
                raise DataError(f"a worker process that reads pictures ended: {str(error).splitlines()[0]}") from error
            if isinstance(pictures, str):
                raise DataError(pictures)
            labels = torch.from_numpy(self._examples.labels[order.indices])
            yield Batch(
                pictures.to(self._device, non_blocking=True).permute(0, 3, 1, 2),
                labels.to(self._device, non_blocking=True),
            )


def _workers_begin() -> ForkServerContext:
    """Workers are forked from a process that has imported this module and nothing more.

    Not from this one: it has threads of torch's, and of CUDA's, whose locks would be copied as they stand.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class _Keys(Sampler[list[Key]]):
    """What the workers get: of each batch its pictures. `orders` is set before each epoch."""

    orders: Sequence[Order] = ()

    def __len__(self) -> int:
        return len(self.orders)

    def __iter__(self) -> Iterator[list[Key]]:
        for indices, crops in self.orders:
            yield list(zip(indices.tolist(), [None] * len(indices) if crops is None else crops, strict=True))


class _Prepared(Dataset["NDArray[np.uint8] | str"]):
    """Pictures at the size of the net, (height, width, 3); in place of one that cannot be read, the reason."""

    def __init__(self, examples: Examples, spec: Preprocessing, crop_area: float | None) -> None:
        self._examples = examples
        self._spec = spec
        self._crop_area = crop_area

    def __getitem__(self, key: Key) -> NDArray[np.uint8] | str:
        index, draws = key
        try:
            picture = self._examples.picture(index)
        except DataError as error:
            return str(error)
        if draws is None or self._crop_area is None:
            return resize(picture, self._spec)
        return resample(picture, crop_region(draws, *picture.size, self._crop_area), self._spec)


def _stack(prepared: list[NDArray[np.uint8] | str]) -> Tensor | str:
    """(B, height, width, 3), or why not."""
    wrong = [one for one in prepared if isinstance(one, str)]
    return wrong[0] if wrong else torch.from_numpy(np.stack(prepared))

"""Training state on disk: safetensors and JSON metadata, replaced whole or not at all. Nothing is pickled."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from saccade.errors import DataError

State = dict[str, Tensor]


def write(path: Path, tensors: State, metadata: dict[str, Any]) -> None:
    """Replaces `path` in one step, so that an interrupted run keeps its last checkpoint."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace(path, save(contiguous, {"saccade": json.dumps(metadata)}))


def replace(path: Path, content: bytes) -> None:
    """The file has its old content or the new one, whatever happens. Raises DataError where it keeps the old one."""
    scratch = path.with_suffix(".part")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise DataError(f"could not write {path}: {error}") from error


def read(path: Path) -> tuple[State, dict[str, Any]]:
    """(tensors, metadata). Raises DataError for a file that is missing or no checkpoint."""
    with _opened(path) as (file, metadata):
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - no mapping


def read_metadata(path: Path) -> dict[str, Any]:
    """As `read`, without the tensors."""
    with _opened(path) as (_, metadata):
        return metadata


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file, json.loads((file.metadata() or {})["saccade"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a checkpoint: {error}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> State:
    """The optimizer's state as flat names `<parameter number>.<key>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entries in state.items()
        for key, value in entries.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: State) -> None:
    """The inverse of `optimizer_tensors`; groups keep the settings that the recipe gave them.

    Each tensor gets the memory layout of its parameter: fused kernels walk both side by side.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        laid_out = torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
        state.setdefault(int(index), {})[key] = laid_out
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(prefix: str, tensors: State) -> State:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: State) -> State:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}

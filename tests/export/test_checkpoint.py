"""Training state on disk: whole or not at all, and nothing pickled."""

import errno
import os
from pathlib import Path

import pytest
import torch

from export import checkpoint
from saccade.errors import DataError

TENSORS = {"a": torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last), "b.step": torch.tensor(7.0)}


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    """Names, bits and metadata come back, in whatever layout a tensor lay in memory."""
    checkpoint.write(tmp_path / "c.safetensors", TENSORS, {"epoch": 3, "recipe": {"seed": 1}})
    tensors, metadata = checkpoint.read(tmp_path / "c.safetensors")
    assert metadata == {"epoch": 3, "recipe": {"seed": 1}}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that cannot be written whole does not touch the one before, and says why."""
    path = tmp_path / "c.safetensors"
    checkpoint.write(path, TENSORS, {"epoch": 1})
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"could not write .*c\.safetensors: .*No space left"):
        checkpoint.write(path, TENSORS, {"epoch": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04K\x01.", b"PK\x03\x04", b"\xff" * 100])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes | None) -> None:
    """Missing, empty, pickled, zipped (as torch.save writes) or rubbish: refused, never unpickled."""
    path = tmp_path / "c.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"c\.safetensors is not a checkpoint"):
        checkpoint.read(path)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_restored_optimizer_takes_the_same_next_step(kind: str, layout: torch.memory_format) -> None:
    """Bit for bit, also for convolutions whose weights lie channels last, where fused kernels walk memory."""

    def fresh() -> tuple[torch.Tensor, torch.optim.Optimizer]:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=layout))
        if kind == "adamw":
            return weight, torch.optim.AdamW([weight], lr=0.1, fused=True)
        return weight, torch.optim.SGD([weight], lr=0.1, momentum=0.9)

    def step(weight: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        weight.grad = torch.sin(weight.detach() * 3)
        optimizer.step()

    weight, optimizer = fresh()
    step(weight, optimizer)
    saved = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in checkpoint.optimizer_tensors(optimizer).items()
    }
    other, restored = fresh()
    with torch.no_grad():
        other.copy_(weight)
    checkpoint.restore_optimizer(restored, saved)
    step(weight, optimizer)
    step(other, restored)
    assert torch.equal(weight, other)

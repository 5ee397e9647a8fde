"""A bundle to write into, and what its net says in eager PyTorch, reached without the code under test."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from export.data import Digits
from export.examples import held_out
from export.nets import build
from saccade.bundle import Bundle, open_bundle, update_bundle
from tests.conftest import tiny_recipe


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Bundle:
    shutil.copytree(models / "tiny-cct" / "1", tmp_path / "models" / "tiny-cct" / "1")
    return open_bundle(tmp_path / "models" / "tiny-cct" / "1")


@pytest.fixture
def not_finite(copy: Bundle) -> Bundle:
    """One that adds NaN to the logit of one label; checksums are those of its files."""
    raw = bytearray(copy.weights.read_bytes())
    header = int.from_bytes(raw[:8], "little")
    begin = 8 + header + json.loads(raw[8 : 8 + header])["head.bias"]["data_offsets"][0]
    raw[begin : begin + 4] = np.float32("nan").tobytes()
    return update_bundle(copy, {}, {"weights.safetensors": bytes(raw)})


@pytest.fixture(scope="session")
def in_torch(models: Path) -> Callable[[str], tuple[torch.Tensor, torch.Tensor]]:
    """A function: split -> (logits in float64, labels) of the rebuilt net, for scikit-learn's data."""
    net = build(tiny_recipe("tiny-cct").net, (16, 16), 10)
    net.load_state_dict(load_file(models / "tiny-cct" / "1" / "weights.safetensors"))

    def answer(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        examples = list(Digits().test() if split == "test" else Digits().training())
        labels = np.array([example.label for example in examples])
        pixels = np.stack([np.asarray(example.picture.resize((16, 16), 2)) for example in examples])  # 2: bilinear
        if split == "held-out":
            mask = held_out(labels, Digits.classes)
            labels, pixels = labels[mask], pixels[mask]
        with torch.inference_mode():
            inputs = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
            return net.eval()(inputs).double(), torch.from_numpy(labels)

    return answer

"""A trained net -> a bundle: one ONNX graph whose initializers are the net's own parameters, bit for bit.

The exporter's own optimizer would fold batch norms into convolutions, transposes into weights, and merge equal
tensors; then the file could not be turned back into the net. Here only shape arithmetic is folded: each initializer
keeps the name and the layout of its parameter and points into weights.safetensors, which holds every one once. ONNX
Runtime does the other folding when it loads the graph, in memory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.explain.rollout import rollout
from export.graph.narrow import narrow
from export.nets import Net
from export.nets.maps import output_names, rolls_out
from export.trace import simplify, trace
from export.weights import write_files
from saccade.errors import BundleError
from saccade.pooling import pooled_row


class Exported(nn.Module):
    """The net with all its outputs, in the order of the manifest: what is traced, and what `verify` compares with."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> logits, one attention a layer, then pooling, rollout and class tokens where there are any."""
        outputs = self.net.explain(pixel_values)
        maps = [outputs.pooling]
        if rolls_out(self.net.attention_layers):
            maps.append(self._rollout(outputs.attention, outputs.pooling))
        maps.append(outputs.class_tokens)
        return (outputs.logits, *outputs.attention, *(tensor for tensor in maps if tensor is not None))

    def _rollout(self, attention: tuple[Tensor, ...], learned: Tensor | None) -> Tensor:
        assert self.net.pooling is not None
        last = self.net.attention_layers[-1]
        row = learned
        if row is None:
            fixed = torch.from_numpy(pooled_row(self.net.pooling, last)).to(attention[-1])
            row = fixed.expand(attention[-1].shape[0], -1)
        return rollout(attention, row)[:, last.patch_slice]

    @torch.inference_mode()
    def arrays(self, pixels: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Runs the net in eager PyTorch: (n, 3, H, W) -> outputs by name."""
        tensors = self(torch.from_numpy(pixels))
        return {name: tensor.numpy() for name, tensor in zip(output_names(self.net), tensors, strict=True)}


def write_model(net: Net, size: tuple[int, int], folder: Path) -> None:
    """Writes model.onnx and weights.safetensors into `folder`. Raises BundleError where the graph is not the net."""
    net.eval()
    model = trace(Exported(net), size, output_names(net))
    simplify(model)
    narrow(model, size)
    tensors = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    write_files(model, tensors, _parameters(model, tensors), folder)


def _parameters(model: ir.Model, tensors: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Initializer -> the parameter that it is. Raises BundleError where there is a large one that is none."""
    names = {}
    for value in model.graph.initializers.values():
        assert value.name is not None
        assert value.const_value is not None
        name = value.name.removeprefix("net.")
        if name in tensors:
            names[value.name] = name
        elif value.const_value.size > 4096:
            raise BundleError(f"the graph holds a constant {value.name} that is no parameter of the net")
    return names

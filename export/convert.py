"""A trained net -> a bundle: one ONNX graph whose initializers are the net's own parameters, bit for bit.

The exporter's own optimizer would fold batch norms into convolutions, transposes into weights, and merge equal
tensors; then the file could not be turned back into the net. Here only shape arithmetic is folded: each initializer
keeps the name and the layout of its parameter and points into weights.safetensors, which holds every one once. ONNX
Runtime does the other folding when it loads the graph, in memory.
"""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn

from export.explain.rollout import rollout
from export.names import INPUT
from export.nets import Net
from export.nets.maps import output_names, rolls_out
from export.weights import write_files
from saccade.errors import BundleError
from saccade.pooling import pooled_row

OPSET = 20


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
    model = _trace(net, size)
    _simplify(model)
    tensors = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    write_files(model, tensors, _parameters(model, tensors), folder)


def _trace(net: Net, size: tuple[int, int]) -> ir.Model:
    # A batch of 1 would be specialised on by torch.export; 2 stays dynamic.
    example = torch.zeros(2, 3, *size)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it announces the torchvision operators it lacks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside of torch.export, none of which a caller can act on
        program = torch.onnx.export(
            Exported(net).eval(),
            (example,),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=output_names(net),
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None
    return program.model


def _simplify(model: ir.Model) -> None:
    """Folds constants that are no parameters: shapes, axes, scalars, the zero biases of bias-free convolutions."""
    parameters = set(model.graph.initializers.values())

    def fold(node: ir.Node) -> bool | None:
        return False if any(value in parameters for value in node.inputs) else None

    for _ in range(2):
        fold_constants(model, onnx_shape_inference=True, should_fold=fold)
        common.IdentityEliminationPass()(model)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    # its merging would make one tensor of equal parameters, so it is for what is left: equal constants of shape work
    _merge_constants(model, parameters)
    common.RemoveUnusedOpsetsPass()(model)


def _merge_constants(model: ir.Model, parameters: set[ir.Value]) -> None:
    first: dict[tuple[Any, ...], ir.Value] = {}
    for value in list(model.graph.initializers.values()):
        if value in parameters or value.const_value is None:
            continue
        array = value.const_value.numpy()
        key = (array.dtype.str, array.shape, array.tobytes())
        kept = first.setdefault(key, value)
        if kept is not value:
            value.replace_all_uses_with(kept)
            del model.graph.initializers[value.name or ""]


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

"""A trained net -> a bundle: one ONNX graph whose initializers are the net's own parameters, bit for bit.

The exporter's own optimizer would fold batch norms into convolutions, transposes into weights, and merge equal
tensors; then the file could not be turned back into the net. Here only shape arithmetic is folded: each initializer
keeps the name and the layout of its parameter and points into weights.safetensors, which holds every one once. ONNX
Runtime does the other folding when it loads the graph, in memory.
"""

import importlib.metadata
import json
import logging
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from safetensors.torch import save
from torch import Tensor, nn

from export.explain.rollout import rollout
from export.names import CLASS_TOKENS, INPUT
from export.nets import Net
from export.nets.maps import output_names, rolls_out
from saccade.bundle import GRAPH, WEIGHTS
from saccade.errors import BundleError
from saccade.pooling import pooled_row

OPSET = 20

TOLERANCE = {
    "CPUExecutionProvider": {
        "logits": 1e-4, "attention": 1e-5, "pooling": 1e-5, "rollout": 1e-5, CLASS_TOKENS: 1e-4,
    },
    "CUDAExecutionProvider": {
        "logits": 1e-3, "attention": 1e-4, "pooling": 1e-4, "rollout": 1e-4, CLASS_TOKENS: 1e-3,
    },
}  # fmt: skip
"""Largest absolute difference from the source model, float32, TF32 off. CUDA's is a bound, not a measurement."""


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
    weights = save({name: tensor.contiguous() for name, tensor in net.state_dict().items()})
    (folder / WEIGHTS).write_bytes(weights)  # save_file's error on a full disk is no OSError
    model = _trace(net, size)
    _simplify(model)
    _point_to_weights(model, net, folder)
    _strip(model)
    ir.save(model, folder / GRAPH)


def versions() -> dict[str, str]:
    """Of everything that decides what the graph is and does."""
    names = ("torch", "onnx", "onnxscript", "numpy", "pillow")
    installed = {name: importlib.metadata.version(name) for name in names}
    return {**installed, "onnxruntime": onnxruntime.__version__}  # which may be installed as onnxruntime-gpu


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


def _point_to_weights(model: ir.Model, net: Net, folder: Path) -> None:
    offsets = _tensor_offsets(folder / WEIGHTS)
    state = net.state_dict()
    for value in list(model.graph.initializers.values()):
        assert value.name is not None
        assert value.const_value is not None
        name = value.name.removeprefix("net.")
        if name not in state:
            if value.const_value.size > 4096:
                raise BundleError(f"the graph holds a constant {value.name} that is no parameter of the net")
            continue
        if not np.array_equal(value.const_value.numpy(), state[name].numpy()):
            raise BundleError(f"the graph's {name} is not the net's")
        begin, end = offsets[name]
        external = ir.ExternalTensor(
            WEIGHTS, begin, end - begin, value.const_value.dtype,
            shape=ir.Shape(state[name].shape), name=name, base_dir=folder,
        )  # fmt: skip
        del model.graph.initializers[value.name]
        value.name = name
        value.const_value = external
        model.graph.initializers[name] = value


def _tensor_offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor's bytes lie in a safetensors file: 8 bytes of header length, a JSON header, then the data."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: Mapping[str, Any] = json.loads(file.read(length))
    start = 8 + length
    return {
        name: (start + entry["data_offsets"][0], start + entry["data_offsets"][1])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _strip(model: ir.Model) -> None:
    """No stack trace, source path or exporter's note is left in the file."""
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()
    model.graph.name = "classifier"
    model.producer_name, model.producer_version = "saccade", None

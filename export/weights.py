"""weights.safetensors, which holds each initializer once, and the graph that points into it."""

import importlib.metadata
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes import common
from safetensors.numpy import save

from export.names import CLASS_TOKENS
from saccade.bundle import GRAPH, WEIGHTS
from saccade.errors import BundleError
from saccade.manifest import Measured

TOLERANCE = {
    "CPUExecutionProvider": {
        "logits": 1e-4, "attention": 1e-5, "pooling": 1e-5, "rollout": 1e-5, CLASS_TOKENS: 1e-4,
    },
    "CUDAExecutionProvider": {
        "logits": 1e-3, "attention": 1e-4, "pooling": 1e-4, "rollout": 1e-4, CLASS_TOKENS: 1e-3,
    },
}  # fmt: skip
"""Largest absolute difference from the source model, float32, TF32 off. CUDA's is a bound, not a measurement."""


def tolerance_for(checks: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """TOLERANCE, as many times wider as the checks had to allow where float32 is rougher than usual.

    That of a variant is measured (see `export.quantize.tolerance`).
    """
    usual = TOLERANCE["CPUExecutionProvider"]
    wider = {kind: max(1.0, checks[kind].allowed / usual[kind]) for kind in ("logits", "attention") if kind in checks}
    of_attention = wider.get("attention", 1.0)
    times = {"attention": of_attention, "pooling": of_attention, "rollout": of_attention}
    return {
        provider: {kind: limit * times.get(kind, wider["logits"]) for kind, limit in limits.items()}
        for provider, limits in TOLERANCE.items()
    }


def write_files(model: ir.Model, tensors: Mapping[str, NDArray[Any]], names: Mapping[str, str], folder: Path) -> None:
    """Writes weights.safetensors with `tensors`, and model.onnx, whose initializers `names` become the tensors named.

    Raises BundleError where an initializer is not its tensor. The model is changed.
    """
    content = save({name: np.array(array, order="C") for name, array in tensors.items()})
    (folder / WEIGHTS).write_bytes(content)  # save_file's error on a full disk is no OSError
    offsets = _tensor_offsets(content)
    for initializer, name in names.items():
        value = model.graph.initializers.pop(initializer)
        assert value.const_value is not None
        if not np.array_equal(value.const_value.numpy(), tensors[name]):
            raise BundleError(f"the graph's {name} is not the net's")
        begin, end = offsets[name]
        external = ir.ExternalTensor(
            WEIGHTS, begin, end - begin, value.const_value.dtype,
            shape=ir.Shape(tensors[name].shape), name=name, base_dir=folder,
        )  # fmt: skip
        value.name = name
        value.const_value = external
        model.graph.initializers[name] = value
    _strip(model)
    ir.save(model, folder / GRAPH)


def versions() -> dict[str, str]:
    """Of everything that decides what the graph is and does."""
    names = ("torch", "onnx", "onnxscript", "numpy", "pillow")
    installed = {name: importlib.metadata.version(name) for name in names}
    return {**installed, "onnxruntime": onnxruntime.__version__}  # which may be installed as onnxruntime-gpu


def _tensor_offsets(content: bytes) -> dict[str, tuple[int, int]]:
    """Where each tensor's bytes lie in a safetensors file: 8 bytes of header length, a JSON header, then the data."""
    (length,) = struct.unpack("<Q", content[:8])
    header: Mapping[str, Any] = json.loads(content[8 : 8 + length])
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
    model.doc_string = None
    model.producer_name, model.producer_version = "saccade", None

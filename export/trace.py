"""A PyTorch module -> an ONNX graph of plain operators, whose initializers are the module's own parameters."""

import io
import logging
import warnings
from ast import literal_eval
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from torch import nn
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from export.names import INPUT

OPSET = 20

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter notes the modules that a node stands in, the outermost first."""


def trace(module: nn.Module, size: tuple[int, int], outputs: Sequence[str], *, alone: bool = False) -> ir.Model:
    """`module` takes (batch, 3, H, W); `alone`: of one picture, else of any number. Attention is written as MatMul,
    Softmax, MatMul.

    Raises whatever the module, torch.export or the exporter raise.
    """
    # A batch of 1 would be specialised on by torch.export; 2 stays dynamic.
    example = torch.zeros(1 if alone else 2, 3, *size)
    shapes = None if alone else {INPUT: {0: torch.export.Dim("batch")}}
    with _silence(), plain_attention(), torch.no_grad():
        exported = torch.export.export(module.eval(), (example,), dynamic_shapes=shapes, strict=False)
        _plain_means(exported)
        program = torch.onnx.export(
            exported,
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(outputs),
            verbose=False,
        )
    assert program is not None
    if not alone:
        _name_batch(program.model)
    return program.model


def _name_batch(model: ir.Model) -> None:
    """The open axis is called `batch`, not by the exporter's number for it."""
    (pixels,) = model.graph.inputs
    assert pixels.shape is not None
    symbol = pixels.shape[0]
    for value in (pixels, *(output for node in model.graph for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape(["batch" if axis == symbol else axis for axis in value.shape])


@contextmanager
def plain_attention() -> Iterator[None]:
    """Within it no fused kernel is taken: attention is MatMul, Softmax, MatMul, step by step."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _silence() -> Iterator[None]:
    """Deprecations inside of torch.export, torchvision's operators that are not there, half a graph before an error:
    nothing that a caller could act on. What went wrong is raised.
    """
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def name_after_modules(model: ir.Model) -> None:
    """Softmax nodes are called after the module that computes them, as its author knows it: `encoder.3.attention`."""
    for node in model.graph:
        if node.op_type == "Softmax" and SCOPES in node.metadata_props:
            module = "".join(literal_eval(node.metadata_props[SCOPES])[:-1][-1:])
            node.name = module.removeprefix("model").removeprefix(".") or node.name


def _plain_means(exported: ExportedProgram) -> None:
    """A mean written as adaptive pooling to one place would be decomposed into strides, in which nobody knows it."""
    for node in exported.graph.nodes:
        if node.target is torch.ops.aten.adaptive_avg_pool1d.default and list(node.args[1]) == [1]:
            node.target, node.args = torch.ops.aten.mean.dim, (node.args[0], [-1], True)
    exported.graph_module.recompile()


def simplify(model: ir.Model) -> None:
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

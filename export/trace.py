"""A PyTorch module -> an ONNX graph of plain operators, whose initializers are the module's own parameters."""

import io
import logging
import math
import warnings
from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

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
    with _silence(), plain_attention(), _WrittenOut(), torch.no_grad():
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


class _WrittenOut(TorchFunctionMode):
    """Attention of other shapes than (batch, heads, tokens, width), which are all that the exporter takes."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query = args[0] if args else given["query"]
            if query.ndim != 4 and not given.get("enable_gqa"):
                return _attention(*args, **given)
        return func(*args, **given)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: bool,
) -> Tensor:
    """What PyTorch's documentation says of `scaled_dot_product_attention`; a query whose keys are all masked gets 0."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is None:
        weights = scores.softmax(-1)
    else:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if masked else scores + attn_mask
        weights = scores.softmax(-1)
        weights = weights.masked_fill(weights.isnan(), 0)  # as the gradient of a softmax knows it
    return torch.dropout(weights, dropout_p, dropout_p > 0) @ value


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
    """Softmax nodes are called after the module that computes them, as its author knows it: `encoder.3.attention`; the
    second of a module `encoder.3.attention (2)`, for no two nodes of a graph may have one name.
    """
    named: Counter[str] = Counter()
    for node in model.graph:
        if node.op_type == "Softmax" and SCOPES in node.metadata_props:
            scope = "".join(literal_eval(node.metadata_props[SCOPES])[:-1][-1:])
            module = scope.removeprefix("model").removeprefix(".")
            named[module] += 1
            node.name = (module if named[module] == 1 else f"{module} ({named[module]})") if module else node.name


_MEANS = {torch.ops.aten.adaptive_avg_pool1d.default: [-1], torch.ops.aten.adaptive_avg_pool2d.default: [-1, -2]}
"""Adaptive pools, and the axes that they take the mean of where one place is left."""


def _plain_means(exported: ExportedProgram) -> None:
    """A mean written as adaptive pooling to one place would be decomposed into strides, in which nobody knows it: in
    one dimension always, in two where the channels lie last in memory.
    """
    for node in exported.graph.nodes:
        if node.target in _MEANS and {*node.args[1]} == {1}:
            node.args = (node.args[0], _MEANS[node.target], True)
            node.target = torch.ops.aten.mean.dim
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

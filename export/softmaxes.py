"""Which softmax of an eager model is which output of a bundle: they run in the order in which they stand in the graph.

All softmaxes of the graph are in that order, not only those that are outputs: gates, pooling, and attention that could
not be given.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from export.runtime import open_graph
from saccade.bundle import Bundle
from saccade.errors import BundleError

_SOFTMAX = (torch.ops.aten._softmax.default, torch.ops.aten._safe_softmax.default)


class Softmaxes(TorchDispatchMode):
    """The results of all softmaxes in the order in which they run, the axis that sums to 1 being the last."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _SOFTMAX and result.ndim >= 2:
            self.ran.append(result.detach().movedim(args[1], -1))
        return result


def places_of(bundle: Bundle, outputs: Sequence[str], ran: Sequence[Tensor]) -> dict[str, int]:
    """Of each output the place of its softmax in `ran`, those that the eager model ran for one picture.

    The model may run more than the graph has, since the graph has none that the outputs do not need. Raises BundleError
    where one of the graph's is not among the model's.
    """
    graph = onnx.load(str(bundle.graph), load_external_data=False)
    producers = {value: node for node in graph.graph.node for value in node.output}
    behind = {_softmax_behind(output, producers): output for output in outputs}
    left = enumerate(ran)
    places = {}
    for value, shape in _shapes(bundle, graph).items():
        size = math.prod(shape)
        place = next((place for place, one in left if one.numel() == size and one.shape[-1] == shape[-1]), None)
        if place is None:
            seen = ", ".join(str(tuple(one.shape)) for one in ran) or "none"
            raise BundleError(
                f"the graph has a softmax {shape} that the model has not, or in another order: it has {seen}"
            )
        if value in behind:
            places[behind[value]] = place
    return places


def laid_out(ran: Tensor, order: Sequence[int] | None, shape: Sequence[int]) -> Tensor:
    """What ran as an output, (batch, *shape): batch and windows, or batch and heads, may be one axis in PyTorch.
    `order`: see `orders_of`.
    """
    count = ran.numel() // math.prod(shape)
    if order is not None:
        outer = (count, *shape[:-2]) if len(shape) > 3 else (count, 1, *shape[:-2])
        sizes = [outer[order.index(axis)] for axis in range(3)]
        ran = ran.reshape(*sizes, *shape[-2:]).permute(*order, 3, 4)
    return ran.reshape(count, *shape)


def orders_of(bundle: Bundle, outputs: Sequence[str]) -> dict[str, tuple[int, ...] | None]:
    """Of each output the places of batch, windows and heads among the axes of its softmax, where these stand in another
    order, as in NesT, which has heads before windows; None where they do not.
    """
    graph = onnx.load(str(bundle.graph), load_external_data=False)
    producers = {value: node for node in graph.graph.node for value in node.output}
    return {name: _order(producers.get(name), producers) for name in outputs}


def _order(node: onnx.NodeProto | None, producers: Mapping[str, onnx.NodeProto]) -> tuple[int, ...] | None:
    while node is not None and node.op_type != "Softmax":
        perm = [axis for attribute in node.attribute if attribute.name == "perm" for axis in attribute.ints]
        if perm[3:] == [3, 4]:
            return tuple(perm[:3])
        node = producers.get(node.input[0])
    return None


def _softmax_behind(output: str, producers: Mapping[str, onnx.NodeProto]) -> str:
    """The nearest one: masks and layouts are all that may stand between."""
    waiting = [output]
    while waiting:
        node = producers.get(waiting.pop(0))
        if node is not None and node.op_type == "Softmax":
            return str(node.output[0])
        waiting += node.input if node is not None else ()
    raise BundleError(f"the graph's {output} is no softmax")


def _shapes(bundle: Bundle, graph: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Result of each Softmax, in order -> its shape for one picture, the axis that sums to 1 being the last."""
    axes = {
        node.output[0]: next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
        for node in graph.graph.node
        if node.op_type == "Softmax"
    }
    given = {output.name for output in graph.graph.output}
    graph.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in axes if name not in given
    )
    answer = open_graph(graph.SerializeToString(), folder=bundle.folder, optimised=False, only=tuple(axes))
    spec = bundle.manifest.preprocessing
    results = answer(np.zeros((1, 3, spec.height, spec.width), np.float32)) if axes else {}
    return {name: np.moveaxis(it, axes[name], -1).shape for name, it in results.items() if it.ndim >= 2}

"""Graphs of the classifiers in `models`, written by both exporters of torch."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from export.graph.expose import Exposed, expose
from export.graph.prepare import logits_of, prepare
from export.graph.read import read_model
from tests.export.graph import models

Arrays = dict[str, NDArray[np.float32]]


def write(net: torch.nn.Module, size: tuple[int, int], path: Path, how: str, opset: int = 18) -> Path:
    """`how`: open, raw (not optimised) or fixed (torch.export, batch open or 1), or script or one (TorchScript,
    open or 1).
    """
    example = torch.zeros(1 if how in ("fixed", "one") else 2, 3, *size)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    options: dict[str, Any] = {"verbose": False, "input_names": ["x"], "opset_version": opset}
    if how in ("script", "one"):
        options |= {"dynamo": False, "dynamic_axes": {"x": {0: "n"}} if how == "script" else None}
    else:
        options |= {"dynamo": True, "external_data": False}
        options["dynamic_shapes"] = {"x": {0: torch.export.Dim("n")}} if how in ("open", "raw") else None
        options["optimize"] = how != "raw"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what an exporter says of itself
        torch.onnx.export(net, (example,), path, **options)
    return path


class Case(NamedTuple):
    """An exported classifier."""

    net: models.Classifier
    path: Path


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Case]:
    """A function: class of `models`, how it is exported -> the net and the file, made once."""
    folder, made = tmp_path_factory.mktemp("graphs"), dict[tuple[str, str], Case]()

    def get(name: str, how: str) -> Case:
        if (name, how) not in made:
            net = models.lively(getattr(models, name)())
            made[name, how] = Case(net, write(net, net.size, folder / f"{name}-{how}.onnx", how))
        return made[name, how]

    return get


def exposed(path: Path, size: tuple[int, int], **options: Any) -> tuple[ir.Model, Exposed]:
    """As `--from-onnx` does it."""
    model = read_model(path)
    found = logits_of(model, None, [])
    name = found.value.name
    model, size, _ = prepare(model, size)
    (logits,) = [value for node in model.graph for value in node.outputs if value.name == name]
    return model, expose(model, size, logits=logits, over=found.over, **options)


def answers(model: ir.Model | onnx.ModelProto, pixels: NDArray[np.float32]) -> Arrays:
    """All outputs of a valid graph through ONNX Runtime."""
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: pixels}), strict=True))


def noise(count: int, size: tuple[int, int], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 3, *size)).astype(np.float32)


def hide(file: Path, to: Path) -> Path:
    """Of a net of `models` behind whose tokens nobody can tell their places: an index that hangs on the picture picks
    them, each at its place.
    """
    proto = onnx.load(file)
    nodes = list(proto.graph.node)
    first = next(at for at, node in enumerate(nodes) if node.op_type == "LayerNormalization")
    tokens = nodes[first].input[0]
    count = next(one.dims[1] for one in proto.graph.initializer if one.name == "position")
    hidden = [
        onnx.helper.make_node("ReduceSum", [tokens], ["sums"], keepdims=0, name="sums"),
        onnx.helper.make_node("Mul", ["sums", "nothing"], ["zero"], name="zero"),
        onnx.helper.make_node("Cast", ["zero"], ["whole"], to=onnx.TensorProto.INT64, name="whole"),
        onnx.helper.make_node("Add", ["whole", "order"], ["picked"], name="picked"),
        onnx.helper.make_node("Gather", [tokens, "picked"], ["hidden"], axis=1, name="hide"),
    ]
    constants = {"nothing": np.float32(0), "order": np.arange(count)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    for node in nodes[first:]:
        node.input[:] = ["hidden" if name == tokens else name for name in node.input]
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes[:first], *hidden, *nodes[first:]])
    onnx.save(proto, to)
    return to

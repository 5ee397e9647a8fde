"""GELU that is written out becomes one operator, with the same result; what is like it stays."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from export.explain.written_out import gather_gelus

NUMBERS = {
    "root": np.float32(np.sqrt(2)), "inverse": np.float32(np.sqrt(0.5)), "one": np.float32(1), "two": np.float32(2),
    "half": np.float32([0.5]), "wide": np.full((1, 1, 1), 0.5, np.float32), "off": np.float32(1.41),
}  # fmt: skip
GELUS = {
    "half last": "d = Div(h, root)\ne = Erf(d)\na = Add(e, one)\nm = Mul(h, a)\ng = Mul(m, half)",
    "half first": "d = Div(h, root)\ne = Erf(d)\na = Add(one, e)\nb = Mul(h, half)\ng = Mul(b, a)",
    "half within": "d = Mul(inverse, h)\ne = Erf(d)\na = Add(e, one)\nb = Mul(half, a)\ng = Mul(h, b)",
    "by two": "d = Mul(h, inverse)\ne = Erf(d)\na = Add(e, one)\nm = Mul(a, h)\ng = Div(m, two)",
}
OTHERS = {
    "of another width": GELUS["half last"].replace("root", "off"),
    "twice as large": GELUS["half last"].replace("half", "one"),
    "of an axis more": GELUS["half last"].replace("half", "wide"),
    "whose error function somebody else takes": GELUS["half last"] + "\no = Mul(g, e)\ng2 = Add(g, o)",
    "of two values": GELUS["half last"].replace("Mul(h, a)", "Mul(x, a)"),
}


def graph_of(nodes: str, output: str) -> ir.Model:
    body = helper.make_graph(
        [onnx.parser.parse_node(line) for line in ("h = Neg(x)", *nodes.splitlines(), f"y = Neg({output})")],
        "case",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 5))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(number), name) for name, number in NUMBERS.items()],
    )
    return ir.from_proto(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("nodes", GELUS.values(), ids=GELUS)
def test_what_is_written_out_becomes_one_operator(nodes: str) -> None:
    """With what it gives."""
    model = graph_of(nodes, "g")
    gather_gelus(model, ())
    assert operators(model) == ["Neg", "Gelu", "Neg"]
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], -F.gelu(-torch.from_numpy(x)).numpy(), atol=1e-6)


@pytest.mark.parametrize("nodes", OTHERS.values(), ids=OTHERS)
def test_what_is_like_it_stays(nodes: str) -> None:
    model = graph_of(nodes, "g2" if "g2" in nodes else "g")
    before = operators(model)
    gather_gelus(model, ())
    assert operators(model) == before


def test_what_is_an_output_stays() -> None:
    """Of the graph: its result, or what is on the way to it."""
    for output in ("g", "e", "d"):
        model = graph_of(GELUS["half last"], "g")
        values = {value.name: value for node in model.graph for value in node.outputs}
        model.graph.outputs.append(values[output])
        before = operators(model)
        gather_gelus(model, ())
        assert operators(model) == before

"""Whole classifiers: the gradient of a logit by every attention layer is as near to float64 as autograd in float32."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.eager import Logits
from export.explain.check import Derivative, check_gradients
from export.explain.differentiate import differentiate
from export.graph.attention import find
from export.graph.places import Places
from export.names import LOGITS
from export.trace import simplify, trace
from saccade.errors import BundleError
from tests.conftest import tiny_recipe
from tests.export.conftest import lively_net
from tests.export.explain import more_families
from tests.export.explain.autograd import gradients, matching

OURS = ("tiny-vit", "tiny-vit-mean", "tiny-cct", "tiny-hybrid")
FAMILIES = (
    "DeiT, distilled", "BEiT", "DINOv2 with registers", "Swin", "MobileViT", "PVT", "SegFormer", "LeViT", "SigLIP",
)  # fmt: skip


class Weighing(nn.Module):
    """One of our nets as it is exported: with the softmax weights, not by the fused kernel."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.net.explain(pixel_values).logits


class Differentiated(NamedTuple):
    model: ir.Model
    logits: ir.Value
    seed: ir.Value
    gradients: dict[ir.Value, ir.Value]


def seeded(model: ir.Model, classes: int) -> tuple[ir.Value, ir.Value]:
    """(the logits, an input for their gradient)."""
    seed = ir.Value(name="seed", shape=ir.Shape(["k", "batch", classes]), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(seed)
    return model.graph.outputs[0], seed


def classifier(name: str) -> nn.Module:
    """Made anew: some keep what they have computed once, in its type."""
    return Weighing(lively_net(name)) if name in OURS else Logits(more_families.model(name)).eval()


@cache
def _traced(name: str) -> bytes:
    model = trace(classifier(name), size_of(name), [LOGITS])
    simplify(model)
    return ir.to_proto(model).SerializeToString()


def traced(name: str) -> ir.Model:
    """The graph of a classifier, to be changed."""
    return ir.from_proto(onnx.load_from_string(_traced(name)))


def size_of(name: str) -> tuple[int, int]:
    return tiny_recipe(name).size if name in OURS else more_families.size(name)


@cache
def made(name: str) -> tuple[nn.Module, tuple[int, int], Differentiated]:
    """(the module, the size of its pictures, its graph with the gradients by all attention as outputs)."""
    ours, module, size = name in OURS, classifier(name), size_of(name)
    model = traced(name)
    found = find(model, Places(model, size).follow_all(model))
    logits, seed = seeded(model, 10 if ours else 5)
    result = differentiate(model, {logits: seed}, [one.weights for one in found])
    for value in (*result, *result.values()):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), None
        model.graph.outputs.append(value)
    return module, size, Differentiated(model, logits, seed, result)


@pytest.mark.parametrize("name", [*OURS, *FAMILIES])
def test_gradients_are_as_near_to_float64_as_those_of_autograd(name: str) -> None:
    """In ONNX Runtime, for one picture and several, one logit and three: within 1e-5, or 5 times float32 autograd."""
    _, size, (model, _, _, result) = made(name)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    single, precise = classifier(name), classifier(name).double()
    assert len(result) >= 2
    for batch, k in ((1, 1), (2, 3), (5, 1)):
        generator = torch.Generator().manual_seed(batch)
        pixels = torch.randn(batch, 3, *size, generator=generator)
        seed = torch.randn(k, batch, 10 if name in OURS else 5, generator=generator)
        names = [value.name for value in (*result, *result.values())]
        found = session.run(names, {model.graph.inputs[0].name: pixels.numpy(), "seed": seed.numpy()})
        weights, by_graph = found[: len(result)], found[len(result) :]
        seen, reference = gradients(precise, pixels.double(), seed.double())
        _, rough = gradients(single, pixels, seed)
        for index, one in zip(matching(weights, seen), by_graph, strict=True):
            right = reference[index].reshape(one.shape).numpy()
            size_of = np.abs(right).max()
            of_autograd = np.abs(rough[index].reshape(one.shape).numpy() - right).max() / size_of
            assert np.abs(one - right).max() / size_of < max(1e-5, 5 * of_autograd)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-cct", "tiny-hybrid", "Swin"])
def test_finite_differences_agree_and_need_no_framework(name: str) -> None:
    _, _, (model, logits, seed, result) = made(name)
    assert check_gradients(model, [Derivative(logits, seed, result)]) < 1e-6
    assert check_gradients(model, [Derivative(logits, seed, result)], seed=1) < 1e-6


def test_a_wrong_gradient_is_found_and_named() -> None:
    """By a hundred thousandth, in one layer of three."""
    _, _, (model, logits, seed, result) = made("tiny-vit")
    first, *rest = result
    wrong = ir.node("Mul", [result[first], ir.Value(name="factor", const_value=ir.tensor(np.float32(1.00001)))])
    model.graph.append(wrong)
    derivative = Derivative(logits, seed, {first: wrong.outputs[0], **{one: result[one] for one in rest}})
    try:
        with pytest.raises(
            BundleError, match=f"by {first.name!r} of Softmax .* is off by 1[.0-9]*e-05 of finite differences"
        ):
            check_gradients(model, [derivative])
    finally:
        model.graph.remove(wrong)


def test_nothing_is_computed_before_the_first_attention_nor_for_weights() -> None:
    """The graph grows by what lies behind the first attention only, and by no copy of a weight."""
    module, _, (model, _, seed, result) = made("tiny-vit")
    weights = {value.name for value in model.graph.initializers.values() if value.const_value.size > 64}
    assert weights <= {name for name, _ in module.named_parameters()}
    first = next(iter(result)).producer()
    assert first is not None
    backward = {node for node in model.graph if _hangs_on(node, {seed})}
    queries = set(first.inputs)
    assert not any(value in queries for node in backward for value in node.inputs)


def _hangs_on(node: ir.Node, values: set[ir.Value]) -> bool:
    if any(value in values for value in node.inputs):
        values |= set(node.outputs)
        return True
    return False


def attending(nodes: str, constants: dict[str, Any] | None = None, attention: str = "a = Softmax(x)") -> ir.Model:
    """A graph whose attention is `a`, and whose nodes make `y` of it."""
    lines = [*attention.splitlines(), *nodes.splitlines()]
    graph = helper.make_graph(
        [onnx.parser.parse_node(line) for line in lines],
        "attending",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    for index, node in enumerate(graph.node):
        node.name = f"node_{index}"
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def attention_of(model: ir.Model) -> ir.Value:
    return next(value for node in model.graph for value in node.outputs if value.name == "a")


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "an operator without a rule": (
        "t = Tanh(a)\ny = Atan(t)", {},
        "no gradient is known for Atan 'node_2', node 2 of 2 on the way from 'a' of Softmax 'node_0' to 'y'",
    ),
    "an operator of another domain": ("y = com.microsoft.Gelu(a)", {}, "no gradient is known for com.microsoft::Gelu"),
    "logits that hang on no attention": ("y = Tanh(x)", {}, "'y' does not hang on 'a' of Softmax 'node_0'"),
    "a choice by the largest": (
        "m = ArgMax<axis: int = 2>(a)\ny = Cast<to: int = 1>(m)", {}, "'y' does not hang on 'a' of Softmax 'node_0'",
    ),
    "places that hang on the picture": (
        "i = ArgMax<axis: int = 0, keepdims: int = 0>(a)\ny = Gather<axis: int = 1>(a, i)", {},
        "the places that Gather 'node_2' takes hang on the picture: no gradient is known; it is node 1 of 1 on the way",
    ),
    "a mirror": (
        'y = Pad<mode: string = "reflect">(a, p)', {"p": np.array([0, 0, 1, 0, 0, 1])},
        "the gradient of Pad 'node_1' is known for constants around, not for reflect; it is node 1 of 1",
    ),
    "a transposed convolution that finds its own pads": (
        'u = Transpose<perm: ints = [0, 2, 1]>(a)\ny = ConvTranspose<auto_pad: string = "SAME_UPPER">(u, w)',
        {"w": np.ones((4, 2, 2), np.float32)}, "ConvTranspose 'node_2' pads by itself (auto_pad, output_shape)",
    ),
    "an exponent that attention decides": ("y = Pow(x, a)", {}, "input 1 of Pow 'node_1' hangs on attention"),
    "statistics of the batch": (
        "u = Transpose<perm: ints = [0, 2, 1]>(a)\ny, m, v = BatchNormalization<training_mode: int = 1>(u, o, o, o, o)",
        {"o": np.ones(4, np.float32)}, "BatchNormalization 'node_2' is in training mode",
    ),
    "dropout that stays on": (
        "y = Dropout(a, r, t)", {"r": np.float32(0.5), "t": np.array(True)}, "Dropout 'node_1' is in training mode",
    ),
    "a sum within a product": (
        'y = Einsum<equation: string = "bij->bi">(a)', {},
        "Einsum 'node_1': the gradient of input 0 of bij->bi is not known; it is node 1 of 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_one_sentence(what: str) -> None:
    nodes, constants, sentence = REFUSED[what]
    model = attending(nodes, constants)
    model.opset_imports["com.microsoft"] = 1
    seed = ir.Value(name="seed", shape=ir.Shape(["k", None, None]), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(seed)
    with pytest.raises(BundleError) as error:
        differentiate(model, {model.graph.outputs[0]: seed}, [attention_of(model)])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_graph_without_attention_is_refused() -> None:
    model = attending("y = Tanh(a)")
    with pytest.raises(BundleError, match="the graph has no attention"):
        differentiate(model, {model.graph.outputs[0]: model.graph.inputs[0]}, [])


def test_branches_on_the_way_are_refused() -> None:
    """Also where they take attention from around them, and not as an input."""
    model = attending("y = Tanh(a)")
    branches = {}
    for name in ("then_branch", "else_branch"):
        branches[name] = ir.Graph([], [], nodes=[ir.node("Exp", [attention_of(model)], name=name)], name=name)
        branches[name].outputs.append(branches[name][0].outputs[0])
    condition = ir.node("Constant", [], {"value": ir.tensor(np.array(True))})
    choice = ir.node("If", [condition.outputs[0]], branches, name="choice")
    model.graph.extend([condition, choice])
    seed = ir.Value(name="seed", shape=ir.Shape(["k", None, 3, 4]), type=ir.TensorType(ir.DataType.FLOAT))
    with pytest.raises(BundleError, match="no gradient is taken through branches and loops: If 'choice', node 1 of 1"):
        differentiate(model, {choice.outputs[0]: seed}, [attention_of(model)])


@pytest.mark.parametrize(("nodes", "sentence"), [
    ("d = Sub(a, quarter)\nm = Abs(d)\ns = Add(m, a)", "could not be checked: 12 of 12 directions lead over a kink"),
    ("m = Mul(a, zero)\ns = Mul(m, m)", "all gradients of y are 0"),
])  # fmt: skip
def test_a_check_that_shows_nothing_does_not_pass(nodes: str, sentence: str) -> None:
    """Where the very place is a kink in every direction, or nothing changes anything."""
    constants = {"zero": np.float32(0), "quarter": np.float32(0.25), "two": np.array([2])}
    model = attending(
        f"{nodes}\ny = ReduceSum<keepdims: int = 0>(s, two)", constants, "z = Mul(x, zero)\na = Softmax(z)"
    )
    logits, seed = seeded(model, 3)
    gradients = differentiate(model, {logits: seed}, [attention_of(model)])
    with pytest.raises(BundleError, match=sentence):
        check_gradients(model, [Derivative(logits, seed, gradients)])

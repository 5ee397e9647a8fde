"""relevance.onnx of variants: gradients straight through 8 bits and in float32 beside half precision, at the price of
the backward pass alone.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from export.explain.build import check_made
from export.explain.differentiate import differentiate
from export.explain.relevance import Classifier, add_relevance
from export.quantize.float_graph import weighted_nodes
from export.quantize.int8 import calibrated_values, to_int8
from export.quantize.ranges import Step, measured_steps
from export.runtime import open_graph, open_relevance
from saccade.bundle import Bundle, open_bundle
from saccade.preprocess import normalize
from tests.conftest import NETS, ROOT

INTEGERS = ("QLinearConv", "QLinearAdd", "QLinearMatMul", "QLinearGlobalAveragePool", "MatMulIntegerToFloat", "QGemm")
"""What ONNX Runtime makes of a node between roundings."""


def test_a_variant_has_the_maps_that_its_parent_has(variant: Bundle, parent: Bundle) -> None:
    """They are held to the variant's own graph in float64, and by rank to the parent's."""
    ours, parity, card = variant.manifest.maps.gradients, variant.manifest.parity, variant.manifest.card.variant
    assert ours is not None
    assert ours == parent.manifest.maps.gradients
    assert parity is not None
    assert card is not None
    for name in ours.names:
        assert parity.checks[f"{name}, of its maximum"].allowed <= 0.2
        assert parity.checks[f"rank correlation with the parent's {name}, short of 1"].largest <= 0.05
        assert card.maps[name] >= 0.95


def test_the_top_class_of_golden_maps_has_a_name(variant: Bundle) -> None:
    """-1 might be another class on another machine, where two logits are as near as roundings move them."""
    with np.load(variant.golden) as file:
        assert (file["class_index"] >= 0).all()
        np.testing.assert_array_equal(file["class_index"][:, 0], file["logits"].argmax(1))


def operators(graph: Path, folder: Path) -> Counter[str]:
    """Those of integers in the graph as ONNX Runtime runs it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / f"{graph.stem}.optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
    return Counter(node.op_type for node in nodes if node.op_type in INTEGERS)


@pytest.mark.parametrize("name", NETS)
def test_the_backward_pass_costs_no_integer_its_speed(variants: Path, tmp_path: Path, name: str) -> None:
    """Whatever it reads: as many operators of integers as in model.onnx, and the same answers."""
    bundle = open_bundle(variants / f"{name}-int8" / "1")
    plain, explained = (operators(graph, tmp_path) for graph in (bundle.graph, bundle.relevance))
    assert sum(plain.values()) > 0
    assert explained == plain
    with np.load(bundle.golden) as file:
        pixels = normalize(file["pictures"], bundle.manifest.preprocessing)
    seen = open_relevance(bundle.relevance)(pixels, np.full((len(pixels), 1), -1))
    for output, values in open_graph(bundle.graph)(pixels).items():
        np.testing.assert_allclose(seen[output], values, atol=1e-6)


def test_nor_does_what_is_read_of_a_sum_between_two_blocks(tmp_path: Path) -> None:
    """LeGrad asks the classifier there: in the shipped variant that sum is one of integers, and it stays so."""
    bundle = open_bundle(ROOT / "models" / "cifar10-hybrid-s-int8" / "1")
    model = ir.load(bundle.graph)
    assert "legrad" in add_relevance(model, Classifier.of(model, bundle.manifest)).maps.names
    for file in (bundle.graph, bundle.weights):
        shutil.copyfile(file, tmp_path / file.name)
    ir.save(model, tmp_path / "relevance.onnx")
    assert operators(tmp_path / "relevance.onnx", tmp_path) == operators(tmp_path / "model.onnx", tmp_path)


SIZE = 6
NODES = """\
    q = Conv<pads: ints = [1, 1, 1, 1]>(pixel_values, first, first_bias)
    r = Relu(q)
    f = Reshape(r, flat)
    t = Transpose<perm: ints = [0, 2, 1]>(f)
    s = MatMul(t, f)
    a = Softmax(s)
    v = MatMul(a, t)
    m = MatMul(v, linear)
    e = Add(m, linear_bias)
    b = Transpose<perm: ints = [0, 2, 1]>(e)
    p = Reshape(b, picture)
    c = Conv<pads: ints = [1, 1, 1, 1]>(p, second, second_bias)
    d = Relu(c)
    u = Add(d, p)
    z = ReduceMean<keepdims: int = 0>(u, axes)
    logits = MatMul(z, head)"""


def arrays() -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(2)
    shapes = {
        "first": (16, 3, 3, 3), "first_bias": (16,), "linear": (16, 16), "linear_bias": (16,),
        "second": (16, 16, 3, 3), "second_bias": (16,), "head": (16, 5),
    }  # fmt: skip
    return {name: (generator.standard_normal(shape) / 4).astype(np.float32) for name, shape in shapes.items()}


def float_model() -> ir.Model:
    """A convolution, attention over its pixels, a linear layer, another convolution and a sum; five classes."""
    numbers = {
        **arrays(), "flat": np.array([0, 16, -1]), "picture": np.array([0, 16, SIZE, SIZE]), "axes": np.array([2, 3])
    }  # fmt: skip
    body = helper.make_graph(
        [onnx.parser.parse_node(line.strip()) for line in NODES.splitlines()],
        "net",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(values, name) for name, values in numbers.items()],
    )
    return ir.from_proto(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def straight(value: Tensor, step: Step) -> Tensor:
    """To 8 bits, the gradient as if nothing had been rounded."""
    scale, zero = float(step.scale), int(step.zero)
    codes = (torch.round(value / scale) + zero).clamp(0, 255)
    return value + ((codes - zero) * scale - value).detach()


def small(weight: NDArray[np.float32], channels: int) -> Tensor:
    """In 7 bits, one scale a channel."""
    others = tuple(axis for axis in range(weight.ndim) if axis != channels)
    scale = (np.abs(weight.astype(np.float64)).max(others, keepdims=True) / 63).astype(np.float32).astype(np.float64)
    return torch.from_numpy(np.rint(weight / scale) * scale)


def by_autograd(
    pixels: NDArray[np.float32], steps: dict[str, Step], seed: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(logits, the gradients by attention (k, n, tokens, tokens)) of the same net, fake-quantised, in float64."""
    held = {name: torch.from_numpy(values).double() for name, values in arrays().items()}

    def convolved(value: Tensor, name: str, given: str) -> Tensor:
        """With a bias in whole steps of the sums."""
        weight = small(arrays()[name], 0)
        scale = weight.flatten(1).abs().amax(1) / 63 * float(steps[given].scale)
        bias = torch.round(held[f"{name}_bias"] / scale) * scale
        return F.conv2d(straight(value, steps[given]), weight, bias, padding=1)

    tokens = straight(convolved(torch.from_numpy(pixels).double(), "first", "pixel_values").relu(), steps["r"])
    tokens = tokens.flatten(2).transpose(1, 2)
    attention = (tokens @ tokens.transpose(1, 2)).softmax(-1).requires_grad_()
    mixed = straight(attention @ tokens, steps["v"]) @ small(arrays()["linear"], 1) + held["linear_bias"]
    picture = straight(mixed.transpose(1, 2).reshape(-1, 16, SIZE, SIZE), steps["p"])
    convolved_again = convolved(picture, "second", "p").relu()
    rounded = straight(convolved_again, steps["d"])
    rounded = torch.where(rounded > 0, rounded, 0)  # what rounds to 0 is not let through
    logits = (rounded + picture).mean((2, 3)) @ held["head"]
    rows = [torch.autograd.grad(logits, attention, torch.from_numpy(one), retain_graph=True)[0] for one in seed]
    return logits.detach().numpy(), torch.stack(rows).numpy()


def test_gradients_through_8_bits_are_those_of_a_net_with_straight_through_rounding() -> None:
    """Convolutions with ReLU, a linear layer and a sum, in PyTorch's autograd and float64; by ONNX Runtime to 1e-5."""
    model, pixels = float_model(), np.random.default_rng(5).standard_normal((4, 3, SIZE, SIZE)).astype(np.float32)
    steps = measured_steps(model, calibrated_values(weighted_nodes(model)), [pixels])
    to_int8(model, steps)
    assert Counter(node.op_type for node in model.graph)["QuantizeLinear"] == 5
    attention = next(value for node in model.graph for value in node.outputs if value.name == "a")
    given = ir.Value(name="seed", shape=ir.Shape(["k", "batch", 5]), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(given)
    gradient = differentiate(model, {model.graph.outputs[0]: given}, [attention])[attention]
    gradient.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(gradient)
    seed = np.random.default_rng(6).standard_normal((3, 4, 5))
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    logits, seen = session.run(None, {"pixel_values": pixels, "seed": seed.astype(np.float32)})
    answers, expected = by_autograd(pixels, steps, seed)
    np.testing.assert_allclose(logits, answers, atol=1e-5 * np.abs(answers).max())
    np.testing.assert_allclose(seen, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", [one for one in NETS if one != "tiny-convmixer"])
def test_maps_beside_half_precision_are_the_parents_but_for_its_rounding(variants: Path, name: str) -> None:
    """To a hundredth of the map's greatest value, for every class: nothing of a small gradient is lost."""
    variant, parent = (open_bundle(variants / one / "1") for one in (f"{name}-float16", name))
    with np.load(parent.golden) as file:
        pixels = normalize(file["pictures"], parent.manifest.preprocessing)
    classes = np.tile(np.arange(10), (len(pixels), 1))
    ours, theirs = (open_relevance(bundle.relevance)(pixels, classes) for bundle in (variant, parent))
    assert parent.manifest.maps.gradients is not None
    for output in parent.manifest.maps.gradients.names:
        assert np.abs(ours[output] - theirs[output]).max() <= 0.01 * np.abs(theirs[output]).max(), output


@pytest.mark.parametrize("name", ["tiny-cct-int8", "tiny-vit-float16"])
def test_it_is_what_is_made_of_the_graph_again(variants: Path, name: str) -> None:
    """To the byte: so a file that was changed is told from one that was not."""
    check_made(open_bundle(variants / name / "1"))


def test_another_process_makes_the_same_bytes(variants: Path) -> None:
    """Whatever the order that its sets have."""
    script = "import sys; from pathlib import Path; from saccade.bundle import open_bundle; "
    script += "from export.explain.build import check_made; check_made(open_bundle(Path(sys.argv[1])))"
    words, environment = [sys.executable, "-c", script], {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([*words, str(variants / "tiny-hybrid-int8" / "1")], cwd=ROOT, env=environment, check=True)

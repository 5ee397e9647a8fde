"""Every rule gives the gradient that PyTorch's autograd gives in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from export.explain.differentiate import differentiate
from export.explain.float64 import Float64
from export.explain.gradients import RULES
from tests.export.explain.cases import CASES, Case


def model_of(case: Case) -> ir.Model:
    """With a seed as an input beside its own."""
    body = helper.make_graph(
        [onnx.parser.parse_node(line) for line in case.nodes.splitlines()],
        "case",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in case.inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in case.constants.items()],
    )
    model = ir.from_proto(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    rank = case.function(*(torch.zeros([2 if one == "n" else one for one in shape]).double()
                           for shape in case.inputs.values())).ndim  # fmt: skip
    seed = ir.Value(name="seed", shape=ir.Shape(["k", *[None] * rank]), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(seed)
    return model


def arrays_of(case: Case, batch: int) -> dict[str, NDArray[np.float64]]:
    generator = np.random.default_rng(batch)
    shapes = {name: [batch if one == "n" else one for one in shape] for name, shape in case.inputs.items()}
    arrays = {name: np.asarray(generator.standard_normal(shape)) for name, shape in shapes.items()}
    return {name: np.abs(array) + 0.5 if case.positive else array for name, array in arrays.items()}


def expected(case: Case, arrays: dict[str, NDArray[np.float64]], seed: NDArray[np.float64]) -> list[Any]:
    """Of each input (k, *its shape), by autograd."""
    inputs = [torch.from_numpy(array).requires_grad_() for array in arrays.values()]
    result = case.function(*inputs)
    rows = [
        torch.autograd.grad(result, inputs, torch.from_numpy(one), retain_graph=True, allow_unused=True) for one in seed
    ]
    return [
        None if parts[0] is None else np.stack([part.numpy() for part in parts]) for parts in zip(*rows, strict=True)
    ]


@pytest.mark.parametrize("name", CASES)
def test_each_rule_gives_the_gradient_of_autograd(name: str) -> None:
    """For one picture and several, one logit and three, in float64 by onnx and in float32 by ONNX Runtime."""
    case = CASES[name]
    model = model_of(case)
    wanted = [value for value in model.graph.inputs if value.name in case.inputs and _reaches(case, value.name)]
    gradients = differentiate(model, {model.graph.outputs[0]: model.graph.inputs[-1]}, wanted)
    for gradient in gradients.values():
        gradient.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(gradient)
    proto = ir.to_proto(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    exact = Float64(model)
    for batch in (1, 2, 5):
        for k in (1, 3):
            arrays = arrays_of(case, batch)
            shape = case.function(*map(torch.from_numpy, arrays.values())).shape
            seed = np.random.default_rng(100 + k).standard_normal((k, *shape))
            given = {value: {**arrays, "seed": seed}[value.name or ""] for value in model.graph.inputs}
            found = exact.run(given, list(gradients.values()))
            fed = {name: array.astype(np.float32) for name, array in {**arrays, "seed": seed}.items()}
            rough = session.run([value.name for value in gradients.values()], fed)
            by_name = dict(zip(arrays, expected(case, arrays, seed), strict=True))
            for (value, gradient), single in zip(gradients.items(), rough, strict=True):
                reference = by_name[value.name or ""]
                assert found[gradient].shape == reference.shape
                size = np.abs(reference).max() + 1e-12
                assert np.abs(found[gradient] - reference).max() < 2e-7 * size  # constants are float32
                assert np.abs(single - reference).max() < 1e-4 * size


def _reaches(case: Case, name: str | None) -> bool:
    """Whether autograd has a gradient by it."""
    arrays = arrays_of(case, 2)
    seed = np.ones((1, *case.function(*map(torch.from_numpy, arrays.values())).shape))
    return dict(zip(arrays, expected(case, arrays, seed), strict=True))[name or ""] is not None


def test_no_rule_is_untried() -> None:
    tried = {node.op_type for case in CASES.values() for node in model_of(case).graph}
    assert set(RULES) <= tried


@pytest.mark.parametrize(
    ("bounds", "function"),
    [((0.0, 6.0), F.relu6), ((0.0, 1.0), lambda x: x.clamp(0, 1)), ((-1.0, 6.0), lambda x: x.clamp(-1, 6))],
)
def test_at_a_bound_a_clip_does_as_pytorch(
    bounds: tuple[float, float], function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """ReLU6 lets no gradient through at 0 and at 6, where numbers that were rounded often lie; clamp does."""
    numbers = np.array([[-1.5, -1.0, 0.0, 0.5, 1.0, 6.0, 7.0]])
    case = Case("y = Clip(x, l, u)", {"x": ("n", 7)}, function, dict(zip("lu", np.float32(bounds), strict=True)))
    model = model_of(case)
    (x, *_, seed) = model.graph.inputs
    (gradient,) = differentiate(model, {model.graph.outputs[0]: seed}, [x]).values()
    found = Float64(model).run({x: numbers, seed: np.ones((1, 1, 7))}, [gradient])[gradient]
    given = torch.tensor(numbers, requires_grad=True)
    function(given).sum().backward()
    assert given.grad is not None
    np.testing.assert_array_equal(found[0], given.grad.numpy())

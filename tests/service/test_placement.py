"""A model asked onto a device runs there, and shapes alone are left to the CPU."""

import onnx
import onnxruntime
import pytest
from onnx import parser

from service.placement import RECORD, strayed


def on_the_cpu(text: str) -> onnxruntime.InferenceSession:
    """Of a provider that takes no operator, so that all of them are left to the CPU."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, value in RECORD.items():
        options.add_session_config_entry(name, value)
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["AzureExecutionProvider"])


OF_SHAPES = """graph (float[N, 2, 3] x, int64[N, K] index) => (float[N, 6] y) {
    whole = Shape (x)
    first = Constant <value = int64[1] {0}> ()
    batch = Gather (whole, first)
    rest = Constant <value = int64[1] {6}> ()
    wanted = Concat <axis = 0> (batch, rest)
    y = Reshape (x, wanted)
}"""


SCALED = """graph (float[N, 2, 16] x) => (float[N, 2, 16] y) {
    whole = Shape (x)
    last = Constant <value = int64[1] {-1}> ()
    end = Constant <value = int64[1] {9223372036854775807}> ()
    width = Slice (whole, last, end)
    number = Cast <to = 1> (width)
    root = Sqrt (number)
    one = Constant <value = float[1] {1.0}> ()
    scale = Div (one, root)
    half = Sqrt (scale)
    y = Mul (x, half)
}"""
"""As torch.onnx.export(dynamo=False) writes it."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OF_SHAPES, []),
        (SCALED, []),
        (OF_SHAPES.replace("y = Reshape (x", "z = Relu (x)\n    y = Reshape (z"), ["Relu"]),
        (
            """graph (float[N, 4] x, bool on) => (float[N, 4] y) {
                a = Sigmoid (x)
                b = Sigmoid (a)
                y = If (on) <
                    then_branch = then () => (float[N, 4] one) { one = Softmax (b) },
                    else_branch = other () => (float[N, 4] two) { two = Identity (b) }
                >
            }""",
            ["Sigmoid", "Softmax"],
        ),
    ],
    ids=["shapes", "the scale of attention", "one operator", "a branch"],
)
def test_what_runs_on_the_cpu_is_named_unless_it_works_out_shapes(text: str, expected: list[str]) -> None:
    """The most frequent first; what is in a branch counts, and a graph that asks how long its batch is, is fine."""
    assert sorted(strayed(on_the_cpu(text))) == sorted(expected)
    assert strayed(on_the_cpu(text))[:1] == expected[:1]

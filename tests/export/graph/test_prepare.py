"""Where the logits of a graph are, and which branch it takes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from saccade.errors import DataError
from tests.export.graph import models
from tests.export.graph.conftest import Case, answers, exposed, noise, write


class Ends(models.Convolutions):
    """A CNN whose head is a convolution, as SqueezeNet's is: its logits are (batch, labels, 1, 1)."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.end, self.head = end, nn.Conv2d(models.WIDTH, models.CLASSES, 1)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.deep(self.stem(x))).mean((2, 3), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        x = self.logits(x)
        ends: dict[str, Callable[[], Tensor]] = {
            "softmax, flatten": lambda: x.softmax(1).flatten(1),
            "nothing": lambda: x,
            "tokens": lambda: x.reshape(-1, 1, models.CLASSES).softmax(-1).squeeze(1),
            "over pictures": lambda: x.flatten(1).softmax(0),
            "over columns": lambda: x.softmax(3).flatten(1),
        }
        return ends[self.end]()


@pytest.mark.parametrize("end", ["softmax, flatten", "nothing", "tokens"])
@pytest.mark.parametrize(("how", "opset"), [("script", 18), ("script", 11), ("fixed", 18)])
def test_logits_with_axes_of_one_are_made_flat(tmp_path: Path, end: str, how: str, opset: int) -> None:
    """(batch, labels, 1, 1), (batch, 1, labels): before a softmax or without one, they are the eager logits."""
    net = models.lively(Ends(end))
    model, found = exposed(write(net, net.size, tmp_path / "ends.onnx", how, opset), net.size)
    pixels = noise(2, net.size)
    with torch.inference_mode():
        logits = net.logits(torch.from_numpy(pixels)).flatten(1).numpy()
    assert found.classes == models.CLASSES
    np.testing.assert_allclose(answers(model, pixels)["logits"], logits, atol=1e-4)


@pytest.mark.parametrize(("end", "axis"), [("over pictures", "0"), ("over columns", "3")])
def test_a_softmax_over_anything_but_the_labels_is_refused(tmp_path: Path, end: str, axis: str) -> None:
    """Over the batch it makes scores of pictures beside each other: no classifier's."""
    net = models.lively(Ends(end))
    path = write(net, net.size, tmp_path / "ends.onnx", "script")
    with pytest.raises(
        DataError, match=rf"softmax at the end sums over axis {axis} of \(batch, 5.*, which is not that"
    ):
        exposed(path, net.size)


def test_an_old_softmax_over_the_whole_batch_is_refused(tmp_path: Path) -> None:
    """Before opset 13 it sums over all axes from its own on."""
    net = models.lively(Ends("softmax, flatten"))
    proto = onnx.load(write(net, net.size, tmp_path / "ends.onnx", "script", 11))
    (softmax,) = [node for node in proto.graph.node if node.op_type == "Softmax"]
    softmax.attribute[0].i = 0
    onnx.save(proto, tmp_path / "whole.onnx")
    with pytest.raises(DataError, match="sums over axis 0, 1, 2, 3 of"):
        exposed(tmp_path / "whole.onnx", net.size)


def forked(path: Path, to: Path, *condition: onnx.NodeProto, other_first: bool = False) -> Path:
    """The graph with its first norm in a branch of an If; the other branch, under the same names, is a mistake."""
    proto = onnx.load(path)
    (norm, *_) = [node for node in proto.graph.node if node.op_type == "LayerNormalization"]
    one = numpy_helper.from_array(np.float32(1), "one")
    result = [helper.make_tensor_value_info("taken", TensorProto.FLOAT, None)]
    normed = onnx.NodeProto()
    normed.CopyFrom(norm)
    normed.output[0] = "normed"
    scaled = helper.make_node("Mul", ["normed", "one"], ["taken"], name="scale")
    wrong = helper.make_node("Mul", [norm.input[0], "one"], ["taken"], name="scale")
    branches = [helper.make_graph([normed, scaled], "right", [], result, [one]),
                helper.make_graph([wrong], "wrong", [], result, [one])]  # fmt: skip
    if other_first:
        branches.reverse()
    fork = helper.make_node("If", ["which"], norm.output, name="fork", then_branch=branches[0], else_branch=branches[1])
    nodes = list(proto.graph.node)
    at = nodes.index(norm)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes[:at], *condition, fork, *nodes[at + 1 :]])
    proto.graph.initializer.extend(
        [numpy_helper.from_array(np.array([length]), f"of_{length}") for length in (1, 32)]
        + [numpy_helper.from_array(np.float32(2), "one")]
    )
    onnx.save(proto, to)
    return to


def shape_is(axis: int, length: int) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Shape", ["x"], ["length"], start=axis, end=axis + 1),
        helper.make_node("Equal", ["length", f"of_{length}"], ["which"]),
    ]


CONDITIONS = {
    "a constant": [helper.make_node("Constant", [], ["which"], value=numpy_helper.from_array(np.array(True)))],
    "the height": shape_is(2, 32),
}


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("how", ["script", "fixed"])
def test_a_branch_that_is_always_taken_stands_in_its_place(
    case: Callable[[str, str], Case], tmp_path: Path, condition: str, how: str
) -> None:
    """With the values of the graph around it and its own constants, though their names are taken: as the eager net."""
    net, path = case("BertVit", how)
    model, found = exposed(forked(path, tmp_path / "forked.onnx", *CONDITIONS[condition]), net.size)
    pixels = noise(2, net.size)
    seen = answers(model, pixels)
    with torch.inference_mode():
        logits = net(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(seen["logits"], logits, atol=1e-4)
    assert len(found.layers) == 2
    np.testing.assert_allclose(seen["attention_01"], net.seen[1].numpy(), atol=1e-5)
    assert found.maps.rollout == "rollout"


def test_the_else_branch_is_taken_as_well(case: Callable[[str, str], Case], tmp_path: Path) -> None:
    """Where the condition is never true."""
    net, path = case("BertVit", "script")
    path = forked(path, tmp_path / "forked.onnx", *shape_is(3, 32), other_first=True)
    pixels = noise(2, net.size)
    with torch.inference_mode():
        logits = net(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(answers(exposed(path, net.size)[0], pixels)["logits"], logits, atol=1e-4)


def test_a_branch_that_hangs_on_the_number_of_pictures_is_refused(
    case: Callable[[str, str], Case], tmp_path: Path
) -> None:
    """An answer must not depend on how many were asked for: neither branch stands for both."""
    net, path = case("BertVit", "script")
    with pytest.raises(DataError, match="If 'fork' could not be followed: it is a branch or a loop that depends"):
        exposed(forked(path, tmp_path / "forked.onnx", *shape_is(0, 1)), net.size)

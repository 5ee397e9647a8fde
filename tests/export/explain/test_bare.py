"""`saccade relevance FILE.onnx`: anybody's classifier gets maps of the gradient, or one sentence says why not."""

import pickle
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from saccade.cli import main
from tests.export.graph import models
from tests.export.graph.conftest import hide, noise, write

Arrays = dict[str, NDArray[np.float32]]
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-token ViT of 32 x 48."""
    net = models.lively(models.Vit())
    return write(net, net.size, tmp_path_factory.mktemp("given") / "vit.onnx", "script")


@pytest.fixture(scope="module")
def plain(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ViT explained."""
    out = tmp_path_factory.mktemp("explained") / "vit.onnx"
    explain(file, "--out", str(out))
    return out


def explain(path: Path, *words: str) -> Path:
    """The command's file, by default beside the other."""
    assert main(["relevance", str(path), *words]) == 0
    return path.with_name(f"{path.stem}-relevance.onnx")


def answer(path: Path, pixels: NDArray[np.float32], classes: NDArray[np.int64] | None = None) -> Arrays:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    given = {session.get_inputs()[0].name: pixels, **({} if classes is None else {"class_index": classes})}
    return dict(zip(names, session.run(None, given), strict=True))


def changed(file: Path, to: Path, change: Change) -> Path:
    proto = onnx.load(file)
    change(proto)
    onnx.save(proto, to)
    return to


CLASS_TOKEN = np.eye(25)[0]
GIVEN = {
    "Vit": ("script", 18, CLASS_TOKEN),
    "PostNormVit": ("script", 18, CLASS_TOKEN),
    "MaskedVit": ("open", 23, CLASS_TOKEN),
    "Registers": ("script", 18, np.r_[0.5, np.zeros(4), np.full(24, 1 / 48)]),
    "MeanOfPatches": ("one", 18, np.r_[0, np.full(24, 1 / 24)]),
    "Swin": ("script", 18, np.full(16, 1 / 16)),
    "SeqPool": ("script", 18, None),
}
"""How it is written, with which opset, and how the head reads the tokens; None: with weights that it works out."""


def by_autograd(
    net: models.Classifier, pixels: NDArray[np.float32], label: int, row: NDArray[np.float64] | None
) -> dict[str, NDArray[np.float64]]:
    """(B, P) each: the published product of matrices in float64, of layers of the last one's shape."""
    logits = net(torch.from_numpy(pixels).double())
    layers = [one for one in net.seen if one.shape == net.seen[-1].shape]
    by = layers if row is not None else [*layers, net.weights]
    gradients = torch.autograd.grad(logits[:, label].sum(), by)
    evidence = [(one * gradient).clamp(min=0).detach().numpy() for one, gradient in zip(by, gradients, strict=True)]
    start = evidence.pop()[..., 0] if row is None else np.broadcast_to(row, (len(pixels), len(row)))
    tokens = start.shape[1]
    whole = np.broadcast_to(np.eye(tokens), (len(pixels), tokens, tokens))
    for one in evidence:
        whole = whole + one.mean(1) @ whole
    relevance = np.einsum("bi,bij->bj", start, whole) - (0 if row is None else start)
    special = getattr(net, "special", 0)
    last = np.einsum("bi,bij->bj", start, evidence[-1].mean(1))
    return {"relevance": relevance[:, special:], "grad_attention": last[:, special:]}


@pytest.mark.parametrize("name", GIVEN)
def test_every_class_has_the_map_of_float64_autograd(name: str, tmp_path: Path) -> None:
    """To 1e-4 of the map's greatest value, and the logits as the net gives them, for one picture and several: pre-norm,
    post-norm with LayerScale, the Attention of opset 23 with a mask, registers, windows before, learned pooling, a file
    for one picture.
    """
    how, opset, row = GIVEN[name]
    net = models.lively(getattr(models, name)())
    path = write(net, net.size, tmp_path / "given.onnx", how, opset)
    explained = explain(path)
    net.double()
    for count in (1, 3):
        pixels = noise(count, net.size)
        seen = answer(explained, pixels, np.tile(np.arange(models.CLASSES), (count, 1)))
        own, *maps = seen
        assert maps == ["relevance", "grad_attention", "legrad"]
        with torch.inference_mode():
            expected = net(torch.from_numpy(pixels).double()).numpy()
        np.testing.assert_allclose(seen[own], expected, atol=1e-4)
        for label in range(models.CLASSES):
            for output, right in by_autograd(net, pixels, label, row).items():
                limit = 1e-4 * np.abs(right).max(1)
                assert (np.abs(seen[output][:, label] - right).max(1) <= limit).all(), (output, label)


def test_a_model_without_attention_gets_grad_cam(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At what is pooled last: its channels, weighed by the mean of their gradient, summed, the positive part."""
    net = models.lively(models.Convolutions())
    explained = explain(write(net, net.size, tmp_path / "given.onnx", "script"))
    printed = capsys.readouterr().out
    assert "maps: grad_cam, of 4 x 6 patches, of '/norm/BatchNormalization_output_0' of BatchNorm" in printed
    assert "not relevance: it gives no attention" in printed
    net.double()
    kept: list[torch.Tensor] = []
    net.norm.register_forward_hook(lambda _, __, result: kept.append(result))
    pixels = noise(2, net.size)
    seen = answer(explained, pixels, np.tile(np.arange(models.CLASSES), (2, 1)))
    logits = net(torch.from_numpy(pixels).double())
    for label in range(models.CLASSES):
        (gradient,) = torch.autograd.grad(logits[:, label].sum(), kept[0], retain_graph=True)
        right = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).clamp(min=0).flatten(1).detach().numpy()
        np.testing.assert_allclose(seen["grad_cam"][:, label], right, atol=1e-4 * right.max())


def test_a_grid_that_is_not_found_can_be_told(file: Path, plain: Path, tmp_path: Path) -> None:
    """Special tokens stand first then; the maps are those that the file gets whose grid is found."""
    pixels, classes = noise(2, (32, 48)), np.array([[3, -1], [-1, 0]])
    expected = answer(plain, pixels, classes)
    own, *maps = seen = answer(explain(hide(file, tmp_path / "hidden.onnx"), "--grid", "4x6"), pixels, classes)
    assert maps == ["relevance", "grad_attention"]
    for name in (own, *maps):
        np.testing.assert_allclose(seen[name], expected[name], atol=1e-6)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "nothing says where its tokens lie on the picture: give its grid"),
        (["--grid", "5x6"], "its 25 tokens are fewer than the 5 x 6 of the grid asked for"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert sentence in refused(hide(file, tmp_path / "hidden.onnx"), tmp_path, capsys, *words)


def test_the_table_says_what_the_maps_are_made_of(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which layers, which grid, which maps not and why, what was checked, where it is."""
    explain(file, "--out", str(tmp_path / "why.onnx"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["attention", "heads", "tokens", "grid", "in", "the", "maps"],
        *(f"/blocks.{layer}/Softmax 2 25 4 x 6 + 1 first yes".split() for layer in range(2)),
    ]
    said = "\n".join(lines)
    assert "logits read the tokens by: class_token, from token 0\n" in said
    assert "maps: relevance, grad_attention, legrad, of 4 x 6 patches\n" in said
    assert "not grad_cam: it is for models without attention\n" in said
    assert "of finite differences in float64\n" in said
    assert "it takes x (batch, 3, 32, 48) and class_index (batch, k)\n" in said
    assert said.endswith(f"written: {tmp_path / 'why.onnx'}, weights within")


ALONE = """
import sys
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("vit-relevance.onnx", providers=["CPUExecutionProvider"])
pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 48), np.float32)
logits, top = session.run(["%s", "relevance"], {"x": pixels, "class_index": np.full((2, 1), -1)})
(named,) = session.run(["relevance"], {"x": pixels, "class_index": logits.argmax(1)[:, None]})
assert top.shape == (2, 1, 24) and top.max() > 0 and (top == named).all()
assert not {"torch", "onnx", "onnx_ir", "export", "saccade", "service"} & {name.split(".")[0] for name in sys.modules}
"""


def test_plain_onnxruntime_is_enough(file: Path, plain: Path, tmp_path: Path) -> None:
    """In a process of its own that knows nothing of this project; -1 is the top class."""
    (tmp_path / "vit-relevance.onnx").write_bytes(plain.read_bytes())
    logits = onnx.load(file).graph.output[0].name
    subprocess.run([sys.executable, "-c", ALONE % logits], cwd=tmp_path, check=True)


def beside(file: Path, to: Path) -> Path:
    """With its weights in a file of their own."""
    onnx.save(onnx.load(file), to, save_as_external_data=True, location=f"{to.name}.weights", size_threshold=0)
    return to


def test_weights_stay_where_they_were(
    file: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the graph as in the source, under a name of its own; the two files go together anywhere."""
    (tmp_path / "from").mkdir()
    path = beside(file, tmp_path / "from/big.onnx")
    explained = explain(path)
    assert "weights in big-relevance.onnx.data beside it" in capsys.readouterr().out
    (tmp_path / "to").mkdir()
    data = explained.with_name(f"{explained.name}.data")
    moved = [one.rename(tmp_path / "to" / one.name) for one in (explained, data)]
    assert moved[1].stat().st_size > 2 * models.WIDTH * 4 * models.WIDTH * 4
    pixels, classes = noise(2, (32, 48)), np.array([[3, -1], [-1, 0]])
    within = answer(plain, pixels, classes)
    for name, values in answer(moved[0], pixels, classes).items():
        np.testing.assert_allclose(values, within[name], atol=1e-6)


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Files may be so large; the limit is the kernel's own."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize(("external", "room"), [(False, 5_000), (True, 5_000), (True, 30_000)])
def test_a_full_disk_leaves_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], external: bool, room: int
) -> None:
    """Neither a part of the graph, nor weights without one."""
    path = beside(file, tmp_path / "given.onnx") if external else tmp_path / "given.onnx"
    if not external:
        path.write_bytes(file.read_bytes())
    before = contents(tmp_path)
    with full_disk(room):
        assert main(["relevance", str(path)]) == 2
    assert "could not write" in capsys.readouterr().err
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {one: one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def test_outputs_of_the_file_stay_and_probabilities_are_looked_through(file: Path, plain: Path, tmp_path: Path) -> None:
    """All under their own names and in their order; the maps are those of the logits before the softmax."""

    def change(proto: onnx.ModelProto) -> None:
        logits = proto.graph.output[0].name
        tokens = next(node for node in proto.graph.node if node.op_type == "LayerNormalization").output[0]
        proto.graph.node.append(helper.make_node("Softmax", [logits], ["scores"], axis=-1))
        named = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("scores", tokens)]
        del proto.graph.output[:]
        proto.graph.output.extend(named)

    path = changed(file, tmp_path / "scores.onnx", change)
    pixels, classes = noise(2, (32, 48)), np.array([[3, -1], [-1, 0]])
    seen, own = answer(explain(path), pixels, classes), answer(path, pixels)
    assert [*seen] == [*own, "relevance", "grad_attention", "legrad"]
    for name, values in own.items():
        np.testing.assert_allclose(seen[name], values, atol=1e-5)
    by_logits = answer(plain, pixels, classes)
    np.testing.assert_allclose(seen["relevance"], by_logits["relevance"], atol=1e-6)


def test_an_output_of_the_file_may_be_what_a_gelu_gives(tmp_path: Path) -> None:
    """Also where that is an operator of its own, as from opset 20 on."""
    net = models.lively(models.Vit())
    path = write(net, net.size, tmp_path / "vit.onnx", "script", 20)

    def change(proto: onnx.ModelProto) -> None:
        features = next(node for node in reversed(proto.graph.node) if node.op_type == "Gelu").output[0]
        proto.graph.output.append(helper.make_tensor_value_info(features, TensorProto.FLOAT, None))

    more = changed(path, tmp_path / "more.onnx", change)
    pixels, classes = noise(2, (32, 48)), np.array([[3, -1], [-1, 0]])
    seen, maps = answer(explain(more), pixels, classes), answer(explain(path), pixels, classes)
    for name, values in {**maps, **answer(more, pixels)}.items():
        np.testing.assert_allclose(seen[name], values, atol=1e-5)


def test_the_logits_may_be_an_inner_value(file: Path, plain: Path, tmp_path: Path) -> None:
    """Of a file that gives a label alone: the gradient of what that is chosen by."""
    logits = onnx.load(file).graph.output[0].name

    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node.append(helper.make_node("ArgMax", [logits], ["label"], axis=1, keepdims=0))
        proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]))

    path = changed(file, tmp_path / "label.onnx", change)
    pixels, classes = noise(2, (32, 48)), np.full((2, 1), -1)
    seen = answer(explain(path, "--logits", logits), pixels, classes)
    assert [*seen] == ["label", "relevance", "grad_attention", "legrad"]
    np.testing.assert_array_equal(seen["label"], answer(path, pixels)["label"])
    by_logits = answer(plain, pixels, seen["label"][:, None])
    np.testing.assert_allclose(seen["relevance"], by_logits["relevance"], atol=1e-6)


def _channels_last(proto: onnx.ModelProto) -> None:
    name = proto.graph.input[0].name
    for node in proto.graph.node:
        node.input[:] = ["planes" if one == name else one for one in node.input]
    proto.graph.node.insert(0, helper.make_node("Transpose", [name], ["planes"], perm=[0, 3, 1, 2]))
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None, None, 3]))


def _shadows(proto: onnx.ModelProto) -> None:
    """Inner values have the names that the maps get."""
    inner = [node.output[0] for node in proto.graph.node[-4:-1]]
    names = dict(zip(inner, ("relevance", "class_index", "legrad"), strict=True))
    for node in proto.graph.node:
        node.input[:] = [names.get(one, one) for one in node.input]
        node.output[:] = [names.get(one, one) for one in node.output]


@pytest.mark.parametrize(("change", "words"), [(_channels_last, ["--size", "32x48"]), (_shadows, [])])
def test_the_input_is_the_files_own_with_channels_first(
    file: Path, plain: Path, tmp_path: Path, change: Change, words: list[str]
) -> None:
    """Under its name, whatever layout it had and whatever inner values are called; the maps are the same."""
    explained = explain(changed(file, tmp_path / "given.onnx", change), *words)
    inputs = onnxruntime.InferenceSession(str(explained)).get_inputs()
    assert [one.name for one in inputs] == ["x", "class_index"]
    assert inputs[0].shape[1:] == [3, 32, 48]
    pixels, classes = noise(2, (32, 48)), np.array([[3, -1], [-1, 0]])
    expected = answer(plain, pixels, classes)
    for name, values in answer(explained, pixels, classes).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-5)


def refused(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr; nothing was written."""
    capsys.readouterr()
    before = contents(tmp_path)
    assert main(["relevance", str(path), *words]) == 2
    assert contents(tmp_path) == before
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("saccade: ")
    assert said.err.count("\n") == 1
    return said.err


def _value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _no_rule(proto: onnx.ModelProto) -> None:
    head = proto.graph.node[-1]
    proto.graph.node.insert(len(proto.graph.node) - 1, helper.make_node("Atan", [head.input[0]], ["bent"], name="bend"))
    head.input[0] = "bent"


def _nothing_usable(proto: onnx.ModelProto) -> None:
    """Attention that is bent before it weighs, and no rule on the way from the last convolution."""
    _no_rule(proto)
    for index, node in reversed(list(enumerate(proto.graph.node))):
        if node.op_type == "Softmax":
            name, node.output[0] = node.output[0], f"straight_{index}"
            proto.graph.node.insert(index + 1, helper.make_node("Tanh", [f"straight_{index}"], [name]))


def _if(proto: onnx.ModelProto) -> None:
    logits = proto.graph.output[0].name
    branches = [helper.make_graph([helper.make_node(operator, [logits], ["taken"])], operator, [], [_value("taken")])
                for operator in ("Identity", "Neg")]  # fmt: skip
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    proto.graph.node.extend([
        helper.make_node("ReduceSum", [logits], ["sum"], keepdims=0, name="sum"),
        helper.make_node("Greater", ["sum", "zero"], ["more"], name="more"),
        helper.make_node("If", ["more"], ["end"], name="fork", then_branch=branches[0], else_branch=branches[1]),
    ])  # fmt: skip
    proto.graph.output[0].name = "end"


def _loop(proto: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Tanh", ["before"], ["after"])],
        "body",
        [helper.make_tensor_value_info("turn", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []), _value("before")],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), _value("after")],
    )  # fmt: skip
    proto.graph.initializer.append(numpy_helper.from_array(np.array(2), "turns"))
    logits = proto.graph.output[0].name
    proto.graph.node.append(helper.make_node("Loop", ["turns", "", logits], ["end"], name="again", body=body))
    proto.graph.output[0].name = "end"


def _scan(proto: onnx.ModelProto) -> None:
    body = helper.make_graph([helper.make_node("Tanh", ["row"], ["bent"])], "body", [_value("row")], [_value("bent")])
    logits = proto.graph.output[0].name
    proto.graph.node.append(helper.make_node("Scan", [logits], ["end"], name="rows", body=body, num_scan_inputs=1))
    proto.graph.output[0].name = "end"


def _another_head(proto: onnx.ModelProto) -> None:
    """Of the patches before any attention."""
    patches = next(node for node in proto.graph.node if node.op_type == "Conv").output[0]
    proto.graph.node.extend([
        helper.make_node("GlobalAveragePool", [patches], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["early"]),
    ])  # fmt: skip
    proto.graph.output.append(_value("early"))


def _second_input(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


def _of_numbers(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 10]))


def _nothing_counts(proto: onnx.ModelProto) -> None:
    head = next(one for one in proto.graph.initializer if one.name == "head.weight")
    head.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(head)), head.name))


def _has_one_already(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Relu", [proto.graph.output[0].name], ["relevance"]))
    proto.graph.output.append(_value("relevance"))


def _reads_all(proto: onnx.ModelProto) -> None:
    """The mean of all tokens, the class token too."""
    place = next(index for index, node in enumerate(proto.graph.node) if node.op_type == "Gather"
                 and node.output[0] == proto.graph.node[-1].input[0])  # fmt: skip
    node = proto.graph.node[place]
    proto.graph.node[place].CopyFrom(
        helper.make_node("ReduceMean", [node.input[0], "tokens_axis"], [node.output[0]], keepdims=0)
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1]), "tokens_axis"))


REFUSED: dict[Change, tuple[list[str], str]] = {
    _no_rule: ([], "no gradient is known for Atan 'bend', node "),
    _nothing_usable: ([], "; /blocks.0/Softmax is not used: it does not weigh values as it is"),
    _if: ([], "If 'fork' could not be followed: it is a branch or a loop that depends on the picture"),
    _loop: ([], "Loop 'again' could not be followed: it is a branch or a loop that depends on the picture"),
    _scan: ([], "Scan 'rows' could not be followed: it is a branch or a loop that depends on the picture"),
    _another_head: (["--logits", "early"], "the logits early hang on no attention: none of the graph's 2 layers is"),
    _second_input: ([], "the graph takes 2 inputs (x, mask); a classifier of pictures takes one"),
    _of_numbers: ([], "; it must take (batch, 3, height, width)"),
    _nothing_counts: ([], "are 0"),
    _has_one_already: ([], "the graph has relevance already, which is what would be added"),
    _reads_all: ([], "can have no map of gradients: relevance: how the classifier reads the tokens is not known"),
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_cannot_be_explained_is_one_sentence(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change
) -> None:
    """With the name of what is in the way; no file is written."""
    words, sentence = REFUSED[change]
    assert sentence in refused(changed(file, tmp_path / "bad.onnx", change), tmp_path, capsys, *words)


def test_neither_attention_nor_a_convolution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Gemm", ["flat", "w"], ["y"])],
        "flat",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [_value("y")],
        [numpy_helper.from_array(np.ones((48, 2), np.float32), "w")],
    )
    path = tmp_path / "flat.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    assert "the graph has neither attention nor a convolution" in refused(path, tmp_path, capsys)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--logits", "nothing"], "the graph has no value 'nothing'; its outputs are "),
        (["--logits", "/blocks.0/Softmax_output"], "and of inner values /blocks.0/Softmax_output_0, "),
        (["--size", "64x64"], "the graph takes pictures of 32 x 48, not 64 x 64"),
        (["--grid", "7x9"], "--grid 7x9: the graph itself says 4 x 6"),
        (["--out", "/nowhere/why.onnx"], "/nowhere/why.onnx cannot be written: there is no folder /nowhere"),
    ],
)
def test_words_that_do_not_fit_are_refused(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert sentence in refused(file, tmp_path, capsys, *words)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("text.onnx", b"not a model\n", "is no ONNX file, or it is cut off"),
        ("pickle.onnx", pickle.dumps({"weights": [1.0]}), "is a pickle, as torch.save writes them, and none is opened"),
        ("model.pt", b"", "model.pt is a file and does not end in .onnx"),
    ],
)
def test_what_is_no_onnx_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert sentence in refused(tmp_path / name, tmp_path, capsys)
    assert "could not read" in refused(tmp_path / "missing.onnx", tmp_path, capsys)


def test_a_place_that_is_none_is_refused_before_the_work(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which takes minutes for a large model."""
    out = tmp_path / "absent" / "it.onnx"
    assert f"there is no folder {out.parent}" in refused(file, tmp_path, capsys, "--out", str(out))


@pytest.mark.parametrize("there", ["given-relevance.onnx", "given-relevance.onnx.data"])
def test_what_is_there_is_never_overwritten(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    """Neither a graph nor weights of one."""
    (tmp_path / "given.onnx").write_bytes(file.read_bytes())
    (tmp_path / there).write_bytes(b"precious")
    assert f"{there} exists already" in refused(tmp_path / "given.onnx", tmp_path, capsys)

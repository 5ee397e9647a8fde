"""What a graph is found to hold, against the net that it was exported from."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from export.graph.geometry import window_cells
from saccade.errors import DataError
from saccade.manifest import AttentionLayer, Pooling, SpecialTokens, Windows
from tests.export.graph import models
from tests.export.graph.conftest import Case, answers, exposed, hide, noise

NO, ONE, LAST = SpecialTokens(), SpecialTokens(count=1), SpecialTokens(count=1, place="last")
CASES: dict[str, tuple[list[tuple[tuple[int, int], SpecialTokens]], str | None, tuple[str, ...]]] = {
    "Vit": ([((4, 6), ONE)] * 2, "class_token", ("rollout",)),
    "PooledVit": ([((4, 6), ONE)] * 2, "class_token", ("rollout",)),
    "MeanWithoutClass": ([((4, 6), ONE)] * 2, "mean", ("rollout",)),
    "MeanOfPatches": ([((4, 6), ONE)] * 2, "mean", ("rollout", "class")),
    "DeepHead": ([((4, 6), NO)] * 2, "mean", ("rollout",)),
    "MeanOfAll": ([((4, 6), ONE)] * 2, None, ()),
    "Registers": ([((4, 6), SpecialTokens(count=5))] * 2, "class_and_mean", ("rollout",)),
    "Distilled": ([((4, 6), SpecialTokens(count=2))] * 2, "class_and_distillation", ("rollout",)),
    "SeqPool": ([((4, 6), NO)] * 2, "learned", ("pooling", "rollout", "class")),
    "HeadPool": ([((4, 6), NO)] * 2, "learned", ("pooling", "rollout")),
    "LastTokens": ([((4, 6), LAST)], "class_token", ("rollout",)),
    "TorchEncoder": ([((4, 6), NO)], "mean", ("rollout",)),
    "Hybrid": ([((4, 6), NO)], "mean", ("rollout", "class")),
    "Swin": ([((3, 3), NO), ((3, 3), NO), ((4, 4), NO)], "mean", ("class",)),
    "Split": ([((4, 6), NO)], "mean", ("rollout", "class")),
    "MobileVit": ([((4, 6), NO)], None, ("class",)),
    "ConvMlp": ([((4, 6), NO)] * 2, "mean", ("rollout", "class")),
    "LocalVit": ([((4, 6), ONE)] * 2, "class_token", ("rollout",)),
    "ConvBehind": ([((4, 6), NO)] * 2, None, ("class",)),
    "TalkingHeads": ([], None, ("class",)),
    "ReducedKeys": ([], None, ("class",)),
    "Convolutions": ([], None, ("class",)),
}
"""Grid and special tokens of each layer, how the logits read the tokens, maps."""

BOTH = [
    ("Vit", "fixed"), ("Swin", "open"), ("TorchEncoder", "fixed"), ("TiledSwin", "fixed"), ("Split", "raw"),
]  # fmt: skip
"""Torch's other exporter takes seconds: one with an open batch that is hard, and some that have to be opened."""


@pytest.mark.parametrize(("name", "how"), [*((name, "script") for name in CASES), *BOTH])
def test_attention_grid_reading_and_maps_are_those_of_the_net(
    case: Callable[[str, str], Case], name: str, how: str
) -> None:
    """Logits to 1e-4, attention to 1e-5 of the eager net's own, in depth order and for any batch; grids as they are."""
    net, path = case(name, how)
    layers, pooling, maps = CASES[name.removeprefix("Tiled")]
    model, found = exposed(path, net.size)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert [(layer.grid, layer.special_tokens) for layer in found.layers] == layers
    assert [layer.output for layer in found.layers] == [f"attention_{index:02d}" for index in range(len(layers))]
    assert (found.pooling and found.pooling.kind) == pooling
    assert found.maps.available == maps
    assert found.classes == models.CLASSES
    for count in (1, 5):
        pixels = noise(count, net.size)
        seen = answers(model, pixels)
        with torch.inference_mode():
            logits = net(torch.from_numpy(pixels)).numpy()
        ours = _softmax(seen["logits"]) if name == "PooledVit" else seen["logits"]
        np.testing.assert_allclose(ours, logits, atol=1e-4)
        for layer, attention in zip(found.layers, net.seen, strict=False):
            assert attention.shape == (count, *layer.shape)
            np.testing.assert_allclose(seen[layer.output], attention.numpy(), atol=1e-5)
        if found.maps.class_map is not None:
            np.testing.assert_allclose(_summed(model, seen, found.maps.class_map), seen["logits"], atol=1e-4)
        if pooling == "learned":
            np.testing.assert_allclose(seen["pooling"], net.weights[..., 0].numpy(), atol=1e-5)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum(-1, keepdims=True)


def _summed(model: ir.Model, seen: dict[str, np.ndarray], class_map) -> np.ndarray:
    weight = model.graph.initializers[class_map.weight].const_value.numpy()
    bias = 0.0 if class_map.bias is None else model.graph.initializers[class_map.bias].const_value.numpy()
    assert seen["class_tokens"].shape[1] == class_map.grid[0] * class_map.grid[1]
    return seen["class_tokens"].sum(1) @ weight.T + bias


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("Vit", np.eye(25)[0]),
        ("LastTokens", np.eye(25)[24]),
        ("MeanOfPatches", np.r_[0.0, np.full(24, 1 / 24)]),
        ("Registers", np.r_[0.5, np.zeros(4), np.full(24, 0.5 / 24)]),
        ("Distilled", np.r_[0.5, 0.5, np.zeros(24)]),
    ],
)
def test_rollout_starts_where_the_logits_read(case: Callable[[str, str], Case], name: str, row: np.ndarray) -> None:
    """The published product of matrices, in float64, from the row by which this net reads; special tokens left out."""
    net, path = case(name, "script")
    model, found = exposed(path, net.size)
    pixels = noise(3, net.size)
    seen = answers(model, pixels)["rollout"]
    with torch.inference_mode():
        net(torch.from_numpy(pixels))
    rows = np.repeat(row[None], 3, 0)
    for attention in reversed(net.seen):
        mixed = (attention.numpy().astype(np.float64).mean(1) + np.eye(len(row))) / 2
        rows = np.einsum("bi,bij->bj", rows, mixed)
    np.testing.assert_allclose(seen, rows[:, found.layers[-1].patch_slice], atol=1e-6)


def test_windows_say_where_each_token_lies(case: Callable[[str, str], Case]) -> None:
    """Swin's 3 x 3 windows on 8 x 8 patches, plain and shifted; MobileViT's, which interleave."""
    _, swin = exposed(case("Swin", "script").path, (32, 32))
    assert [layer.windows for layer in swin.layers] == [
        Windows(count=(3, 3), picture=(8, 8), layout="blocks", shift=(0, 0)),
        Windows(count=(3, 3), picture=(8, 8), layout="blocks", shift=(1, 1)),
        None,
    ]
    _, mobile = exposed(case("MobileVit", "script").path, (16, 24))
    assert mobile.layers[0].windows == Windows(count=(2, 2), picture=(8, 12), layout="interleaved")


def test_the_cells_of_windows_are_those_of_torch() -> None:
    """`Windows` as the manifest defines it, against roll, reshape and permute on a picture of patch numbers."""
    picture = torch.nn.functional.pad(torch.arange(35).reshape(5, 7), (0, 2, 0, 1), value=-1)  # 6 x 9
    rolled = torch.roll(picture, (-1, -2), (0, 1)).reshape(2, 3, 3, 3).transpose(1, 2).reshape(6, 9)
    windows = Windows(count=(2, 3), picture=(5, 7), shift=(1, 2))
    np.testing.assert_array_equal(window_cells(windows, (3, 3)), rolled.numpy())
    whole = torch.arange(24).reshape(2, 2, 3, 2).permute(1, 3, 0, 2).reshape(4, 6)  # row 2r + i, column 2c + j
    interleaved = Windows(count=(2, 2), picture=(4, 6), layout="interleaved")
    np.testing.assert_array_equal(window_cells(interleaved, (2, 3)), whole.numpy())


@pytest.mark.parametrize(
    ("name", "reason"),
    [("TalkingHeads", "does not weigh values as it is"), ("ReducedKeys", "24 queries attend to 6 keys")],
)
def test_attention_that_cannot_be_given_is_named_with_its_reason(
    case: Callable[[str, str], Case], name: str, reason: str
) -> None:
    """The table tells what was seen and why it is no output, instead of passing over it."""
    net, path = case(name, "script")
    _, found = exposed(path, net.size)
    (row,) = found.table
    assert row.layer is None
    assert reason in row.why_not
    assert "Softmax" in row.where


def test_a_gate_and_a_learned_pooling_are_no_attention(case: Callable[[str, str], Case]) -> None:
    """Squeeze and excitation, SeqPool and class probabilities have a softmax or sigmoid, and no queries and keys."""
    for name, layers in (("Convolutions", 0), ("SeqPool", 2), ("PooledVit", 2)):
        net, path = case(name, "script")
        assert len(exposed(path, net.size)[1].table) == layers


def test_their_other_outputs_stay(case: Callable[[str, str], Case], tmp_path) -> None:
    """Probabilities of theirs, an attention that they gave themselves, and an output under one of our names."""
    net, path = case("PooledVit", "script")
    proto = onnx.load(path)
    probabilities = proto.graph.output[0].name
    softmaxes = [node.output[0] for node in proto.graph.node if node.op_type == "Softmax"]
    value = next(node for node in proto.graph.node if node.op_type == "LayerNormalization").output[0]
    for node in proto.graph.node:
        node.input[:] = ["rollout" if name == value else name for name in node.input]
        node.output[:] = ["rollout" if name == value else name for name in node.output]
    for name in (softmaxes[0], "rollout"):
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    onnx.save(proto, tmp_path / "theirs.onnx")
    before = answers(proto, noise(2, net.size))
    model, found = exposed(tmp_path / "theirs.onnx", net.size)
    seen = answers(model, noise(2, net.size))
    assert list(seen)[:4] == ["logits", "attention_00", "attention_01", "rollout"]
    assert len(seen) == 4 + 3
    np.testing.assert_allclose(seen[probabilities], before[probabilities], atol=1e-6)
    np.testing.assert_allclose(seen[softmaxes[0]], seen["attention_00"], atol=0)
    renamed = [name for name in seen if name.startswith("rollout_")]
    np.testing.assert_allclose(seen[renamed[0]], before["rollout"], atol=1e-5)
    assert seen["rollout"].shape == (2, 24)
    assert found.pooling == Pooling(kind="class_token")


def test_a_grid_is_asked_for_where_none_is_found(case: Callable[[str, str], Case], tmp_path) -> None:
    """A graph that hides its layout (patches picked by an index that hangs on the picture) gets the grid it is told."""
    net, path = case("SeqPool", "script")
    hide(path, tmp_path / "hidden.onnx")
    _, found = exposed(tmp_path / "hidden.onnx", net.size)
    assert found.layers == ()
    assert "give its grid" in found.table[0].why_not
    model, found = exposed(tmp_path / "hidden.onnx", net.size, grid=(4, 6))
    assert found.layers == tuple(AttentionLayer(output=f"attention_0{at}", grid=(4, 6), heads=2) for at in range(2))
    assert found.pooling == Pooling(kind="learned")
    sentence = "--grid 5x6: /[^:]*/Softmax is not used: its 24 tokens are fewer than the 5 x 6 of the grid asked for"
    with pytest.raises(DataError, match=sentence):
        exposed(tmp_path / "hidden.onnx", net.size, grid=(5, 6))
    pixels = noise(2, net.size)
    with torch.inference_mode():
        net(torch.from_numpy(pixels))
    np.testing.assert_allclose(answers(model, pixels)["attention_01"], net.seen[1].numpy(), atol=1e-5)


def test_a_grid_is_told_to_no_layer_of_another_stage(case: Callable[[str, str], Case]) -> None:
    """Of 96 and 24 tokens 4 x 6 is the last layer's alone: of the first one it would make 72 special tokens, which it
    does not have. 8 x 12 is the first one's, and the last has its own by that, as patches were merged.
    """
    net, path = case("Stages", "script")
    first, last = exposed(path, net.size)[1].table
    assert (first.tokens, last.tokens) == ((96, 96), (24, 24))
    assert all("give its grid" in row.why_not for row in (first, last))
    model, found = exposed(path, net.size, grid=(4, 6))
    assert found.layers == (AttentionLayer(output="attention_00", grid=(4, 6), heads=2),)
    left = "its 96 tokens are more than the {} of the grid asked for, and not as many as the last layer's"
    assert found.table[0].why_not == left.format("4 x 6")
    pixels = noise(2, net.size)
    with torch.inference_mode():
        net(torch.from_numpy(pixels))
    np.testing.assert_allclose(answers(model, pixels)["attention_00"], net.seen[1].numpy(), atol=1e-5)
    assert [layer.grid for layer in exposed(path, net.size, grid=(8, 12))[1].layers] == [(8, 12), (4, 6)]
    with pytest.raises(
        DataError, match=r"^--grid 5x6: /last/Softmax is not used: its 24 tokens are fewer than the 5 x 6"
    ):
        exposed(path, net.size, grid=(5, 6))


@pytest.mark.parametrize(
    ("name", "hidden", "wrong", "sentence"),
    [
        (
            "Vit",
            True,
            [(2, 3), (5, 5), (6, 4), (1, 24)],
            "its 25 tokens are 4 x 6 + 1 where their places were last known",
        ),
        ("SeqPool", True, [(2, 3)], "its 24 tokens are 4 x 6 where their places were last known"),
        ("PickedVit", False, [(2, 3)], "19 of its 25 tokens would be special, and the graph puts 1 beside its patches"),
        ("Stages", False, [(2, 3)], "18 of its 24 tokens would be special, and the graph puts none beside its patches"),
    ],
)
def test_a_grid_that_leaves_more_special_tokens_than_there_are_is_refused(
    case: Callable[[str, str], Case],
    tmp_path: Path,
    name: str,
    hidden: bool,
    wrong: list[tuple[int, int]],
    sentence: str,
) -> None:
    """They would be patches, which no map has: as far as the graph says something of its tokens, it is held to that."""
    net, path = case(name, "script")
    path = hide(path, tmp_path / "hidden.onnx") if hidden else path
    for grid in wrong:
        with pytest.raises(DataError, match=rf"^--grid {grid[0]}x{grid[1]}: /\S+ is not used: {re.escape(sentence)}"):
            exposed(path, net.size, grid=grid)
    special = SpecialTokens(count=1 if name.endswith("Vit") else 0)
    for layer in exposed(path, net.size, grid=(4, 6))[1].layers:
        assert (layer.grid, layer.special_tokens) == ((4, 6), special)


FIRST, ROWS = "its special tokens do not stand first", "its patches do not stand row by row"


@pytest.mark.parametrize(
    ("name", "grid", "sentence"),
    [
        ("ColumnsVit", (4, 6), ROWS),
        ("ClassLastVit", (4, 6), FIRST),
        ("ClassAmidVit", (4, 6), FIRST),
        ("AssignedVit", (2, 3), "its 25 tokens are 4 x 6 + 1"),
        ("AssignedVit", (5, 5), "its 25 tokens are 4 x 6 + 1"),
        ("AssignedVit", (6, 4), "its 25 tokens are 4 x 6 + 1"),
        ("AssignedLastVit", (4, 6), FIRST),
        ("AssignedPickedVit", (2, 3), "19 of its 25 tokens would be special, and the graph puts 1 beside its patches"),
    ],
)
def test_a_grid_whose_tokens_stand_otherwise_is_refused(
    case: Callable[[str, str], Case], name: str, grid: tuple[int, int], sentence: str
) -> None:
    """A told grid is row by row behind special tokens: maps of others would have each value at a wrong place."""
    net, path = case(name, "script")
    with pytest.raises(DataError, match=rf"^--grid {grid[0]}x{grid[1]}: /\S+ is not used: {re.escape(sentence)}"):
        exposed(path, net.size, grid=grid)


@pytest.mark.parametrize(("name", "special"), [("AssignedVit", 1), ("AssignedPickedVit", 1), ("ManySpecialVit", 24)])
def test_special_tokens_may_be_put_anyhow(case: Callable[[str, str], Case], name: str, special: int) -> None:
    """By an assignment to a slice; and as many as there are patches, made of the picture."""
    net, path = case(name, "script")
    layers = exposed(path, net.size, grid=(4, 6))[1].layers
    assert [(layer.grid, layer.special_tokens) for layer in layers] == [((4, 6), SpecialTokens(count=special))] * 2


@pytest.mark.parametrize(
    ("name", "right", "sentence"),
    [
        ("Vit", [(4, 6)], "the graph itself says 4 x 6"),
        ("Swin", [(8, 8), (3, 3), (4, 4)], "the graph itself says 8 x 8 and 4 x 4"),
        ("Convolutions", [], "there is no layer whose grid is not found"),
        ("ReducedKeys", [], "there is no layer whose grid is not found; .*Softmax is not used: 24 queries attend to 6"),
    ],
)
def test_a_grid_that_contradicts_the_graph_is_refused(
    case: Callable[[str, str], Case], name: str, right: list[tuple[int, int]], sentence: str
) -> None:
    """Instead of being passed over; one that is what was found, of patches or of a window of them, changes nothing."""
    net, path = case(name, "script")
    with pytest.raises(DataError, match=f"^--grid 7x9: {sentence}"):
        exposed(path, net.size, grid=(7, 9))
    for grid in right:
        assert exposed(path, net.size, grid=grid)[1].table == exposed(path, net.size)[1].table

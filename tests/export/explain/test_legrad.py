"""LeGrad's map is that of float64 autograd through the eager net, of every class; where it cannot be, it is missing."""

import itertools
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.eager import Logits
from export.explain.build import write_relevance
from export.explain.check import check_gradients
from export.explain.differentiate import differentiate
from export.explain.legrad import add_legrad
from export.explain.relevance import CLASS_INDEX, GRAD_ATTENTION, LEGRAD, RELEVANCE, TOP, Classifier, add_relevance
from export.explain.source import source_of
from export.graph.attention import find
from export.graph.geometry import layer_of
from export.graph.narrow import narrow
from export.graph.nodes import replace
from export.graph.places import Places
from export.names import INPUT, attention_output
from export.nets import Net
from export.reference import rebuild
from saccade.bundle import open_bundle
from saccade.manifest import SWITCHES, AttentionLayer, Pooling
from tests.export import families
from tests.export.explain import more_families
from tests.export.explain.autograd import Blocks, Probabilities, by_autograd
from tests.export.explain.nets import Between, GeluEnd, Mlp, PostNorm, explained_net
from tests.export.explain.test_differentiate import seeded, traced
from tests.export.explain.test_relevance import WITH_RELEVANCE, explained, maps_of, noise
from tests.export.graph import models as plain


def assert_close(seen: NDArray[np.float32], expected: NDArray[np.float64]) -> None:
    """To 1e-4 of the greatest value of each map, which lies on the last axis."""
    assert seen.shape == expected.shape
    assert (np.abs(seen - expected).max(-1) <= 1e-4 * expected.max(-1)).all()


def logits_and_attention(net: Net, pixels: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    seen = net.explain(pixels)
    return seen.logits, seen.attention


@pytest.mark.parametrize("name", WITH_RELEVANCE)
def test_every_class_has_the_map_of_float64_autograd(models: Path, name: str) -> None:
    """For batches of 1, 2 and 5, all classes in one run. Of layers on several grids those on the last one count."""
    bundle = open_bundle(models / name / "1")
    session, net, manifest = explained(bundle), rebuild(bundle).double().eval(), bundle.manifest
    last, pooling = manifest.attention[-1], manifest.pooling
    layers = [index for index, layer in enumerate(manifest.attention) if layer.grid == last.grid]
    hybrid = name == "tiny-hybrid"
    blocks = Blocks([*(net.attention_blocks if hybrid else net.encoder.blocks)], "weigh", (2, 3) if hybrid else (1,))
    assert pooling is not None
    for count in (1, 2, 5):
        pixels = noise(bundle, count)
        model = partial(logits_and_attention, net, torch.from_numpy(pixels).double())
        seen = maps_of(session, pixels, np.tile(np.arange(len(manifest.labels)), (count, 1)))[LEGRAD]
        expected = by_autograd(model, blocks, layers, class_token=pooling.kind == "class_token")
        assert_close(seen.swapaxes(0, 1), expected[..., last.patch_slice])


READS = {
    "DeiT, distilled": Pooling(kind="class_and_distillation"),
    "BEiT": Pooling(kind="mean"),
    "DINOv2 with registers": Pooling(kind="class_and_mean"),
}
"""How families read their tokens."""


@pytest.mark.parametrize(("name", "narrowed"), [*((name, True) for name in READS), ("DeiT, distilled", False)])
def test_families_have_the_map_of_float64_autograd(name: str, narrowed: bool) -> None:
    """Whether or not the last layer's tokens that nobody reads are computed; and finite differences agree."""
    size, pooling, classes = more_families.size(name), READS[name], len(families.LABELS)
    graph = traced(name)
    found = find(graph, Places(graph, size).follow_all(graph))
    layers = [layer_of(one, attention_output(index), None) for index, one in enumerate(found)]
    graph.graph.outputs.extend(one.weights for one in found)  # all of their rows
    if narrowed:
        narrow(graph, size)
    places = Places(graph, size).follow_all(graph)
    logits, seed = seeded(graph, classes)
    pairs = [(layer, source_of(graph, one.weights, logits)) for layer, one in zip(layers, found, strict=True)
             if isinstance(layer, AttentionLayer)]  # fmt: skip
    assert len(pairs) == 2
    gradients = differentiate(graph, {logits: seed}, [source.value for _, source in pairs])
    added = add_legrad(graph, places, (logits, seed), pairs, pooling, gradients)
    assert check_gradients(graph, added.derivatives) < 1e-6

    added.row.name, added.row.type = LEGRAD, ir.TensorType(ir.DataType.FLOAT)
    graph.graph.outputs[:] = [logits, added.row]
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    one_hot = np.repeat(np.eye(classes, dtype=np.float32)[:, None], 2, axis=1)
    (seen,) = session.run([LEGRAD], {INPUT: pixels.numpy(), "seed": one_hot})

    module = Logits(more_families.model(name)).double().eval()
    blocks = Blocks(blocks_of(module), "forward", (1,))

    def model() -> tuple[Tensor, Sequence[Tensor]]:
        with Probabilities() as mode:
            return module(pixels.double()), mode.seen

    class_token = pooling.kind in ("class_token", "class_and_distillation")
    assert_close(seen[:, :, 0], by_autograd(model, blocks, [0, 1], class_token=class_token))


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Of a transformers model with two."""
    return next([*child] for child in module.modules() if isinstance(child, nn.ModuleList) and len(child) == 2)


def test_a_model_without_a_residual_stream_has_the_other_maps(models: Path) -> None:
    """And a reason, and nothing in its graph of what was tried."""
    bundle = open_bundle(models / "tiny-vit" / "1")
    model = ir.load(bundle.graph)
    places = Places(model, (16, 24)).follow_all(model)
    sums = [node for node in model.graph
            if node.op_type == "Add" and all(value in places.labels for value in node.inputs)]  # fmt: skip
    for node in sums:
        product = ir.node("Mul", node.inputs)
        model.graph.insert_before(node, product)
        replace(model, node, product.outputs)
    added = add_relevance(model, Classifier.of(model, bundle.manifest))
    assert added.maps.names == (RELEVANCE, GRAD_ATTENTION)
    assert added.why_not[LEGRAD] == "the graph has no sum behind attention_00 that ends a block"
    assert [value.name for value in model.graph.outputs][-2:] == [RELEVANCE, GRAD_ATTENTION]
    assert check_gradients(model, added.derivatives) < 1e-6


def test_a_classifier_that_counts_its_tokens_is_not_asked_for_one(models: Path) -> None:
    """A sum over the patches, divided by how many they are, is a mean; but of one token it is a part of it."""
    bundle = open_bundle(models / "tiny-vit-mean" / "1")
    model = ir.load(bundle.graph)
    pooled = next(node for node in model.graph if node.op_type == "ReduceMean" and node.outputs[0].shape[-1] == 32)
    patches = bundle.manifest.attention[-1].patches
    total = ir.node("ReduceSum", pooled.inputs, {"keepdims": pooled.attributes["keepdims"].as_int()})
    share = ir.Value(name="share", const_value=ir.tensor(np.float32(1 / patches), name="share"))
    model.graph.initializers["share"] = share
    mean = ir.node("Mul", [total.outputs[0], share])
    total.outputs[0].name = "total"
    model.graph.insert_before(pooled, [total, mean])
    replace(model, pooled, mean.outputs)
    added = add_relevance(model, Classifier.of(model, bundle.manifest))
    assert added.maps.names == (RELEVANCE, GRAD_ATTENTION)
    assert added.why_not[LEGRAD] == "its classifier cannot be asked for the mean of a block's tokens"


def assert_right(net: plain.Classifier, folder: Path, *, opset: int = 18, class_token: bool = False) -> None:
    """That a net of `blocks` has LeGrad's map, and that it is autograd's."""
    added, session = explained_net(plain.lively(net), folder, opset)
    assert added.maps.names == (RELEVANCE, GRAD_ATTENTION, LEGRAD)
    pixels = np.random.default_rng(0).standard_normal((2, 3, *net.size)).astype(np.float32)
    seen = maps_of(session, pixels, np.tile(np.arange(plain.CLASSES), (2, 1)))[LEGRAD]
    net.double()
    blocks = Blocks([*net.blocks], "forward", (1,))

    def model() -> tuple[Tensor, Sequence[Tensor]]:
        return net(torch.from_numpy(pixels).double()), net.seen

    asked = [*range(len(net.blocks))]
    assert_close(seen.swapaxes(0, 1), by_autograd(model, blocks, asked, class_token=class_token)[..., -24:])


@pytest.mark.parametrize("opset", [18, 16])
def test_a_block_ends_behind_its_norm(tmp_path: Path, opset: int) -> None:
    """Of post-norm blocks, the last one's too; also where the norm is written out, as before opset 17."""
    assert_right(PostNorm(), tmp_path, opset=opset)


@pytest.mark.parametrize(("net", "class_token"), [(plain.ConvMlp, False), (plain.LocalVit, True)])
def test_an_mlp_may_mix_neighbours(tmp_path: Path, net: Callable[[], plain.Classifier], class_token: bool) -> None:
    """As of PVT V2, whose classifier takes its tokens for a picture besides."""
    assert_right(net(), tmp_path, class_token=class_token)


def test_tokens_before_pictures_leave_no_legrad(tmp_path: Path) -> None:
    """As PyTorch's own encoder has them by default; the reason is in words of the model."""
    added, _ = explained_net(plain.lively(plain.TorchEncoder()), tmp_path)
    assert added.maps.names == (RELEVANCE, GRAD_ATTENTION)
    assert added.why_not[LEGRAD] == "its pictures stand behind its tokens, and not on the first axis"


def test_a_sum_that_is_of_no_layer_leaves_no_legrad(tmp_path: Path) -> None:
    """An MLP with a sum of its own between layers: where a block ends cannot be told. The other maps stay."""
    added, _ = explained_net(plain.lively(Between(Mlp())), tmp_path)
    assert added.maps.names == (RELEVANCE, GRAD_ATTENTION)
    assert added.why_not[LEGRAD] == "which of 3 sums behind attention_01 ends its block is not known"


def test_the_norm_behind_an_only_block_is_the_classifiers_where_the_block_begins_with_one(tmp_path: Path) -> None:
    """Where it does not, nobody can tell whose it is: there is no LeGrad, and the other maps stay."""
    pre, post = plain.MeanOfPatches(), plain.lively(PostNorm())
    pre.blocks, post.blocks = pre.blocks[:1], post.blocks[:1]
    assert_right(pre, tmp_path)
    added, _ = explained_net(post, tmp_path)
    assert added.maps.names == (RELEVANCE, GRAD_ATTENTION)
    assert added.why_not[LEGRAD].startswith("whether the norm behind its only block is")


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_gelu_behind_a_block_is_the_blocks(tmp_path: Path, approximate: str, blocks: int) -> None:
    """In its exact form, which is taken apart, as in the other."""
    assert_right(GeluEnd(approximate, blocks), tmp_path, opset=20)


@pytest.mark.parametrize(("net", "without"), [("tiny-vit", ["with_class_map"]), ("tiny-cct", [])])
def test_maps_rest_where_they_are_not_wanted(models: Path, tmp_path: Path, net: str, without: list[str]) -> None:
    """What is wanted is the same with and without the others, which are empty: a graph has a switch for each that it
    has, and those of model.onnx rest as well.
    """
    bundle = open_bundle(models / net / "1")
    shutil.copy(bundle.weights, tmp_path)
    write_relevance(bundle, tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "relevance.onnx"), providers=["CPUExecutionProvider"])
    feed, names = {INPUT: noise(bundle, 2), CLASS_INDEX: np.array([[0, 1], [2, TOP]])}, [*SWITCHES]
    names = [name for name in names if name not in without]
    assert [one.name for one in session.get_inputs()] == [*feed, *names]
    outputs = [output.name for output in session.get_outputs()]
    expected = maps_of(explained(bundle), feed[INPUT], feed[CLASS_INDEX])
    for wanted in itertools.product([True, False], repeat=len(names)):
        switches = {name: np.array(one) for name, one in zip(names, wanted, strict=True)}
        seen = dict(zip(outputs, session.run(None, {**feed, **switches}), strict=True))
        resting = {output for name, one in zip(names, wanted, strict=True) if not one for output in SWITCHES[name]}
        for output in outputs:
            if output in resting:
                assert seen[output].shape == (*[0] * (expected[output].ndim - 1), expected[output].shape[-1])
            else:
                np.testing.assert_allclose(seen[output], expected[output], atol=1e-6)

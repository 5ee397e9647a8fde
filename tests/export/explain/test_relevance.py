"""Maps of the gradient are those of float64 autograd through the source net, for every class."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from export.explain.relevance import (
    CLASS_INDEX,
    GRAD_ATTENTION,
    GRAD_CAM,
    LEGRAD,
    RELEVANCE,
    TOP,
    Classifier,
    add_relevance,
    possible,
)
from export.names import INPUT
from export.nets import Net
from export.reference import rebuild
from export.runtime import open_graph
from saccade.bundle import Bundle, open_bundle
from saccade.errors import BundleError
from saccade.pooling import pooled_row
from tests.export.explain.nets import Between, FewKeys, explained_net
from tests.export.graph import models as plain

WITH_RELEVANCE = ("tiny-cct", "tiny-vit", "tiny-vit-mean", "tiny-hybrid")
WITHOUT_ATTENTION = ("tiny-resnet", "tiny-convmixer")


def maps_possible(bundle: Bundle) -> tuple[str, ...]:
    return possible(ir.load(bundle.graph), bundle.manifest.attention, bundle.manifest.pooling)[0]


def explained(bundle: Bundle) -> onnxruntime.InferenceSession:
    """The bundle's graph with the maps, its weights within."""
    model = ir.load(bundle.graph)
    added = add_relevance(model, Classifier.of(model, bundle.manifest))
    assert added.maps.names == maps_possible(bundle)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def maps_of(
    session: onnxruntime.InferenceSession, pixels: NDArray[np.float32], classes: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {INPUT: pixels, CLASS_INDEX: classes}), strict=True))


def by_autograd(net: Net, bundle: Bundle, pixels: NDArray[np.float32], label: int) -> dict[str, NDArray[np.float64]]:
    """(B, P) each: the published product of matrices in float64, (I + E_L) … (I + E_1), and the row of the last E.

    Of layers on several grids, those of the last one.
    """
    manifest, last = bundle.manifest, bundle.manifest.attention[-1]
    found = net.double().eval().explain(torch.from_numpy(pixels).double())
    layers = [one for one, layer in zip(found.attention, manifest.attention, strict=True) if layer.grid == last.grid]
    by = [*layers, *([] if found.pooling is None else [found.pooling])]
    gradients = [one.numpy() for one in torch.autograd.grad(found.logits[:, label].sum(), by)]
    attention = [one.detach().numpy() for one in by]
    if found.pooling is None:
        assert manifest.pooling is not None
        row = np.broadcast_to(pooled_row(manifest.pooling, last).astype(np.float64), (len(pixels), last.tokens))
    else:
        row = np.maximum(gradients[-1] * attention[-1], 0)
    whole = np.broadcast_to(np.eye(last.tokens), (len(pixels), last.tokens, last.tokens))
    for index in range(len(layers)):
        evidence = np.maximum(gradients[index] * attention[index], 0).mean(1)
        whole = whole + evidence @ whole
    relevance = np.einsum("bi,bij->bj", row, whole) - (row if found.pooling is None else 0)
    patches = last.patch_slice
    return {
        RELEVANCE: relevance[:, patches],
        GRAD_ATTENTION: np.einsum("bi,bij->bj", row, evidence)[:, patches],
    }


def noise(bundle: Bundle, count: int) -> NDArray[np.float32]:
    spec = bundle.manifest.preprocessing
    return np.random.default_rng(3).standard_normal((count, 3, spec.height, spec.width)).astype(np.float32)


@pytest.mark.parametrize("name", WITH_RELEVANCE)
def test_every_class_has_the_map_of_float64_autograd(models: Path, name: str) -> None:
    """To 1e-4 of the map's greatest value, for batches of 1, 2 and 5, all classes in one run or one alone."""
    bundle = open_bundle(models / name / "1")
    session, net = explained(bundle), rebuild(bundle)
    labels = len(bundle.manifest.labels)
    for count in (1, 2, 5):
        pixels = noise(bundle, count)
        seen = maps_of(session, pixels, np.tile(np.arange(labels), (count, 1)))
        for label in range(labels):
            alone = maps_of(session, pixels, np.full((count, 1), label))
            for map_name, expected in by_autograd(net, bundle, pixels, label).items():
                limit = 1e-4 * np.abs(expected).max(1)
                assert (np.abs(seen[map_name][:, label] - expected).max(1) <= limit).all(), (map_name, label)
                np.testing.assert_allclose(alone[map_name][:, 0], seen[map_name][:, label], atol=1e-6)


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_without_attention_there_is_grad_cam_and_it_is_the_class_map(models: Path, name: str) -> None:
    """Of a head behind a mean the exact class map, in float64 from the eager net, but for its negative part and a
    scale; of every class.
    """
    bundle = open_bundle(models / name / "1")
    assert maps_possible(bundle) == (GRAD_CAM,)
    session, net, pixels = explained(bundle), rebuild(bundle).double().eval(), noise(bundle, 3)
    labels = len(bundle.manifest.labels)
    seen = maps_of(session, pixels, np.tile(np.arange(labels), (3, 1)))[GRAD_CAM]
    with torch.inference_mode():
        tokens = net.explain(torch.from_numpy(pixels).double()).class_tokens.numpy()
    exact = np.einsum("bpw,cw->bcp", tokens, net.head.weight.detach().numpy())
    assert seen.shape == exact.shape
    np.testing.assert_allclose(seen, np.maximum(exact, 0), atol=1e-4 * np.abs(exact).max())


@pytest.mark.parametrize("name", [*WITH_RELEVANCE, *WITHOUT_ATTENTION])
def test_the_top_class_is_found_in_the_graph(models: Path, name: str) -> None:
    """-1 is the class of the greatest logit, of each picture its own, beside others that are named; the rest of the
    answer is that of the model without maps.
    """
    bundle = open_bundle(models / name / "1")
    session, pixels = explained(bundle), noise(bundle, 4)
    plain = open_graph(bundle.graph)(pixels)
    seen = maps_of(session, pixels, np.tile([TOP, 3], (4, 1)))
    top = plain["logits"].argmax(1)
    named = maps_of(session, pixels, np.stack([top, np.full(4, 3)], 1))
    for output in maps_possible(bundle):
        np.testing.assert_array_equal(seen[output], named[output])
        assert np.isfinite(seen[output]).all()
        assert np.abs(seen[output]).max() > 0
    for output, values in plain.items():
        np.testing.assert_allclose(seen[output], values, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet"])
def test_classes_are_found_by_their_rank(models: Path, name: str) -> None:
    """-j is the class of the j-th greatest logit, of each picture its own, down to the least."""
    bundle = open_bundle(models / name / "1")
    session, pixels = explained(bundle), noise(bundle, 3)
    order = np.argsort(-open_graph(bundle.graph)(pixels)["logits"], axis=1, kind="stable")
    ranks = np.array([[-1, -2, 4, -10], [-3, 0, -1, -1], [9, -10, -9, -2]])
    named = np.where(ranks < 0, np.take_along_axis(order, np.maximum(-ranks - 1, 0), axis=1), ranks)
    seen, expected = maps_of(session, pixels, ranks), maps_of(session, pixels, named)
    for output in maps_possible(bundle):
        np.testing.assert_array_equal(seen[output], expected[output])


@pytest.mark.parametrize("index", [-11, -(2**40), 10, 2**40])
def test_a_class_that_is_none_stops_the_run(models: Path, index: int) -> None:
    """It is no other class by chance, as an index from the end would be."""
    bundle = open_bundle(models / "tiny-cct" / "1")
    with pytest.raises(Exception, match=r"out of data bounds|Out of range|greater than"):
        maps_of(explained(bundle), noise(bundle, 1), np.array([[3, index]]))


def test_maps_begin_behind_attention_that_is_no_layer(tmp_path: Path) -> None:
    """Of fewer keys than queries, among layers: evidence is not carried past it as if it were not there, but that of
    the layers behind it is told, and which they are.
    """
    net = plain.lively(Between(FewKeys(), behind=2))
    added, session = explained_net(net, tmp_path)
    assert added.maps.names == (RELEVANCE, GRAD_ATTENTION, LEGRAD)
    assert added.maps.layers == ("attention_01", "attention_02")
    pixels = np.random.default_rng(0).standard_normal((2, 3, *net.size)).astype(np.float32)
    seen = maps_of(session, pixels, np.tile(np.arange(plain.CLASSES), (2, 1)))
    logits = net.double()(torch.from_numpy(pixels).double())
    row = np.r_[0, np.full(24, 1 / 24)]
    for label in range(plain.CLASSES):
        gradients = torch.autograd.grad(logits[:, label].sum(), net.seen, retain_graph=True)
        first, last = ((one * gradient).clamp(min=0).mean(1).detach().numpy()
                       for one, gradient in zip(net.seen, gradients, strict=True))  # fmt: skip
        one = np.eye(25)
        expected = (row @ ((one + last) @ (one + first) - one))[:, 1:]
        assert (np.abs(seen[RELEVANCE][:, label] - expected).max(1) <= 1e-4 * expected.max(1)).all()


def test_attention_that_is_no_layer_behind_the_last_leaves_no_map(tmp_path: Path) -> None:
    """What the classifier reads is mixed by it, in a way that no layer says."""
    net = plain.lively(Between(FewKeys(), behind=0))
    with pytest.raises(BundleError, match="behind attention_02 stands attention that is none of its layers"):
        explained_net(net, tmp_path)


READ = {plain.ConvMlp: np.full(24, 1 / 24), plain.LocalVit: np.eye(25)[0]}
"""How nets read their last tokens, whose MLPs mix neighbours."""


@pytest.mark.parametrize("kind", READ)
def test_tokens_stay_where_they_are_when_neighbours_are_added(tmp_path: Path, kind: type[plain.Classifier]) -> None:
    """The published product of matrices in float64 from the row that is read: the convolutions of MLPs change what
    evidence is worth, and not where it is.
    """
    net = plain.lively(kind())
    added, session = explained_net(net, tmp_path)
    assert (added.maps.names, len(added.maps.layers)) == ((RELEVANCE, GRAD_ATTENTION, LEGRAD), 2)
    pixels = np.random.default_rng(0).standard_normal((2, 3, *net.size)).astype(np.float32)
    seen = maps_of(session, pixels, np.tile(np.arange(plain.CLASSES), (2, 1)))
    logits, row = net.double()(torch.from_numpy(pixels).double()), READ[kind]
    for label in range(plain.CLASSES):
        gradients = torch.autograd.grad(logits[:, label].sum(), net.seen, retain_graph=True)
        first, last = ((one * gradient).clamp(min=0).mean(1).detach().numpy()
                       for one, gradient in zip(net.seen, gradients, strict=True))  # fmt: skip
        one = np.eye(len(row))
        for name, whole in ((RELEVANCE, (one + last) @ (one + first) - one), (GRAD_ATTENTION, last)):
            expected = (row @ whole)[:, -24:]
            assert (np.abs(seen[name][:, label] - expected).max(1) <= 1e-4 * expected.max(1)).all()


def test_tokens_behind_a_convolution_are_others(tmp_path: Path) -> None:
    """Where nothing but their neighbours' mixture is handed on, nobody says which is which."""
    with pytest.raises(BundleError, match="relevance: how the classifier reads the tokens is not known"):
        explained_net(plain.lively(plain.ConvBehind()), tmp_path)


def test_attention_within_windows_is_refused_in_full(tmp_path: Path) -> None:
    """Also where how the classifier reads the tokens is not known either."""
    reason = "the last layer attends within 2 x 2 interleaved windows of 4 x 6 of its 8 x 12 patches, so no row of it"
    with pytest.raises(BundleError, match=f"relevance: {reason} reads the whole picture"):
        explained_net(plain.lively(plain.MobileVit()), tmp_path)


def test_attention_that_is_no_layer_is_named(tmp_path: Path) -> None:
    """Where there is no other, and Grad-CAM stands in for it."""
    added, _ = explained_net(plain.lively(plain.ReducedKeys()), tmp_path)
    assert added.maps.names == (GRAD_CAM,)
    assert added.why_not[RELEVANCE] == "it gives no attention: in /Softmax 24 queries attend to 6 keys"

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

from export.explain.relevance import CLASS_INDEX, GRAD_ATTENTION, RELEVANCE, add_relevance
from export.names import INPUT
from export.nets import Net
from export.reference import rebuild
from saccade.bundle import Bundle, open_bundle
from saccade.pooling import pooled_row

WITH_RELEVANCE = ("tiny-cct", "tiny-vit", "tiny-vit-mean")


def explained(bundle: Bundle) -> onnxruntime.InferenceSession:
    """The bundle's graph with the maps, its weights within."""
    model = ir.load(bundle.graph)
    assert add_relevance(model, bundle.manifest) == (RELEVANCE, GRAD_ATTENTION)
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
    """(B, P) each: the published product of matrices in float64, (I + E_L) … (I + E_1), and the row of the last E."""
    manifest, last = bundle.manifest, bundle.manifest.attention[-1]
    found = net.double().eval().explain(torch.from_numpy(pixels).double())
    by = [*found.attention, *([] if found.pooling is None else [found.pooling])]
    gradients = [one.numpy() for one in torch.autograd.grad(found.logits[:, label].sum(), by)]
    attention = [one.detach().numpy() for one in by]
    if found.pooling is None:
        assert manifest.pooling is not None
        row = np.broadcast_to(pooled_row(manifest.pooling, last).astype(np.float64), (len(pixels), last.tokens))
    else:
        row = np.maximum(gradients[-1] * attention[-1], 0)
    whole = np.broadcast_to(np.eye(last.tokens), (len(pixels), last.tokens, last.tokens))
    for index in range(len(found.attention)):
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

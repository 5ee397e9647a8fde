"""Numbers on their way into JSON."""

import json
from pathlib import Path

import numpy as np
import pytest

from saccade.api import ClassifyOptions
from saccade.bundle import open_bundle
from saccade.errors import InferenceFailed
from saccade.scores import to_scores
from service.encode import to_json
from service.postprocess import NO_PATCH, gradient_maps, labels, rounded, top
from service.selection import select

GENERATOR = np.random.default_rng(3)


@pytest.mark.parametrize("decimals", range(10))
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 100.0])
def test_numbers_are_rounded_and_read_back_as_the_very_float32(decimals: int, scale: float) -> None:
    """What was printed is what was computed: reading it as float32 gives each bit again."""
    values = (GENERATOR.normal(0, scale, (3, 50)) * GENERATOR.integers(0, 2, (3, 50))).astype(np.float32)
    near = rounded(values, decimals)
    assert near.dtype == np.float32
    ulp = np.spacing(np.abs(values)) * 2
    assert (np.abs(near.astype(np.float64) - values) <= 0.5 * 10.0**-decimals + ulp).all()
    text = to_json({"values": near}).decode()
    np.testing.assert_array_equal(np.array(json.loads(text)["values"], np.float32), near)


@pytest.mark.parametrize("decimals", [0, 3, 9])
def test_there_is_no_minus_zero(decimals: int) -> None:
    """A reader who compares text is not surprised by -0.0."""
    values = np.array([-0.0, -1e-12, 0.0, -0.4 * 10.0**-decimals], np.float32)
    assert "-0.0" not in to_json({"values": rounded(values, decimals)}).decode()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_cannot_be_written_is_refused(value: float) -> None:
    """Neither null nor NaN stands for a number; nor what overflows when it is rounded."""
    with pytest.raises(InferenceFailed, match="not finite"):
        rounded(np.array([0, value], np.float32), 6)


def test_a_slice_is_encoded_like_its_copy() -> None:
    """Strides do not matter."""
    values = GENERATOR.normal(size=(4, 6, 8)).astype(np.float32)
    sliced = values[::2, 1:5, ::3]
    assert json.loads(to_json({"a": rounded(sliced, 4)})) == json.loads(to_json({"a": rounded(sliced.copy(), 4)}))


@pytest.mark.parametrize("shift", [0.0, 1e3, -1e3, 1e30])
def test_softmax_survives_large_logits(shift: float) -> None:
    """Probabilities sum to 1 and are those of the formula, wherever the logits lie."""
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    powers = np.exp(np.array([1.0, 2.0, 3.0]))
    moved = to_scores((logits + np.float32(shift)).astype(np.float32), "softmax", 1.0)
    assert moved.sum() == pytest.approx(1)
    if abs(shift) < 1e6:
        np.testing.assert_allclose(moved, powers / powers.sum(), atol=1e-4)


@pytest.mark.parametrize("classes", [3, 100])
def test_labels_stand_in_the_order_of_logits_where_scores_are_equal(models: Path, classes: int) -> None:
    """A sigmoid's end is one number for many logits; equal logits stand by their index, as in the graph."""
    logits = np.full(classes, -5, np.float32)
    logits[:3] = 40, 50, 40
    scores = to_scores(logits, "sigmoid", 1.0)
    assert scores[0] == scores[1] == 1
    order = top(logits, 4)
    assert order.tolist() == [1, 0, 2, 3][:classes]
    manifest = open_bundle(models / "tiny-cct" / "1").manifest
    selection = select(manifest, ClassifyOptions(), 2**20)
    assert [one["index"] for one in labels(manifest, scores, order[:3], selection)] == [1, 0, 2]


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-12, 1e-38, 0.0])
def test_a_map_of_the_gradient_keeps_its_digits_and_says_where_it_is_zero(models: Path, scale: float) -> None:
    """However small its values are; the ranks of its classes are resolved."""
    manifest = open_bundle(models / "tiny-cct" / "1").manifest
    options = ClassifyOptions(maps="relevance", classes=("topk",), top_k=2, decimals=3)
    values = np.array([np.linspace(0, 0.7, 64), np.zeros(64)], np.float32) * np.float32(scale)
    order = np.array([4, 9])
    whole, nothing = gradient_maps(
        manifest, select(manifest, options, 2**20), "relevance", {"relevance": values}, order
    )
    assert [one["class_index"] for one in (whole, nothing)] == [4, 9]
    assert nothing["note"] == NO_PATCH == "no patch argued for this class: the map is zero everywhere"
    assert ("note" in whole) == (scale == 0)
    expected = np.linspace(0, 0.7, 64).round(3).reshape(8, 8) * scale
    np.testing.assert_allclose(json.loads(to_json({"v": whole["values"]}))["v"], expected, atol=1e-6 * scale)

"""Maps that are worth showing: of the class asked for, of the net's weights, and of the picture; on trained models."""

from pathlib import Path

import pytest

from export.reference import rebuild
from saccade.bundle import Bundle, open_bundle
from tests.export.explain import sanity, shipped_rows
from tests.export.explain.proofs import graph_gradients


@pytest.fixture(scope="module", params=["cifar10-cct", "cifar10-hybrid-s"])
def trained(request: pytest.FixtureRequest) -> Bundle:
    """Those of the models in the repository that attend."""
    return shipped_rows.opened(request.param)


def test_another_class_gives_another_map(trained: Bundle) -> None:
    """The first class's and the second's rank patches differently: by 0.8 or less, mean of 8 pictures."""
    assert sanity.across_classes(trained, 8) < 0.8


def test_random_weights_give_another_map(trained: Bundle, tmp_path: Path) -> None:
    """Rank correlation with the trained net's map is below 0.5 once the head and the last block are random, and stays
    there down to the first layer (Adebayo et al. 2018); a random head alone changes it, too.
    """
    steps = sanity.randomised(trained, 8, tmp_path)
    assert steps[0].part == "head"
    assert steps[0].correlation < 0.8
    behind = next(index for index, step in enumerate(steps) if "block" in step.part)
    assert max(step.correlation for step in steps[behind:]) < 0.5


def test_a_picture_of_one_colour_has_finite_maps(bundle: Bundle) -> None:
    """Of every class, and of every kind of net."""
    assert sanity.constant(bundle)


def test_a_map_is_the_same_alone_and_in_a_batch(bundle: Bundle) -> None:
    """To 1e-4 of its maximum, of every class."""
    assert sanity.alone(bundle, 5) <= 1e-4


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-vit-mean", "tiny-cct", "tiny-hybrid"])
def test_one_weight_of_attention_moves_the_logits_as_the_gradient_says(models: Path, name: str) -> None:
    """In float64 and in eager PyTorch, one weight of one head changed at a time, of every layer and every class."""
    made = open_bundle(models / name / "1")
    assert sanity.one_weight(rebuild(made), graph_gradients(made), sanity.pictures(made, 1)) <= 1e-5

"""The benchmark of training compares like with like."""

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.training import Noise, Transformed, measure, summary
from export.recipe import load_recipe
from saccade.preprocess import normalize
from tests.conftest import tiny_recipe


def test_the_plain_loops_pictures_are_shifted_and_flipped_as_ours_are() -> None:
    """Each is one of the places and directions that ours can draw too, normalised alike."""
    spec = load_recipe("cifar10-cct").preprocessing
    examples = Noise(10)
    plain = Transformed(examples, load_recipe("cifar10-cct"))
    seen = set()
    for _ in range(30):
        tensor, label = plain[3]
        assert label == examples.labels[3]
        padded = np.pad(examples.pixels(3, spec), ((4, 4), (4, 4), (0, 0)), "reflect")
        (found,) = [
            (down, right, flipped)
            for down in range(9)
            for right in range(9)
            for flipped in (False, True)
            if np.allclose(
                normalize(padded[down : down + 32, right : right + 32][:, :: -1 if flipped else 1], spec),
                tensor,
                atol=1e-5,
            )
        ]
        seen.add(found)
    assert len(seen) > 20


def test_every_loop_takes_as_many_steps_and_the_best_plain_one_counts() -> None:
    """A figure for each loop and round; the ratio is to the fastest of the plain loops."""
    recipe = tiny_recipe("tiny-cct")
    preprocessing: Any = recipe.preprocessing.model_copy(update={"height": 32, "width": 32})
    seen = measure(recipe.model_copy(update={"preprocessing": preprocessing}), "cpu", 6, 2, [0])
    assert {name: len(speeds) for name, speeds in seen.items()} == {"ours": 2, "plain, 0 workers": 2}
    found = summary({"ours": [4.0, 6.0], "plain, 0 workers": [1.0, 1.0], "plain, 2 workers": [2.0, 2.0]})
    assert found["against"] == "plain, 2 workers"
    assert found["ratio"]["median"] == pytest.approx(2.5)
    assert torch.get_num_threads() == 1

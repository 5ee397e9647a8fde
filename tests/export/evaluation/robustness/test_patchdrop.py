"""PatchDrop hides what it says: so many patches, where the model looked, in the colour that means nothing."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from export.data import Digits
from export.evaluation.robustness.conditions import SHARES, Condition, conditions, mean_colour
from export.evaluation.robustness.looks import Looks
from export.evaluation.robustness.patchdrop import ORDERS, chosen, drop
from export.evaluation.robustness.randomness import generator
from export.reference import rebuild
from saccade.bundle import Bundle, open_bundle
from saccade.manifest import Preprocessing
from saccade.preprocess import normalize, resize
from tests.export.evaluation.robustness.conftest import Pixels

COLOUR = np.array([10, 20, 30], np.uint8)


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (5, 3), (16, 17)], ids=str)
def test_exactly_the_patches_that_are_named_are_hidden(picture: Pixels, grid: tuple[int, int]) -> None:
    """Pixel by pixel, where the grid divides the picture and where it does not."""
    dropped = np.arange(0, grid[0] * grid[1], 3)
    changed = drop(picture, grid, dropped, COLOUR)
    height, width = picture.shape[:2]
    for row, column in product(range(height), range(width)):
        patch = (row * grid[0] // height) * grid[1] + column * grid[1] // width
        expected = COLOUR if patch in dropped else picture[row, column]
        np.testing.assert_array_equal(changed[row, column], expected)


@pytest.mark.parametrize("order", ORDERS)
def test_a_share_is_that_share_of_the_patches(order: str) -> None:
    """From none to nine tenths; those of a small share are among those of a large one."""
    salience = generator(1, 1, "salience").random(64)
    before: set[int] = set()
    for share in SHARES:
        now = set(chosen(order, share, salience, generator(0, 7, "patchdrop_random")).tolist())  # type: ignore[arg-type]
        assert len(now) == round(64 * share)
        assert before <= now
        before = now
    assert (SHARES[0], SHARES[-1]) == (0, 0.9)


def test_nothing_dropped_is_the_picture(picture: Pixels) -> None:
    """To the bit."""
    np.testing.assert_array_equal(drop(picture, (4, 4), np.array([], np.int64), COLOUR), picture)


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_the_colour_is_zero_for_the_net(channels: str) -> None:
    """As near as a byte comes, whatever order the net takes its channels in."""
    spec = Preprocessing.model_validate(
        {
            "height": 4,
            "width": 4,
            "fit": "stretch",
            "mean": (0.2, 0.4, 0.9),
            "std": (0.2, 0.3, 0.1),
            "channels": channels,
        }
    )
    hidden = drop(np.full((4, 4, 3), 255, np.uint8), (1, 1), np.array([0]), mean_colour(spec))
    values = normalize(hidden, spec)
    assert (np.abs(values).max((1, 2)) <= 0.5 / 255 / np.array(spec.std) + 1e-6).all()


def dropped_patches(test: Condition, looks: Looks, bundle: Bundle, pixels: Pixels, salience: np.ndarray) -> list[int]:
    """Read from the pixels: patches that have the mean colour and had another."""
    spec = bundle.manifest.preprocessing
    changed = test.change(pixels, generator(0, 0, test.test), salience)
    assert looks.grid is not None
    rows, columns = looks.grid
    high, wide = spec.height // rows, spec.width // columns
    found = []
    for row, column in product(range(rows), range(columns)):
        patch = changed[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
        if (patch == mean_colour(spec)).all():
            found.append(row * columns + column)
        else:
            np.testing.assert_array_equal(
                patch, pixels[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
            )
    return found


def rollout_typed_anew(net: torch.nn.Module, images: torch.Tensor, bundle: Bundle) -> np.ndarray:
    """Abnar & Zuidema 2020 from the attention of the eager net: for a class token, its row of the product."""
    product_: np.ndarray | None = None
    for weights in net.explain(images).attention:  # type: ignore[operator]
        mixed = (weights[0].double().mean(0).numpy() + np.eye(weights.shape[-1])) / 2
        product_ = mixed if product_ is None else mixed @ product_
    assert product_ is not None
    return product_[0, 1:]


def class_map_typed_anew(net: torch.nn.Module, images: torch.Tensor, _: Bundle) -> np.ndarray:
    """Gradient times activation of the last feature map (Grad-CAM without its ReLU), for the label given."""
    outputs = net.explain(images)  # type: ignore[operator]
    label = int(outputs.logits.argmax())
    return (outputs.class_tokens[0] @ net.head.weight[label]).double().numpy()  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("name", "map_", "said"),
    [
        ("tiny-vit", rollout_typed_anew, "rollout"),
        ("tiny-resnet", class_map_typed_anew, "class map of the label given"),
    ],
)
def test_salient_patches_are_those_of_the_models_own_map(models: Path, name: str, map_: object, said: str) -> None:
    """Rollout typed anew from eager attention; without rollout, the class map of the label that the model gives."""
    bundle = open_bundle(models / name / "1")
    spec, looks, net = bundle.manifest.preprocessing, Looks(bundle), rebuild(bundle)
    tests = {(test.test, test.value): test for test in conditions(("patchdrop",), spec, looks.grid, has_map=True)}
    assert looks.salience == said
    for index in range(5):
        pixels = resize(Digits().test().picture(index), spec).copy()
        pixels[..., 0] |= 1  # no patch has the mean colour, 128 or 127, by itself
        pixels[..., 1] = 255 - pixels[..., 0]
        inputs = normalize(pixels[None], spec)
        salience = looks.look(inputs).salience
        assert salience is not None
        with torch.no_grad():
            expected = map_(net, torch.from_numpy(inputs), bundle)  # type: ignore[operator]
        for order, sign in (("salient", 1), ("non_salient", -1)):
            test = tests[f"patchdrop_{order}", 0.3]
            found = dropped_patches(test, looks, bundle, pixels, salience[0])
            assert len(found) == round(0.3 * expected.size)
            kept = np.delete(sign * expected, found)
            assert (sign * expected)[found].min() >= kept.max() - 1e-5

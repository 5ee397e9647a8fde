"""Mosaics show the pictures that they say, and nothing but the relation of two corners tells the halves apart."""

import pickle

import numpy as np
import pytest
from PIL import Image

from export.data import Digits
from export.evaluation.robustness.mosaics import Mosaics, whole
from export.examples import load
from saccade.errors import DataError
from saccade.manifest import Preprocessing
from saccade.preprocess import resize

SPEC = Preprocessing(height=12, width=16, fit="stretch", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.mark.parametrize("side", [2, 3])
def test_each_tile_is_the_picture_that_it_says(side: int) -> None:
    """At the size of the net, row by row, to the bit; with its class."""
    examples = Digits().test()
    mosaics = Mosaics(examples, SPEC, side, 6, seed=4)
    for index in range(6):
        pixels = np.asarray(mosaics.picture(index))
        assert pixels.shape == (side * 12, side * 16, 3)
        for place in range(side * side):
            row, column = divmod(place, side)
            tile = pixels[row * 12 : (row + 1) * 12, column * 16 : (column + 1) * 16]
            number = int(mosaics.tiles[index, place])
            np.testing.assert_array_equal(tile, resize(examples.picture(number), SPEC))
            assert examples.labels[number] == mosaics.tile_labels[index, place]


@pytest.mark.parametrize("side", [2, 3])
def test_half_of_them_share_a_class_in_opposite_corners(side: int) -> None:
    """The label says which; and each other tile's class is as likely in both halves, so that none gives it away."""
    mosaics = Mosaics(Digits().test(), SPEC, side, 4000, seed=0)
    first, last = mosaics.tile_labels[:, 0], mosaics.tile_labels[:, -1]
    np.testing.assert_array_equal(mosaics.labels, first == last)
    assert mosaics.labels.sum() == 2000
    assert (mosaics.tiles[:, 0] != mosaics.tiles[:, -1]).all()
    for place in range(side * side):
        for same in (0, 1):
            counts = np.bincount(mosaics.tile_labels[mosaics.labels == same, place], minlength=10)
            assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-squared of 9 degrees, 1 of 1000


def test_a_seed_fixes_them() -> None:
    """To the picture; another seed gives others."""
    examples = Digits().test()
    first, again, other = (Mosaics(examples, SPEC, 2, 20, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.tiles, again.tiles)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert (first.tiles != other.tiles).any()


def test_the_order_of_the_labels_changes_no_mosaic() -> None:
    """Bundles side by side see the same ones."""
    examples = Digits().test()
    renamed = examples.relabelled(np.arange(10)[::-1].copy())
    ours, theirs = Mosaics(examples, SPEC, 3, 20, seed=1), Mosaics(renamed, SPEC, 3, 20, seed=1)
    np.testing.assert_array_equal(ours.tiles, theirs.tiles)
    np.testing.assert_array_equal(ours.tile_labels, 9 - theirs.tile_labels)


def test_they_are_examples_to_train_on() -> None:
    """Read like any pictures, by worker processes too; nothing of a mosaic is cropped on its way to the net."""
    crop = Preprocessing(height=12, width=12, fit="crop", shortest_edge=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    mosaics = pickle.loads(pickle.dumps(Mosaics(Digits().test(), crop, 2, 4, seed=1)))
    pictures = load(mosaics, whole(crop))
    assert pictures.labels.tolist() == [0, 1, 0, 1]
    expected = np.asarray(mosaics.picture(0).resize((12, 12), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pictures.pixels[0], expected)


def test_too_few_pictures_are_told() -> None:
    """A class of one picture cannot be shown twice."""
    examples = Digits().test()
    ones = examples.choose(np.unique(examples.labels, return_index=True)[1])
    with pytest.raises(DataError, match="two classes of at least two pictures each, and there are 0"):
        Mosaics(ones, SPEC, 2, 4, seed=0)

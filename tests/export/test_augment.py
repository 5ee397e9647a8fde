"""Augmentation of a batch at once, against one picture and one pixel at a time."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from export.augment import Augment, Normalize, erase, flip_mask, shift_and_flip
from saccade.manifest import Preprocessing
from saccade.preprocess import normalize
from tests.conftest import tiny_recipe


def one_by_one(images: np.ndarray, flip: np.ndarray, shift: int, moves: np.ndarray) -> np.ndarray:
    """Pads with reflected edges, cuts the original size out at (down, right), then mirrors."""
    moved = np.empty_like(images)
    height, width = images.shape[2:]
    for index, image in enumerate(images):
        padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)), mode="reflect")
        down, right = moves[:, index]
        cut = padded[:, down : down + height, right : right + width]
        moved[index] = cut[:, :, ::-1] if flip[index] else cut
    return moved


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 11)])
@pytest.mark.parametrize("shift", [0, 1, 4])
def test_a_batch_is_augmented_as_its_pictures_would_be_alone(
    shift: int, height: int, width: int, dtype: torch.dtype
) -> None:
    """The fast form moves and mirrors each picture exactly, on its own account."""
    torch.manual_seed(shift)
    images = torch.randint(0, 256, (40, 3, height, width)).to(dtype)
    flip = torch.rand(40) < 0.5
    moves = shift + np.random.default_rng(5).integers(-shift, shift + 1, (2, 40, 1))
    seen = shift_and_flip(images, flip, shift, np.random.default_rng(5))
    assert seen.dtype == dtype
    np.testing.assert_array_equal(seen.numpy(), one_by_one(images.numpy(), flip.numpy(), shift, moves[..., 0]))


def test_every_move_within_the_limit_is_drawn_and_none_beyond() -> None:
    """A shift of 2 is five places each way."""
    images = torch.arange(9 * 9).reshape(1, 1, 9, 9).expand(500, 3, 9, 9).float()
    seen = shift_and_flip(images, torch.zeros(500, dtype=torch.bool), 2, np.random.default_rng(0))
    centres = seen[:, 0, 4, 4]
    rows, columns = centres // 9, centres % 9
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4, 5, 6}


def test_flips_alternate_from_epoch_to_epoch() -> None:
    """In any two epochs every picture is shown both ways; who starts which way is a coin's toss."""
    masks = [flip_mask(1_000, epoch, seed=3) for epoch in range(4)]
    for before, after in pairwise(masks):
        assert np.array_equal(before, ~after)
    assert 400 < masks[0].sum() < 600
    assert not np.array_equal(masks[0], flip_mask(1_000, 0, seed=4))


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_pictures_are_normalised_as_everywhere_else(channels: str) -> None:
    """Bit for bit what `saccade.preprocess.normalize` gives, in either order of channels."""
    spec = Preprocessing.model_validate(
        {
            "height": 16,
            "width": 16,
            "fit": "stretch",
            "channels": channels,
            "mean": (0.4, 0.5, 0.3),
            "std": (0.2, 0.3, 0.1),
        }
    )
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    seen = Normalize(spec, torch.device("cpu"))(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(seen.numpy(), normalize(pixels, spec))
    assert seen.is_contiguous(memory_format=torch.channels_last)


def test_a_rectangle_is_blanked_in_the_share_of_pictures_that_was_asked_for() -> None:
    """One rectangle a picture, of 2 to 33 % of its area but for what rounds to whole pixels; the rest is untouched."""
    images = torch.rand(2000, 3, 40, 50) + 0.1
    seen = erase(images, 0.25, np.random.default_rng(0))
    blank = (seen == 0).all(1)
    assert torch.equal(seen, images.masked_fill(blank[:, None], 0.0))
    erased = blank.any((1, 2))
    assert 400 < int(erased.sum()) < 600
    areas = blank[erased].double().mean((1, 2))
    assert 0.01 < float(areas.min()) < 0.04
    assert 0.30 < float(areas.max()) < 0.36
    for one in blank[erased][:50]:
        assert torch.equal(one, one.any(1)[:, None] & one.any(0))
    middles = torch.stack([blank[:, 0].any(1), blank[:, -1].any(1), blank[:, :, 0].any(1), blank[:, :, -1].any(1)])
    assert middles.any(1).all()  # it reaches every edge


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 2])
def test_a_recipe_decides_what_is_done_to_a_picture(shift: int, flip: bool) -> None:
    """Mirrored only where it says `flip`, moved only as far as its `shift`, and normalised; labels as they were."""
    recipe = tiny_recipe("tiny-cct", shift=shift, flip=flip)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    labels, mirrored = torch.arange(20), torch.arange(20) % 2 == 0
    pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    augment = Augment(recipe, 20, torch.device("cpu"))
    seen, targets = augment(pictures, labels, mirrored, 0, np.random.default_rng(1))
    moves = shift + np.random.default_rng(1).integers(-shift, shift + 1, (2, 20, 1))[..., 0]
    expected = one_by_one(pictures.numpy(), mirrored.numpy() & flip, shift, moves)
    np.testing.assert_array_equal(seen.numpy(), normalize(np.moveaxis(expected, 1, -1), recipe.preprocessing))
    assert torch.equal(targets, labels)

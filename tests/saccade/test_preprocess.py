"""What the manifest's preprocessing means, held against Pillow doing it step by step and the formula in float64."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from saccade.manifest import Preprocessing
from saccade.preprocess import normalize, preprocess, resize

SIZES = [(500, 375), (375, 500), (333, 257), (31, 97), (32, 32), (1, 1), (3, 2), (1, 400), (3000, 7), (641, 640)]


def spec(**fields: Any) -> Preprocessing:
    values = {"height": 32, "width": 32, "fit": "crop", "mean": (0.5,) * 3, "std": (0.5,) * 3, **fields}
    if values["fit"] == "crop":
        values.setdefault("shortest_edge", max(values["height"], values["width"]))
    return Preprocessing(**values)


def photograph(width: int, height: int) -> Image.Image:
    """Smooth shapes and noise."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(rows / (7 + 5 * k)) + np.cos(columns / (11 + 3 * k)) for k in range(3)], -1)
    grain = np.random.default_rng(0).normal(0, 12, waves.shape)
    return Image.fromarray(np.clip(128 + 50 * waves + grain, 0, 255).astype(np.uint8))


def resized_whole_then_cropped(picture: Image.Image, asked: Preprocessing) -> NDArray[np.uint8]:
    """The recipe of the field, in two steps of Pillow: shorter side to `shortest_edge`, then the middle."""
    edge, (width, height) = asked.shortest_edge, picture.size
    assert edge is not None
    size = (edge, edge * height // width) if width <= height else (edge * width // height, edge)
    whole = picture.resize(size, Image.Resampling[asked.interpolation.upper()])
    left, top = (size[0] - asked.width) // 2, (size[1] - asked.height) // 2
    return np.asarray(whole.crop((left, top, left + asked.width, top + asked.height)))


# Pillow rounds between its two passes, which Lanczos' negative lobes enlarge.
@pytest.mark.parametrize(("interpolation", "levels"), [("bilinear", 1), ("bicubic", 1), ("hamming", 1), ("lanczos", 2)])
@pytest.mark.parametrize("shape", [(32, 32, 32), (28, 28, 32), (24, 40, 47)])
@pytest.mark.parametrize("size", SIZES)
def test_crop_is_resize_then_crop(
    size: tuple[int, int], shape: tuple[int, int, int], interpolation: str, levels: int
) -> None:
    """Whoever trained with the usual two steps gets the same pixels, within rounding."""
    height, width, edge = shape
    asked = spec(height=height, width=width, shortest_edge=edge, interpolation=interpolation)
    picture = photograph(*size)
    difference = resize(picture, asked).astype(int) - resized_whole_then_cropped(picture, asked)
    assert np.abs(difference).max() <= levels


@pytest.mark.parametrize("shape", [(32, 32), (24, 40)])
@pytest.mark.parametrize("size", SIZES)
def test_stretch_is_resize(size: tuple[int, int], shape: tuple[int, int]) -> None:
    """The whole picture, its proportions given up, exactly as Pillow resizes it."""
    picture = photograph(*size)
    expected = np.asarray(picture.resize(shape[::-1], Image.Resampling.BILINEAR))
    assert np.array_equal(resize(picture, spec(height=shape[0], width=shape[1], fit="stretch")), expected)


@pytest.mark.parametrize(
    ("fit", "interpolation"),
    [
        *(("crop", name) for name in ("bilinear", "bicubic", "lanczos", "hamming")),
        *(("stretch", name) for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")),
    ],
)
def test_a_picture_of_the_right_size_is_left_alone(fit: str, interpolation: str) -> None:
    """CIFAR pictures reach a CIFAR net untouched."""
    picture = photograph(32, 32)
    assert np.array_equal(resize(picture, spec(fit=fit, interpolation=interpolation)), np.asarray(picture))


def test_a_stretch_with_a_crop_is_resize_then_crop() -> None:
    """As DeiT's own preprocessing does it: the whole picture to 40 x 48, then the middle 24 x 32; within rounding."""
    asked = spec(height=24, width=32, fit="stretch", stretch_to=(40, 48), interpolation="bicubic")
    for size in SIZES:
        picture = photograph(*size)
        whole = picture.resize((48, 40), Image.Resampling.BICUBIC)
        expected = np.asarray(whole.crop((8, 8, 40, 32)))
        assert np.abs(resize(picture, asked).astype(int) - expected).max() <= 1


def test_shrinking_averages_instead_of_skipping() -> None:
    """A fine checkerboard becomes grey, not a pattern that was never there."""
    board = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    small = resize(Image.fromarray(board).convert("RGB"), spec())
    assert np.abs(small.astype(int) - 127.5).max() <= 2


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    ],
)
def test_values_are_normalised_by_the_formula(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """(x / 255 - mean) / std for every level of every channel, within 1e-6 of float64."""
    levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2)
    expected = (levels.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    result = normalize(levels, spec(mean=mean, std=std))
    assert np.abs(result - expected.transpose(2, 0, 1)).max() < 1e-6


def test_the_input_is_channels_first_contiguous_float32() -> None:
    """What an engine takes as it is, red first."""
    red = Image.new("RGB", (90, 60), (255, 0, 0))
    result = preprocess(red, spec(height=24, width=40, shortest_edge=40))
    assert (result.shape, result.dtype, result.flags.c_contiguous) == ((3, 24, 40), np.float32, True)
    assert [float(channel.mean()) for channel in result] == [1.0, -1.0, -1.0]


def test_a_net_that_takes_blue_first_gets_it_first() -> None:
    """As MobileViT does; mean and std stand in the net's order, too."""
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    result = preprocess(red, spec(height=8, width=8, channels="BGR", mean=(0, 0, 0.5), std=(1, 1, 0.25)))
    assert [float(channel.mean()) for channel in result] == [0.0, 0.0, 2.0]


def test_a_batch_is_normalised_as_each_of_it() -> None:
    """Alone equals in a batch, to the last bit."""
    pictures = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), np.uint8)
    asked = spec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    together = normalize(pictures, asked)
    assert together.shape == (5, 3, 8, 6)
    assert together.flags.c_contiguous
    for alone, picture in zip(together, pictures, strict=True):
        assert np.array_equal(alone, normalize(picture, asked))


def test_the_picture_itself_is_never_changed() -> None:
    picture = photograph(32, 32)
    before = picture.tobytes()
    preprocess(picture, spec())
    assert picture.tobytes() == before


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_only_rgb_is_preprocessed(mode: str) -> None:
    """Whatever is not decoded yet is a mistake of the caller's code, and is named."""
    with pytest.raises(ValueError, match=f"not mode {mode}"):
        resize(Image.new(mode, (4, 4)), spec())

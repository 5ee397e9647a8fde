"""Preprocessing from a checkpoint's own file, held against the framework's own processor on all kinds of pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers.image_utils import load_image

from export.pretrained.preprocessing import preprocessing_of, processor_of
from saccade.decode import decode
from saccade.errors import DataError
from saccade.manifest import Preprocessing
from saccade.preprocess import preprocess
from tests.export import families
from tests.saccade.test_preprocess import photograph

# landscape, portrait, one pixel wide, one pixel high, the inputs' own sizes, tiny, odd, large
SIZES = [(96, 61), (61, 96), (1, 40), (40, 1), (48, 32), (32, 32), (64, 44), (96, 64), (3, 2), (333, 257), (1400, 1100)]


def spec_of(name: str) -> Preprocessing:
    """What an export of this family writes into the manifest, from the file that transformers writes."""
    written = families.processor(name).to_dict()
    return preprocessing_of(processor_of({"preprocessor_config.json": written}, "vit"))


def stored(picture: Image.Image, path: Path, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def ours(path: Path, spec: Preprocessing) -> NDArray[np.float32]:
    return preprocess(decode(path.read_bytes(), spec.background), spec)


def theirs(name: str, picture: Image.Image, **options: Any) -> NDArray[np.float32]:
    return np.asarray(families.processor(name)(picture, return_tensors="np", **options)["pixel_values"][0])


def cropped(spec: Preprocessing) -> bool:
    return spec.fit == "crop" or spec.stretch_to is not None


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_pixels_are_those_of_the_framework(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Within 1e-3. Where it crops, Pillow takes rows and columns of a part of the picture in another order than those
    of the whole, and rounds between: then one level of 255, when a picture is enlarged two, for some of the values.
    """
    spec = spec_of(name)
    path = stored(photograph(*size), tmp_path / "picture.png")
    difference = np.abs(ours(path, spec) - theirs(name, load_image(str(path))))
    if not cropped(spec):
        assert difference.max() < 1e-3
    levels = difference * 255 * np.array(spec.std)[:, None, None]
    assert levels.max() <= 2 + 1e-3
    assert (levels > 0.5).mean() <= 0.3
    assert (levels > 1.5).mean() <= 0.05


MODES: dict[str, Callable[[], tuple[Image.Image, dict[str, Any]]]] = {
    "L": lambda: (photograph(96, 61).convert("L"), {"format": "PNG"}),
    "1": lambda: (photograph(96, 61).convert("1"), {"format": "PNG"}),
    "P": lambda: (photograph(96, 61).convert("P"), {"format": "PNG"}),
    "RGBA": lambda: (photograph(96, 61).convert("RGBA"), {"format": "PNG"}),
    "LA": lambda: (photograph(96, 61).convert("LA"), {"format": "PNG"}),
    "CMYK": lambda: (photograph(96, 61).convert("CMYK"), {"format": "JPEG"}),
    "JPEG": lambda: (photograph(96, 61), {"format": "JPEG"}),
    **{
        f"turned {turn}": lambda turn=turn: (photograph(96, 61), {"format": "JPEG", "exif": orientation(turn)})
        for turn in range(1, 9)
    },
}  # fmt: skip


def orientation(number: int) -> Image.Exif:
    block = Image.Exif()
    block[274] = number
    return block


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_reaches_the_model_as_in_the_framework(mode: str, tmp_path: Path) -> None:
    """Grey, palette, opaque alpha, CMYK and EXIF's eight orientations: the framework's loader, then its processor."""
    picture, options = MODES[mode]()
    path = stored(picture, tmp_path / "picture", **options)
    difference = ours(path, spec_of("ViT")) - theirs("ViT", load_image(str(path)))
    assert np.abs(difference).max() < 1e-3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_white_as_where_the_framework_converts(mode: str, tmp_path: Path) -> None:
    """Its processors with do_convert_rgb lay transparency onto white, as we do; its loader alone drops it, and shows
    what the file hides. Rounding differs by one level at most.
    """
    picture = photograph(96, 61).convert("RGBA")
    picture.putalpha(Image.fromarray(np.linspace(0, 255, 96 * 61).reshape(61, 96).astype(np.uint8)))
    if mode == "P":
        picture = photograph(96, 61).convert("P")
        picture.info["transparency"] = int(np.bincount(np.asarray(picture).ravel()).argmax())
    path = stored(picture if mode == "P" else picture.convert(mode), tmp_path / "picture.png")
    spec = spec_of("ViT")
    with Image.open(path) as opened:
        expected = theirs("ViT", opened, do_convert_rgb=True)
    assert np.abs(ours(path, spec) - expected).max() * 255 * max(spec.std) <= 1 + 1e-3
    assert np.abs(ours(path, spec) - theirs("ViT", load_image(str(path)))).max() > 0.1


def test_sixteen_bits_are_scaled_where_the_framework_clips(tmp_path: Path) -> None:
    """Ours is the framework's on the picture with its levels rounded to 8 bits; its loader makes most of it white."""
    wide = (np.asarray(photograph(96, 61).convert("L")).astype(np.uint16)) * 257
    path = stored(Image.fromarray(wide), tmp_path / "picture.png")
    narrow = Image.fromarray((wide.astype(np.float64) / 257).round().astype(np.uint8)).convert("RGB")
    assert np.abs(ours(path, spec_of("ViT")) - theirs("ViT", narrow)).max() < 1e-3
    assert theirs("ViT", load_image(str(path))).mean() > 0.9


# As the published checkpoints have them, before transformers wrote every field: its classes fill in the rest.
PUBLISHED = [
    ("vit", {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224},
     {"height": 224, "width": 224, "fit": "stretch", "interpolation": "bilinear", "mean": (0.5,) * 3}),
    ("deit", {"feature_extractor_type": "DeiTFeatureExtractor", "crop_size": 224, "size": 256, "resample": 3},
     {"height": 224, "width": 224, "fit": "stretch", "stretch_to": (256, 256), "interpolation": "bicubic"}),
    ("resnet", {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "size": 224, "resample": 3},
     {"height": 224, "width": 224, "fit": "crop", "shortest_edge": 256, "interpolation": "bicubic"}),
    ("convnext", {"crop_pct": 0.95, "size": {"shortest_edge": 384}},
     {"height": 384, "width": 384, "fit": "stretch", "stretch_to": None}),
    ("mobilevit", {"feature_extractor_type": "MobileViTFeatureExtractor", "crop_size": 256, "size": 288, "resample": 2},
     {"height": 256, "width": 256, "shortest_edge": 288, "channels": "BGR", "mean": (0.0,) * 3, "std": (1.0,) * 3}),
    ("dinov2", {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "crop_size": 224},
     {"height": 224, "width": 224, "shortest_edge": 256, "interpolation": "bicubic"}),
    ("swin", {"image_processor_type": "ViTImageProcessorFast", "size": 224, "resample": 3},
     {"height": 224, "width": 224, "fit": "stretch", "interpolation": "bicubic"}),
    ("vit", {"do_rescale": False, "do_normalize": False, "size": 16},
     {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}),
    ("vit", {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0, "size": 16},
     {"mean": (pytest.approx(0.5),) * 3, "std": (pytest.approx(0.5),) * 3}),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "content", "expected"), PUBLISHED)
def test_files_of_all_ages_are_read(model_type: str, content: dict[str, Any], expected: dict[str, Any]) -> None:
    """Whole numbers for sizes, feature extractors, missing fields: what the framework makes of them."""
    spec = preprocessing_of(processor_of({"preprocessor_config.json": content}, model_type))
    assert {name: getattr(spec, name) for name in expected} == expected


def test_the_processor_of_a_combined_file_is_found() -> None:
    """processor_config.json holds it under image_processor, and goes first."""
    files = {"processor_config.json": {"image_processor": {"size": 48}}, "preprocessor_config.json": {"size": 32}}
    assert preprocessing_of(processor_of(files, "vit")).height == 48


REFUSED = [
    ({"image_processor_type": "SegformerImageProcessor"}, "prepared by SegformerImageProcessor; supported are Beit"),
    ({"do_resize": False}, r"does not resize \(do_resize is false\)"),
    ({"do_pad": True}, r"pads pictures \(do_pad\)"),
    ({"size": {"shortest_edge": 32}}, "keeps proportions and crops nothing"),
    ({"size": {"shortest_edge": 32, "longest_edge": 64}}, r"resizes to \{'longest_edge': 64, 'shortest_edge': 32\}"),
    ({"size": 32, "do_center_crop": True, "crop_size": 40}, "resizes to 32 x 32 and crops to 40 x 40, which pads"),
    ({"resample": 9}, "has resample 9"),
    ({"size": 40, "do_center_crop": True, "crop_size": 32, "resample": 0}, "a crop needs a smooth interpolation"),
    ({"image_std": [0.0, 1.0, 1.0]}, "std must be positive"),
    ({"image_processor_type": "ConvNextImageProcessor", "size": 32, "do_center_crop": True}, "crops twice"),
    ({"resample": "bicubic"}, "has resample 'bicubic'; Pillow has 0 to 5"),
    ({"resample": [2]}, r"has resample \[2\]; Pillow has 0 to 5"),
    ({"rescale_factor": 0}, "has rescale_factor 0, which must be a number of at least 1e-06"),
    ({"rescale_factor": "abc"}, "has rescale_factor 'abc', which must be a number"),
    ({"rescale_factor": 10**400}, "has rescale_factor 1000+, which must be a number"),
    ({"rescale_factor": None}, "has rescale_factor None, which must be a number"),
    ({"image_mean": "abc"}, "has image_mean 'abc', which must be a number"),
    ({"image_mean": [0.5, 0.5]}, r"has image_mean [\[(]0\.5, 0\.5[\])], which must be a number or three of them"),
    ({"image_std": [0.5, float("nan"), 0.5]}, "has image_std nan, which must be a number"),
    ({"image_processor_type": "ConvNextImageProcessor", "size": 32, "crop_pct": None}, "has crop_pct None, which must"),
    ({"image_processor_type": "ConvNextImageProcessor", "size": 32, "crop_pct": 0}, "has crop_pct 0, which must be a"),
    ({"size": {"height": "a", "width": 32}}, r"has size\.height 'a', which must be a whole number of pixels"),
    (
        {"size": 32, "do_center_crop": True, "crop_size": {"height": "a", "width": 3}},
        r"has crop_size\.height 'a', which",
    ),
]


@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_what_the_manifest_has_no_word_for_is_refused_by_name(content: dict[str, Any], message: str) -> None:
    """A model is never served other pixels than it was made for."""
    with pytest.raises(DataError, match=message):
        preprocessing_of(processor_of({"preprocessor_config.json": content}, "vit"))


def test_a_checkpoint_that_does_not_say_how_is_refused() -> None:
    with pytest.raises(DataError, match=r"has no preprocessor_config\.json"):
        processor_of({}, "vit")

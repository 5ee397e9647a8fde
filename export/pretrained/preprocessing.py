"""A checkpoint's processor -> the manifest's preprocessing: how the framework prepares pictures, in our words.

The framework's own class (transformers/models/*/image_processing_pil_*.py) fills in what the file leaves out. What the
manifest cannot say is refused by its name: a model that sees other pixels than it was trained on answers wrongly, and
nobody is told.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from export.pretrained.library import transformers
from saccade.errors import DataError, first_problem
from saccade.manifest import Preprocessing

FILES = ("processor_config.json", "preprocessor_config.json")

_INTERPOLATION = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By Pillow's number."""

_OF_MODEL = {
    "vit": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
    "beit": "BeitImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "swin": "ViTImageProcessor",
    "swinv2": "ViTImageProcessor",
    "resnet": "ConvNextImageProcessor",
    "convnext": "ConvNextImageProcessor",
    "convnextv2": "ConvNextImageProcessor",
    "mobilevit": "MobileViTImageProcessor",
}
"""Model type -> its processor, where the file names none: as transformers.AutoImageProcessor has it."""

WARPED_FROM = 384
"""ConvNextImageProcessor stretches to this edge and beyond, and crops below it."""


def processor_of(files: Mapping[str, Any], model_type: str) -> Any:
    """The framework's processor, made from the JSON in `files` (name -> content). Raises DataError."""
    content = (files.get(FILES[0]) or {}).get("image_processor") or files.get(FILES[1])
    if not isinstance(content, dict):
        raise DataError(
            f"the checkpoint has no {FILES[1]}: without it nobody knows how its pictures are resized and normalised"
        )
    name = _class_name(content, model_type)
    if name not in _STEPS:
        raise DataError(f"the checkpoint's pictures are prepared by {name}; supported are {', '.join(sorted(_STEPS))}")
    processors = transformers()
    known = {key: value for key, value in content.items() if key != "auto_map"}
    try:
        return getattr(processors, f"{name}Pil").from_dict(known)
    except Exception as error:  # it raises nearly everything for values of another kind
        raise DataError(f"the checkpoint's {name} has values that transformers refuses: {error}") from error


def preprocessing_of(processor: Any) -> Preprocessing:
    """What the manifest says in its place. Raises DataError for what it has no word for."""
    steps = _STEPS[type(processor).__name__.removesuffix("Pil")]
    if getattr(processor, "do_pad", None):
        raise DataError("the checkpoint's processor pads pictures (do_pad), which the manifest has no word for")
    number = 2 if processor.resample is None else processor.resample
    if number not in range(len(_INTERPOLATION)):
        raise DataError(
            f"the checkpoint's processor has resample {number!r}; Pillow has 0 to {len(_INTERPOLATION) - 1}"
        )
    try:
        return Preprocessing.model_validate({**steps(processor), "interpolation": _INTERPOLATION[int(number)]})
    except ValidationError as error:
        raise DataError(
            f"the manifest has no word for the checkpoint's preprocessing: {first_problem(error)}"
        ) from error


def _class_name(content: Mapping[str, Any], model_type: str) -> str:
    stated = content.get("image_processor_type") or content.get("feature_extractor_type") or _OF_MODEL.get(model_type)
    name = str(stated).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    return name.replace("ConvNeXT", "ConvNext")


def _usual(processor: Any) -> dict[str, Any]:
    """Resize, crop, rescale, normalise: ViT, DeiT, BEiT, BiT and CLIP."""
    return {**_resize_and_crop(processor), **_normalization(processor)}


def _convnext(processor: Any) -> dict[str, Any]:
    """Below 384 the shorter side becomes `edge / crop_pct` and the middle is taken; from there on it is stretched."""
    edge = processor.size.shortest_edge
    if not processor.do_resize or edge is None:
        raise DataError(
            f"ConvNextImageProcessor needs do_resize and size.shortest_edge; size is {dict(processor.size)}"
        )
    if processor.do_center_crop:
        raise DataError("ConvNextImageProcessor with do_center_crop crops twice, which the manifest has no word for")
    edge = _edge("size.shortest_edge", edge)
    shape = {"height": edge, "width": edge}
    if edge >= WARPED_FROM:
        return {**shape, "fit": "stretch", **_normalization(processor)}
    resized = int(edge / _number("crop_pct", processor.crop_pct, least=0.01))
    return {**shape, "fit": "crop", "shortest_edge": resized, **_normalization(processor)}


def _mobilevit(processor: Any) -> dict[str, Any]:
    """MobileViT's own class never normalises, whatever do_normalize says; it turns RGB into BGR."""
    channels = "BGR" if processor.do_flip_channel_order else "RGB"
    return {**_resize_and_crop(processor), **_normalization(processor, normalizes=False), "channels": channels}


def _resize_and_crop(processor: Any) -> dict[str, Any]:
    size = {key: _edge(f"size.{key}", value) for key, value in dict(processor.size or {}).items() if value is not None}
    crop = None
    if processor.do_center_crop:
        given = dict(processor.crop_size or {})
        crop = (_edge("crop_size.height", given.get("height")), _edge("crop_size.width", given.get("width")))
    if not processor.do_resize:
        raise DataError("the checkpoint's processor does not resize (do_resize is false): pictures come in every size")
    if set(size) == {"height", "width"}:
        to = (size["height"], size["width"])
        height, width = crop or to
        _check_no_padding((height, width), to)
        stretched = {"stretch_to": to} if (height, width) != to else {}
        return {"height": height, "width": width, "fit": "stretch", **stretched}
    if set(size) == {"shortest_edge"} and crop is not None:
        _check_no_padding(crop, (size["shortest_edge"],) * 2)
        return {"height": crop[0], "width": crop[1], "fit": "crop", "shortest_edge": size["shortest_edge"]}
    if set(size) == {"shortest_edge"}:
        raise DataError(
            "the checkpoint's processor keeps proportions and crops nothing (size.shortest_edge without "
            "do_center_crop): pictures would come in every size"
        )
    raise DataError(
        f"the checkpoint's processor resizes to {size}; the manifest has words for height and width, and for "
        "shortest_edge"
    )


def _check_no_padding(crop: tuple[int, int], resized: tuple[int, int]) -> None:
    if crop[0] > resized[0] or crop[1] > resized[1]:
        raise DataError(
            f"the checkpoint's processor resizes to {resized[0]} x {resized[1]} and crops to {crop[0]} x {crop[1]}, "
            "which pads with black: the manifest has no word for it"
        )


def _normalization(processor: Any, *, normalizes: bool | None = None) -> dict[str, Any]:
    """Mean and std of values from 0 to 1, such that they give (level * rescale_factor - mean) / std."""
    factor = 255.0
    if processor.do_rescale:
        factor *= _number("rescale_factor", processor.rescale_factor, least=1e-6)
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if processor.do_normalize if normalizes is None else normalizes:
        mean, std = _three("image_mean", processor.image_mean), _three("image_std", processor.image_std)
    return {"mean": tuple(m / factor for m in mean), "std": tuple(s / factor for s in std)}


def _three(key: str, values: Any) -> tuple[float, ...]:
    several = values if isinstance(values, (list, tuple)) else [values] * 3
    if len(several) != 3:
        raise DataError(f"the checkpoint's processor has {key} {values!r}, which must be a number or three of them")
    return tuple(_number(key, value) for value in several)


def _number(key: str, value: Any, least: float = -sys.float_info.max) -> float:
    if isinstance(value, (int, float)) and least <= value <= sys.float_info.max:  # which NaN is not
        return float(value)
    bound = f" of at least {least:g}" if least > 0 else ""
    raise DataError(f"the checkpoint's processor has {key} {value!r}, which must be a number{bound}")


def _edge(key: str, value: Any) -> int:
    if isinstance(value, int) and value >= 1:
        return value
    raise DataError(f"the checkpoint's processor has {key} {value!r}, which must be a whole number of pixels")


_STEPS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "ViTImageProcessor": _usual,
    "DeiTImageProcessor": _usual,
    "BeitImageProcessor": _usual,
    "BitImageProcessor": _usual,
    "CLIPImageProcessor": _usual,
    "ConvNextImageProcessor": _convnext,
    "MobileViTImageProcessor": _mobilevit,
}

"""The families that `saccade export --from-transformers` takes, each as a small model with seeded weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

LABELS = ("cat", "dog", "fox", "hen", "owl")

_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "patch_size": 8}
_SWIN = {"patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "mlp_ratio": 2.0}
_CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
_STRETCH = {"size": {"height": 32, "width": 48}}
_CONVNEXT_CROP = {"size": {"shortest_edge": 32}, "crop_pct": 0.875}


class Family(NamedTuple):
    """One row of the table."""

    architecture: str
    configuration: dict[str, Any]
    processor: str
    preprocessing: dict[str, Any]
    size: tuple[int, int]


FAMILIES: dict[str, Family] = {
    "ViT": Family("ViTForImageClassification", {**_VIT, "image_size": (32, 48)}, "ViT", _STRETCH, (32, 48)),
    "DeiT": Family(
        "DeiTForImageClassification", {**_VIT, "image_size": 32}, "DeiT",
        {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}}, (32, 32),
    ),
    "DeiT, distilled": Family(
        "DeiTForImageClassificationWithTeacher", {**_VIT, "image_size": (32, 48)}, "DeiT",
        {"size": {"height": 37, "width": 53}, "crop_size": {"height": 32, "width": 48}}, (32, 48),
    ),
    "BEiT": Family(
        "BeitForImageClassification",
        {**_VIT, "image_size": (32, 48), "use_relative_position_bias": True, "use_mean_pooling": True},
        "Beit", _STRETCH, (32, 48),
    ),
    "BEiT, class token": Family(
        "BeitForImageClassification",
        {**_VIT, "image_size": 32, "use_shared_relative_position_bias": True, "use_mean_pooling": False},
        "Beit", {"size": {"height": 40, "width": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        (32, 32),
    ),
    "DINOv2": Family(
        "Dinov2ForImageClassification", {**_VIT, "image_size": 48, "mlp_ratio": 2}, "Bit",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}, (32, 32),
    ),
    "DINOv2 with registers": Family(
        "Dinov2WithRegistersForImageClassification",
        {**_VIT, "image_size": 32, "mlp_ratio": 2, "num_register_tokens": 3}, "Bit",
        {"size": {"shortest_edge": 52}, "crop_size": {"height": 32, "width": 48}}, (32, 48),
    ),
    "Swin": Family(
        "SwinForImageClassification", {**_SWIN, "image_size": (44, 64)}, "ViT",
        {"size": {"height": 44, "width": 64}, "resample": 3}, (44, 64),
    ),
    "Swin V2": Family(
        "Swinv2ForImageClassification", {**_SWIN, "image_size": 32}, "ViT",
        {"size": {"height": 32, "width": 32}, "resample": 3}, (32, 32),
    ),
    "ResNet": Family(
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}, "ConvNext",
        _CONVNEXT_CROP, (32, 32),
    ),
    "ConvNeXt": Family("ConvNextForImageClassification", _CONVNEXT, "ConvNext", _CONVNEXT_CROP, (32, 32)),
    "ConvNeXt V2": Family("ConvNextV2ForImageClassification", _CONVNEXT, "ConvNext", _CONVNEXT_CROP, (32, 32)),
    "MobileViT": Family(
        "MobileViTForImageClassification",
        {"image_size": 64, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
         "num_attention_heads": 2, "mlp_ratio": 2.0},
        "MobileViT",
        {"size": {"shortest_edge": 100}, "crop_size": {"height": 64, "width": 96}, "resample": 2}, (64, 96),
    ),
}  # fmt: skip


def model(name: str, *, seed: int = 0, **changes: Any) -> nn.Module:
    """One of FAMILIES in evaluation mode, with weights that make attention uneven and norms count."""
    import transformers

    family = FAMILIES[name]
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    model_class = getattr(transformers, family.architecture)
    torch.manual_seed(seed)
    made = model_class(model_class.config_class(**{**family.configuration, **labels, **changes}))
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
            if key.startswith("mobilevit") and key.endswith("normalization.weight"):
                parameter.add_(1)  # MobileViT begins with norms near 0, behind which all pictures look alike
        for key, buffer in made.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + (0.5 if key.endswith("var") else -0.5))
    return made.eval()


def processor(name: str) -> Any:
    """The framework's own processor of one of FAMILIES."""
    import transformers

    family = FAMILIES[name]
    return getattr(transformers, f"{family.processor}ImageProcessorPil")(**family.preprocessing)


def save(name: str, folder: Path, made: nn.Module | None = None) -> Path:
    """A checkpoint of one of FAMILIES as transformers writes it; the folder."""
    saved: Any = model(name) if made is None else made
    with quiet():
        saved.save_pretrained(folder)
    processor(name).save_pretrained(folder)
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """Without the framework's progress bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()

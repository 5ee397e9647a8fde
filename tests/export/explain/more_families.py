"""Families of transformers with attention, as small models with seeded weights, more than `tests.export.families`."""

from typing import Any

import torch
from torch import nn

from tests.export import families

_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "patch_size": 8,
        "image_size": 32}  # fmt: skip
_STAGES = {"depths": [1, 1], "num_encoder_blocks": 2, "sr_ratios": [2, 1], "sequence_reduction_ratios": [2, 1],
           "hidden_sizes": [16, 32], "patch_sizes": [4, 2], "strides": [4, 2], "num_attention_heads": [1, 2],
           "mlp_ratios": [2, 2], "image_size": 32}  # fmt: skip
_MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "SigLIP": ("SiglipForImageClassification", {"vision_config": _VIT}),
    "PVT": ("PvtForImageClassification", _STAGES),
    "PVT V2": ("PvtV2ForImageClassification", _STAGES),
    "SegFormer": ("SegformerForImageClassification", {**_STAGES, "decoder_hidden_size": 32}),
    "LeViT": ("LevitForImageClassification", {
        "image_size": 32, "hidden_sizes": [16, 16, 24], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
        "key_dim": [8, 8, 8], "patch_size": 16, "attention_ratio": [2, 2, 2], "kernel_size": 3, "stride": 2,
    }),
    "I-JEPA": ("IJepaForImageClassification", _VIT),
    "ViT MSN": ("ViTMSNForImageClassification", _VIT),
    "Hiera": ("HieraForImageClassification", {
        "embed_dim": 16, "image_size": [32, 32], "patch_size": [7, 7], "patch_stride": [4, 4], "patch_padding": [3, 3],
        "depths": [1, 2], "num_heads": [1, 2], "mlp_ratio": 2.0, "query_stride": [2, 2], "num_query_pool": 1,
        "masked_unit_size": [4, 4], "masked_unit_attention": [True, False],
    }),
    "MobileViT V2": ("MobileViTV2ForImageClassification", {"image_size": 64, "width_multiplier": 0.25,
        "base_attn_unit_dims": [32, 48, 64], "n_attn_blocks": [1, 1, 1]}),
}  # fmt: skip

NAMES = (*(name for name in families.FAMILIES if name not in ("ResNet", "ConvNeXt", "ConvNeXt V2")), *_MORE)


def size(name: str) -> tuple[int, int]:
    if name in families.FAMILIES:
        return families.FAMILIES[name].size
    return (64, 64) if name == "MobileViT V2" else (32, 32)


def model(name: str) -> nn.Module:
    """In evaluation mode, with attention by softmax, and weights that make it uneven."""
    import transformers

    if name in families.FAMILIES:
        made: Any = families.model(name)
    else:
        architecture, configuration = _MORE[name]
        model_class = getattr(transformers, architecture)
        torch.manual_seed(0)
        made = model_class(model_class.config_class(**configuration, num_labels=len(families.LABELS))).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for key, buffer in made.named_buffers():
                if buffer.is_floating_point() and "running" in key:
                    buffer.copy_(torch.rand_like(buffer) + (0.5 if key.endswith("var") else -0.5))
    made.set_attn_implementation("eager")
    return made.eval()

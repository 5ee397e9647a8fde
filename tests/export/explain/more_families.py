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
_LEVIT = {"image_size": 112, "hidden_sizes": [16, 16, 24], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
          "key_dim": [8, 8, 8], "patch_size": 16, "attention_ratio": [2, 2, 2], "kernel_size": 3,
          "stride": 2}  # fmt: skip
_TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
         "vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}  # fmt: skip
_PERCEIVER = {"num_latents": 8, "d_latents": 32, "d_model": 32, "num_blocks": 1, "num_self_attends_per_block": 2,
              "num_self_attention_heads": 4, "num_cross_attention_heads": 1, "image_size": 32}  # fmt: skip
_SMALL = {"hidden_sizes": [8, 16], "depths": [1, 1]}
_MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "Swin, one window at the end": ("SwinForImageClassification", {"image_size": 56, "patch_size": 4, "embed_dim": 16,
        "depths": [2, 2], "num_heads": [2, 4], "window_size": 7, "mlp_ratio": 2.0}),
    "SigLIP": ("SiglipForImageClassification", {"vision_config": _VIT}),
    "PVT": ("PvtForImageClassification", _STAGES),
    "PVT V2": ("PvtV2ForImageClassification", {**_STAGES, "depths": [1, 2]}),
    "SegFormer": ("SegformerForImageClassification", {**_STAGES, "depths": [1, 2], "decoder_hidden_size": 32}),
    "LeViT": ("LevitForImageClassification", _LEVIT),
    "LeViT, distilled": ("LevitForImageClassificationWithTeacher", _LEVIT),
    "I-JEPA": ("IJepaForImageClassification", _VIT),
    "ViT MSN": ("ViTMSNForImageClassification", _VIT),
    "Hiera": ("HieraForImageClassification", {
        "embed_dim": 16, "image_size": [32, 32], "patch_size": [7, 7], "patch_stride": [4, 4], "patch_padding": [3, 3],
        "depths": [1, 2], "num_heads": [1, 2], "mlp_ratio": 2.0, "query_stride": [2, 2], "num_query_pool": 1,
        "masked_unit_size": [4, 4], "masked_unit_attention": [True, False],
    }),
    "MobileViT V2": ("MobileViTV2ForImageClassification", {"image_size": 64, "width_multiplier": 0.25,
        "base_attn_unit_dims": [32, 48, 64], "n_attn_blocks": [1, 1, 1]}),
    "CLIP": ("CLIPForImageClassification", {"vision_config": _VIT, "text_config": _TEXT}),
    "MetaCLIP 2": ("MetaClip2ForImageClassification", {"vision_config": _VIT, "text_config": _TEXT}),
    "SigLIP 2": ("Siglip2ForImageClassification", {"vision_config": {**_VIT, "num_patches": 16}}),
    "Data2Vec": ("Data2VecVisionForImageClassification", {**_VIT, "use_relative_position_bias": True,
        "attn_implementation": "eager"}),
    "CvT": ("CvtForImageClassification", {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3],
        "drop_path_rate": [0.0, 0.0, 0.0]}),
    "Donut Swin": ("DonutSwinForImageClassification", {"image_size": 32, "patch_size": 4, "embed_dim": 16,
        "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "mlp_ratio": 2.0}),
    "SwiftFormer": ("SwiftFormerForImageClassification", {"image_size": 160, "embed_dims": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1], "mlp_ratio": 2}),
    "Perceiver, learned": ("PerceiverForImageClassificationLearned", _PERCEIVER),
    "Perceiver, Fourier": ("PerceiverForImageClassificationFourier", _PERCEIVER),
    "Perceiver, convolution": ("PerceiverForImageClassificationConvProcessing", _PERCEIVER),
    "DiNAT": ("DinatForImageClassification", {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}),
    "ImageGPT": ("ImageGPTForImageClassification", {"n_embd": 16, "n_layer": 1, "n_head": 2}),
    "timm": ("TimmWrapperForImageClassification", {"architecture": "vit_tiny_patch16_224"}),
    "BiT": ("BitForImageClassification", {**_SMALL, "embedding_size": 8, "num_groups": 4}),
    "EfficientNet": ("EfficientNetForImageClassification", {"image_size": 64, "width_coefficient": 0.25,
        "depth_coefficient": 0.25, "hidden_dim": 320}),
    "FocalNet": ("FocalNetForImageClassification", {"image_size": 64, "embed_dim": 8, **_SMALL,
        "focal_levels": [2, 2], "focal_windows": [3, 3]}),
    "HGNet V2": ("HGNetV2ForImageClassification", {"embedding_size": 8, "depths": [1, 1], "hidden_sizes": [16, 16],
        "stem_channels": [3, 8, 8], "stage_in_channels": [8, 16], "stage_mid_channels": [8, 8],
        "stage_out_channels": [16, 16], "stage_num_blocks": [1, 1], "stage_downsample": [False, True],
        "stage_downsample_strides": [2, 2], "stage_light_block": [False, True], "stage_kernel_size": [3, 3],
        "stage_numb_of_layers": [2, 2]}),
    "MobileNet V1": ("MobileNetV1ForImageClassification", {"image_size": 64, "depth_multiplier": 0.25}),
    "MobileNet V2": ("MobileNetV2ForImageClassification", {"image_size": 64, "depth_multiplier": 0.25}),
    "PoolFormer": ("PoolFormerForImageClassification", {"num_encoder_blocks": 2, **_SMALL, "patch_sizes": [7, 3],
        "strides": [4, 2], "padding": [2, 1]}),
    "PP-LCNet": ("PPLCNetForImageClassification", {"scale": 0.25, "class_expand": 32}),
    "RegNet": ("RegNetForImageClassification", {**_SMALL, "embedding_size": 8, "groups_width": 4}),
    "TextNet": ("TextNetForImageClassification", {"stem_out_channels": 8, "hidden_sizes": [8, 8, 16, 16, 16]}),
}  # fmt: skip

_SIZES = {"CvT": 64, "BiT": 64, "HGNet V2": 64, "PoolFormer": 64, "PP-LCNet": 96, "RegNet": 64, "TextNet": 96}
"""Of pictures, where the configuration does not say."""

NAMES = (*families.FAMILIES, *_MORE)


def size(name: str) -> tuple[int, int]:
    if name in families.FAMILIES:
        return families.FAMILIES[name].size
    edge = _MORE[name][1].get("image_size", _SIZES.get(name, 32))
    return (edge, edge) if isinstance(edge, int) else tuple(edge)


def architecture(name: str) -> str:
    """Its class in transformers."""
    return families.FAMILIES[name].architecture if name in families.FAMILIES else _MORE[name][0]


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

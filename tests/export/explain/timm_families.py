"""Families of timm as small models with seeded weights: those with attention, and some without."""

from typing import Any

import torch
from torch import nn

from tests.export import families

_VIT = {"depth": 2, "embed_dim": 32, "num_heads": 4, "img_size": (32, 48), "patch_size": 8}
_STAGES = {"img_size": 128, "depths": (1, 1, 1, 2), "embed_dims": (16, 16, 32, 32), "num_heads": (1, 1, 2, 2)}
_WINDOWS = {"img_size": 64, "window_size": 8, "depths": (2, 2), "embed_dim": 16, "num_heads": (2, 4)}
_HYBRID = {"depth": 2, "embed_dim": 32, "num_heads": 4, "img_size": 64}
_LEVIT = {"embed_dim": (16, 16, 24), "num_heads": (2, 2, 2), "depth": (1, 1, 1), "key_dim": 8}
_PIT = {"img_size": 64, "base_dims": (8, 8, 8), "depth": (1, 1, 2), "heads": (1, 2, 4)}
_COAT = {"img_size": 64, "serial_depths": (1, 1, 1, 1)}
_TNT = {"img_size": 64, "depth": 2, "embed_dim": 48, "inner_dim": 8, "num_heads_outer": 2, "num_heads_inner": 2}
_VISFORMER = {"img_size": 64, "depth": (2, 1, 1), "init_channels": 8, "embed_dim": 48, "num_heads": 2}

_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit_tiny_patch16_224", _VIT),
    "ViT, mean": ("vit_base_patch16_siglip_gap_224", _VIT),
    "ViT, pooled by attention (SigLIP)": ("vit_base_patch16_siglip_224", _VIT),
    "ViT behind ResNet": ("vit_tiny_r_s16_p8_224", _HYBRID),
    "ViT, relative positions": ("vit_relpos_small_patch16_224", _VIT),
    "DeiT": ("deit_tiny_patch16_224", _VIT),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", _VIT),
    "DeiT III": ("deit3_small_patch16_224", _VIT),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", _VIT),
    "DINOv3": ("vit_tiny_patch16_dinov3_qkvb", _VIT),
    "FlexiViT": ("flexivit_small", _VIT),
    "NaFlexViT": ("naflexvit_base_patch16_gap", {name: _VIT[name] for name in _VIT if name != "img_size"}),
    "EVA": ("eva_large_patch14_196", _VIT),
    "EVA-02": ("eva02_tiny_patch14_224", _VIT),
    "BEiT": ("beit_base_patch16_224", _VIT),
    "BEiT v2": ("beitv2_base_patch16_224", _VIT),
    "BEiT-3": ("beit3_base_patch16_224", _VIT),
    "DeepSeek ViT": ("deepseek_vit_412m", _VIT),
    "Gemma 4 ViT": ("gemma4_vit_167m", _VIT),
    "Qwen3 ViT": ("qwen3_vit_88m", _VIT),
    "SAM ViT": ("samvit_base_patch16_224", {**_VIT, "img_size": 64, "window_size": 4, "global_attn_indexes": (1,)}),
    "CaiT": ("cait_xxs24_224", _VIT),
    "XCiT": ("xcit_nano_12_p16_224", _HYBRID),
    "CrossViT": ("crossvit_tiny_240", {"depth": ((1, 2, 0),), "embed_dim": (16, 32), "num_heads": (2, 2)}),
    "ConViT": ("convit_tiny", {**_VIT, "img_size": 32}),
    "LeViT": ("levit_128s", _LEVIT),
    "LeViT, convolutions": ("levit_conv_128s", _LEVIT),
    "PiT": ("pit_ti_224", _PIT),
    "PiT, distilled": ("pit_ti_distilled_224", _PIT),
    "PVT v2": ("pvt_v2_b0", {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 40, 64)}),
    "Twins-PCPVT": ("twins_pcpvt_small", _STAGES),
    "Twins-SVT": ("twins_svt_small", {**_STAGES, "img_size": 224}),
    "MobileViT": ("mobilevit_xxs", {"img_size": 64}),
    "MobileViT v2": ("mobilevitv2_050", {"img_size": 64}),
    "MobileNet v4, hybrid": ("mobilenetv4_hybrid_medium_075", {}),
    "FastViT, attention": ("fastvit_sa12", {"layers": (1, 1, 1, 2), "embed_dims": (16, 32, 32, 64)}),
    "EfficientFormer": ("efficientformer_l1", {"depths": (1, 1, 1, 2), "embed_dims": (16, 16, 32, 64)}),
    "EfficientFormer v2": ("efficientformerv2_s0", {"depths": (1, 1, 2, 2), "embed_dims": (16, 16, 32, 64)}),
    "Swin": ("swin_tiny_patch4_window7_224", _WINDOWS),
    "Swin v2": ("swinv2_tiny_window8_256", _WINDOWS),
    "Swin v2, Christoph Reich's": ("swinv2_cr_tiny_224", _WINDOWS),
    "MaxViT": ("test_maxvit", {}),
    "CoAtNet": ("test_coatnet", {}),
    "CoaT": ("coat_lite_tiny", {**_COAT, "embed_dims": (16, 16, 32, 32)}),
    "CoaT, parallel": ("coat_tiny", {**_COAT, "embed_dims": (32,) * 4, "parallel_depth": 2}),
    "NesT": ("nest_tiny", {"img_size": 64}),
    "TNT": ("tnt_s_patch16_224", _TNT),
    "Visformer": ("visformer_tiny", _VISFORMER),
    "DaViT": ("davit_tiny", {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32), "num_heads": (1, 1, 2, 2)}),
    "CAFormer": ("caformer_s18", {}),
    "EdgeNeXt": ("edgenext_xx_small", {}),
    "EfficientViT, cascaded groups": ("efficientvit_m0", {}),
    "EfficientViT, linear attention": ("efficientvit_b0", {}),
    "GC ViT": ("gcvit_xxtiny", {"img_size": 64}),
    "Hiera": ("hiera_tiny_224", {"embed_dim": 16, "stages": (1, 1, 1, 1)}),
    "Hiera of SAM 2": ("hieradet_small", {"embed_dim": 16, "stages": (1, 1, 2, 1), "global_att_blocks": (3,)}),
    "iFormer": ("iformer_t", {}),
    "MViT v2": ("mvitv2_tiny", {"img_size": 64}),
    "MViT v2, class token": ("mvitv2_small_cls", {"img_size": 64}),
    "Next-ViT": ("nextvit_small", {"depths": (1, 1, 5, 1)}),
    "SHViT": ("shvit_s1", {}),
    "SwiftFormer": ("swiftformer_xs", {}),
    "TinyViT": ("tiny_vit_5m_224", {"depths": (1, 1, 1, 1)}),
    "VOLO": ("volo_d1_224", {"img_size": 96}),
    "ViTamin": ("vitamin_small_224", {"depth": 2, "img_size": 96}),
    "BoTNet": ("botnet26t_256", {"img_size": 128, "width_factor": 0.125}),
    "HaloNet": ("halonet26t", {}),
    "LambdaNetworks": ("lambda_resnet26t", {}),
    "ResNet of CLIP, pooled by attention": ("resnet50_clip", {}),
    "CPUBone": ("cpubone_nano", {}),
    "LowFormer": ("lowformer_b0", {}),
    "EfficientViM": ("efficientvim_m1", {}),
    "CSATv2": ("csatv2", {}),
    "PoolFormer": ("poolformer_s12", {}),
    "FastViT": ("fastvit_t8", {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 64)}),
    "RepViT": ("repvit_m0_9", {}),
    "MLP-Mixer": ("mixer_s32_224", {"img_size": 96}),
    "ResNet": ("test_resnet", {}),
    "ConvNeXt": ("test_convnext", {}),
    "EfficientNet": ("test_efficientnet", {}),
    "MobileNet v3": ("mobilenetv3_small_050", {}),
    "RegNet": ("regnetx_002", {}),
    "NFNet": ("test_nfnet", {}),
    "MambaOut": ("test_mambaout", {}),
}  # fmt: skip
"""Name -> timm's model, and what is narrowed of it."""

_SIZES = {
    "NaFlexViT": (32, 48), **dict.fromkeys(("MobileNet v4, hybrid", "Next-ViT", "CAFormer"), (64, 96)),
    **dict.fromkeys((
        "PVT v2", "FastViT, attention", "EdgeNeXt", "EfficientViT, linear attention", "SwiftFormer", "LambdaNetworks",
        "CPUBone", "LowFormer", "EfficientViM", "CSATv2", "PoolFormer", "FastViT", "RepViT", "ResNet", "ConvNeXt",
        "EfficientNet", "MobileNet v3", "RegNet", "NFNet", "MambaOut", "SHViT",
    ), (128, 160)),
}  # fmt: skip
"""Of pictures, for models that take any."""

NAMES = tuple(_FAMILIES)


def architecture(name: str) -> str:
    """Its name in timm."""
    return _FAMILIES[name][0]


def model(name: str, *, fused: bool = True) -> nn.Module:
    """In evaluation mode, with weights that make attention uneven and norms count; with timm's fused attention, as its
    users have it, or with its softmax written out, in which autograd can look.
    """
    made = _made(name, fused=True)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(_scale(parameter) * torch.randn_like(parameter))
    _settle(made, size(name))
    if not fused:
        written_out = _made(name, fused=False)
        written_out.load_state_dict(made.state_dict())
        return written_out
    return made


def _made(name: str, *, fused: bool) -> nn.Module:
    import timm

    architecture, narrowed = _FAMILIES[name]
    timm.layers.set_fused_attn(fused)
    torch.manual_seed(1)
    made: nn.Module = timm.create_model(architecture, num_classes=len(families.LABELS), **narrowed)
    return made.eval()


def _scale(parameter: torch.Tensor) -> float:
    """Of what is added: a layer gives numbers of the size that it takes."""
    weights = parameter.ndim > 1 and len(parameter) > 1
    return float(parameter[0].numel() ** -0.5) if weights else 0.1


def _settle(made: nn.Module, size: tuple[int, int]) -> None:
    """Batch norms get averages of what comes to them, somewhat moved, as training gives them."""
    norms = [one for one in made.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(lambda norm, inputs: _measure(norm, *inputs)) for norm in norms]
    with torch.no_grad():
        made(torch.randn(4, 3, *size))
    for hook in hooks:
        hook.remove()


def _measure(norm: Any, taken: torch.Tensor) -> None:
    variance, mean = torch.var_mean(taken, [axis for axis in range(taken.ndim) if axis != 1])
    variance = variance.clamp(min=variance.mean())  # what hardly varies is not blown up
    norm.running_mean.copy_(mean + variance.sqrt() * (torch.rand_like(mean) - 0.5))
    norm.running_var.copy_(variance * (torch.rand_like(variance) + 0.5))


def size(name: str) -> tuple[int, int]:
    """Of its pictures."""
    import timm

    architecture, narrowed = _FAMILIES[name]
    edges = _SIZES.get(name) or narrowed.get("img_size") or timm.get_pretrained_cfg(architecture).input_size[1:]
    return (edges, edges) if isinstance(edges, int) else tuple(edges)

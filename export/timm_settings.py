"""What a module of timm says of its pictures: `pretrained_cfg`, as timm's own evaluation reads it.

timm/data/config.py and transforms_factory.py: the shorter side becomes size / crop_pct, and the middle is taken; with
crop_mode "squash" the whole picture is stretched to that. Nothing of timm is imported.
"""

import argparse
from typing import Any

from torch import nn

from saccade.errors import DataError

CROP_PCT = 0.875


def with_settings_of(module: nn.Module, options: argparse.Namespace) -> argparse.Namespace:
    """The options, filled in where the command said nothing and the module does. Raises DataError for padding."""
    settings = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if not isinstance(settings, dict):
        return options
    said = {name: value for name, value in _options(settings, options.size).items() if getattr(options, name) is None}
    return argparse.Namespace(**{**vars(options), **said})


def _options(settings: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    said: dict[str, Any] = {name: settings[name] for name in ("mean", "std", "interpolation") if name in settings}
    if "input_size" in settings:
        said["size"] = tuple(settings["input_size"][1:])
    height, width = size or said.get("size") or (0, 0)
    mode, share = settings.get("crop_mode", "center"), settings.get("crop_pct", CROP_PCT)
    if mode == "center" and height == width:
        return {**said, "fit": "crop", "shortest_edge": int(height / share)} if height else said
    if mode == "squash" and share == 1:
        return {**said, "fit": "stretch"}
    raise DataError(
        f"the module's pretrained_cfg has crop_mode {mode!r}, crop_pct {share} and an input of {height} x {width}, "
        "which cannot be taken over: say --fit and --shortest-edge"
    )

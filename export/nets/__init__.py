"""The nets, one file each. All attention in them is `export.nets.attention.Attention`."""

from export.nets.base import Net, Outputs
from export.nets.build import NetConfig, build

__all__ = ["Net", "NetConfig", "Outputs", "build"]

"""From the [net] table of a recipe to a net."""

from typing import Annotated

from pydantic import Field

from export.nets.base import Net
from export.nets.cct import Cct, CctConfig
from export.nets.convmixer import Convmixer, ConvmixerConfig
from export.nets.hybrid import Hybrid, HybridConfig
from export.nets.resnet import Resnet, ResnetConfig
from export.nets.vit import Vit, VitConfig
from saccade.errors import RecipeError

AnyConfig = CctConfig | VitConfig | HybridConfig | ResnetConfig | ConvmixerConfig
NetConfig = Annotated[AnyConfig, Field(discriminator="kind")]


def build(config: AnyConfig, size: tuple[int, int], classes: int) -> Net:
    """The net for pictures of `size` (height, width), fresh weights. Raises RecipeError where the numbers clash."""
    try:
        match config:
            case CctConfig():
                return Cct(config, size, classes)
            case VitConfig():
                return Vit(config, size, classes)
            case HybridConfig():
                return Hybrid(config, size, classes)
            case ResnetConfig():
                return Resnet(config, size, classes)
            case ConvmixerConfig():
                return Convmixer(config, size, classes)
    except ValueError as error:
        raise RecipeError(f"[net]: {error}") from error

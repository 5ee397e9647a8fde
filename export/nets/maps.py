"""Which maps a net has, and the fixed names of its outputs: what the graph, the manifest and a recipe must agree on."""

from pydantic import ValidationError

from export.names import CLASS_TOKENS, LOGITS, POOLING, ROLLOUT
from export.nets.base import Net
from saccade.errors import RecipeError
from saccade.manifest import AttentionLayer, ClassMap, MapName, Maps


def rolls_out(layers: tuple[AttentionLayer, ...]) -> bool:
    """Rollout multiplies layers, so all of them must share one grid and the same special tokens."""
    return bool(layers) and len({(layer.grid, layer.special_tokens) for layer in layers}) == 1


def maps_of(net: Net, default: tuple[MapName, ...]) -> Maps:
    """The maps of the net and their outputs. Raises ValueError where a default map is none of them."""
    class_map = net.class_grid and ClassMap(
        tokens=CLASS_TOKENS, weight="head.weight", bias="head.bias", grid=net.class_grid
    )
    return Maps(
        default=default,
        pooling=POOLING if net.pooling is not None and net.pooling.kind == "learned" else None,
        rollout=ROLLOUT if rolls_out(net.attention_layers) else None,
        class_map=class_map or None,
    )


def checked_maps(net: Net, default: tuple[MapName, ...]) -> Maps:
    """The same for a recipe: before an hour of training, not after it. Raises RecipeError."""
    try:
        return maps_of(net, default)
    except ValidationError as error:
        raise RecipeError(f"default_maps: {error.errors()[0]['msg']}") from error


def output_names(net: Net) -> list[str]:
    """Names of the graph's outputs, in their order."""
    maps = maps_of(net, ())
    names = [maps.pooling, maps.rollout, maps.class_map and maps.class_map.tokens]
    return [LOGITS, *(layer.output for layer in net.attention_layers), *(name for name in names if name)]

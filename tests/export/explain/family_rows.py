"""The table of families: what `saccade export` makes of each, and how near it is to float64 autograd."""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from export.adopt import Facts
from export.eager import Eager, Logits
from export.explain.relevance import GRAD_CAM, LEGRAD
from export.module import adopt_module
from export.pretrained.checkpoint import ARCHITECTURES
from saccade.card import Card
from saccade.errors import SaccadeError
from saccade.manifest import Manifest, Origin, Preprocessing
from tests.export import families
from tests.export.explain import more_families, timm_families
from tests.export.explain.proofs import (
    GRADIENT,
    OF_MAPS,
    Array,
    BlocksOf,
    Error,
    grad_cam,
    gradient_error,
    legrad,
    map_errors,
    of_module,
    published,
)

PICTURES = 3


class Small(NamedTuple):
    """A small model of a family."""

    family: str
    architecture: str
    """In its framework."""
    size: tuple[int, int]
    """Of its pictures."""
    model: Callable[[], nn.Module]
    """As its users have it."""
    written_out: Callable[[], nn.Module]
    """The same with the softmaxes of its attention written out, in which autograd can look."""


class Row(NamedTuple):
    """What became of a family."""

    family: str
    architecture: str
    said: str | None = None
    """Why there is no bundle."""
    layers: tuple[int, int] = (0, 0)
    """Of attention: given, and found in the model."""
    maps: tuple[str, ...] = ()
    of: int = 0
    """Layers that the maps are made of."""
    why_not: Mapping[str, str] = MappingProxyType({})
    gradient: Error | None = None
    errors: Mapping[str, Error] = MappingProxyType({})


def of_transformers(name: str) -> Small:
    model = partial(more_families.model, name)
    return Small(name, more_families.architecture(name), more_families.size(name), model, model)


def of_timm(name: str) -> Small:
    model = partial(timm_families.model, name)
    size = timm_families.size(name)
    return Small(name, timm_families.architecture(name), size, model, partial(model, fused=False))


def measure(small: Small) -> Row:
    """Exports the family's small model and compares the bundle with autograd through the model itself."""
    try:
        module = small.model()
        with tempfile.TemporaryDirectory() as place:
            return _measured(small, module, Path(place))
    except (SaccadeError, ImportError) as error:
        return Row(small.family, small.architecture, " ".join(str(error).split()))


def _measured(small: Small, module: nn.Module, place: Path) -> Row:
    height, width = small.size
    facts = Facts(
        families.LABELS,
        Preprocessing(height=height, width=width, fit="stretch", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        Origin(kind="torch", name=small.architecture),
        Card(summary=small.family, license="CC0-1.0", parameters=sum(one.numel() for one in module.parameters())),
    )
    bundle, exposed = adopt_module(module, facts, lambda made: Eager(small.family, made, module), place, "it")
    manifest = bundle.manifest
    pixels = torch.randn(PICTURES, 3, height, width, generator=torch.Generator().manual_seed(3)).numpy()
    ask = of_module(lambda: Logits(small.written_out()), bundle)
    gradients = manifest.maps.gradients
    blocks = _blocks(module, manifest, torch.from_numpy(pixels))

    def maps(kind: torch.dtype, part: Array) -> dict[str, Array]:
        if gradients is not None and GRAD_CAM in gradients.names:
            return {GRAD_CAM: grad_cam(small.written_out, bundle, part, kind)}
        found = published(manifest, ask(kind, part))
        if blocks is not None:
            found[LEGRAD] = legrad(lambda: Logits(small.written_out()), blocks, bundle, part, kind)
        return found

    return Row(
        small.family,
        small.architecture,
        None,
        (len(manifest.attention), len(exposed.table)),
        () if gradients is None else gradients.names,
        0 if gradients is None else len(gradients.layers),
        {map_: " ".join(reason.split()) for map_, reason in manifest.maps.why_not.items()},
        gradient_error(bundle, ask, pixels),
        {} if gradients is None else map_errors(bundle, maps, pixels),
    )


def _blocks(module: nn.Module, manifest: Manifest, pixels: torch.Tensor) -> BlocksOf | None:
    """Of a model whose last list of blocks has one a layer; None where LeGrad has to go without autograd beside it."""
    gradients = manifest.maps.gradients
    if gradients is None or LEGRAD not in gradients.names:
        return None
    blocks = _last_blocks(module)
    if len(blocks) != len(gradients.layers) or not _gives_tokens(blocks[-1], module, pixels):
        return None
    return lambda inner: (_last_blocks(inner), "forward", (1,))


def _gives_tokens(block: nn.Module, module: nn.Module, pixels: torch.Tensor) -> bool:
    """Whether what it gives is (batch, tokens, channels), and no picture."""
    ranks: list[int] = []

    def look(_: nn.Module, __: object, given: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        ranks.append((given[0] if isinstance(given, tuple) else given).ndim)

    with block.register_forward_hook(look), torch.no_grad():
        module(pixels)
    return ranks == [3]


def _last_blocks(module: nn.Module) -> list[nn.Module]:
    """The last list of modules of one class with attention in each; empty where there is none."""
    lists = [[*one] for one in module.modules() if isinstance(one, (nn.ModuleList, nn.Sequential)) and len(one)]
    return ([[]] + [one for one in lists if len({type(each) for each in one}) == 1 and _attends(one[0])])[-1]


def _attends(block: nn.Module) -> bool:
    names = [f"{name} {type(part).__name__}".lower() for name, part in block.named_modules() if name]
    return any(word in name for name in names for word in ("att", "query"))


def cells(row: Row) -> list[str]:
    """Of the page's table."""
    option = "transformers" if row.architecture in ARCHITECTURES else "torch"
    given, found = row.layers
    layers = "none" if not found else f"{found}" if given == found else f"{given} of {found}"
    maps = ", ".join(f"`{name}`" for name in row.maps) or "none"
    made_of = f"{maps}; of {row.of} layer{'s' * (row.of != 1)}" if row.of else maps
    errors = ", ".join(f"{name} {said(error)}" for name, error in row.errors.items())
    return [row.family, f"`{row.architecture}`", option, layers, made_of, said(row.gradient), errors]


def said(error: Error | None) -> str:
    """1e-07 (autograd 2e-07)."""
    return "" if error is None else f"{error.ours:.0e} ({error.autograd:.0e})"


def failing(row: Row) -> list[str]:
    """What does not hold."""
    broken = [] if row.gradient is None or row.gradient.holds(GRADIENT) else [f"{row.family}: gradients {row.gradient}"]
    return broken + [f"{row.family}: {name} {one}" for name, one in row.errors.items() if not one.holds(OF_MAPS)]

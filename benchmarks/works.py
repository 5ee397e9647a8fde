"""What is asked of every contestant: a model, one picture as the request's body, and what the answer must hold.

The shipped CCT on a small and on a large picture, and a ViT-Ti/16 at 224 pixels, whose weights are random: speed does
not depend on them. What is missing in the cache is made, the same on every machine; nothing is downloaded.
"""

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from saccade.bundle import GOLDEN, MANIFEST, Bundle, write_bundle
from saccade.card import Card
from saccade.manifest import Provenance

ROOT = Path(__file__).parent.parent
CACHE = ROOT / "build/bench"

QUERIES = {"labels": "maps=none", "map": ""}
"""Queries of a request by name: labels alone, and labels with the model's default map."""

_PHOTOGRAPH = ROOT / "examples/chelsea.jpg"
_SEED = 20
_VIT = "random-vit-ti-16"
_RECIPE: dict[str, Any] = {
    "seed": _SEED,
    "default_maps": ["rollout"],
    "card": {"summary": "ViT-Ti/16 at 224 pixels with random weights, for measurements of speed", "license": "CC0-1.0"},
    "data": {"kind": "folder"},
    "preprocessing": {
        "height": 224, "width": 224, "fit": "crop", "shortest_edge": 256, "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    },
    "net": {"kind": "vit", "patch": 16, "layers": 12, "heads": 3, "width": 192, "mlp_ratio": 4.0},
    "training": {
        "epochs": 1, "batch": 1, "optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.0, "warmup_epochs": 0.0,
    },
}  # fmt: skip


class Work(NamedTuple):
    name: str
    title: str
    bundle: Path
    """Its folder, models/<name>/<version>."""
    model_id: str
    picture: Path
    """A file with the body of a request."""
    media_type: str


def works(cache: Path = CACHE) -> dict[str, Work]:
    """All works by name; makes what is missing. Only to make the ViT is torch needed."""
    cache = cache.absolute()  # servers have working folders of their own
    pictures = cache / "pictures"
    cct, vit = ROOT / "models/cifar10-cct/1", cache / "models" / _VIT / "1"
    if not (vit / MANIFEST).exists():
        write_bundle(cache / "models", _VIT, 1, partial(random_net, name=_VIT, recipe=_RECIPE, relevance=True))
    png, jpeg = "image/png", "image/jpeg"
    small = _file(pictures / "32x32.png", _small)
    usual = _file(pictures / "500x375.jpg", lambda: _photograph(500, 375, noise=6.0))
    large = _file(pictures / "4000x3000.jpg", lambda: _photograph(4000, 3000, noise=6.0))
    return {
        "cct": Work("cct", "CCT-2/3x2, 32 x 32 PNG", cct, "cifar10-cct@1", small, png),
        "vit-ti": Work("vit-ti", "ViT-Ti/16 at 224 pixels, 500 x 375 JPEG", vit, f"{_VIT}@1", usual, jpeg),
        "large": Work("large", "CCT-2/3x2, 12-megapixel JPEG", cct, "cifar10-cct@1", large, jpeg),
    }


def _file(path: Path, make: Callable[[], bytes]) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(make())
        part.rename(path)
    return path


def _small() -> bytes:
    buffer = io.BytesIO()
    with Image.open(_PHOTOGRAPH) as photograph:
        photograph.convert("RGB").resize((32, 32), Image.Resampling.LANCZOS).save(buffer, "PNG")
    return buffer.getvalue()


def _photograph(width: int, height: int, noise: float) -> bytes:
    """A JPEG of quality 90. The noise is a sensor's: without, an enlarged picture is smoother than a camera's."""
    with Image.open(_PHOTOGRAPH) as photograph:
        enlarged = ImageOps.fit(photograph.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(enlarged, np.float32)
    pixels = pixels + np.random.default_rng(_SEED).normal(0, noise, (height, width, 1)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def random_net(folder: Path, *, name: str, recipe: Mapping[str, Any], relevance: bool = False) -> Mapping[str, Any]:
    """Writes a bundle's files, weights random, by the exporter's own pieces; gives the manifest's fields.

    Of 1,000 classes. Without parity, which takes minutes at this size: the golden file holds the graph to the net at
    every load.
    """
    import torch

    from export.assemble import draft_manifest
    from export.convert import Exported, write_model
    from export.explain.build import explained
    from export.explain.exact import exactly
    from export.nets import build
    from export.publish import promises
    from export.recipe import Recipe
    from export.weights import versions
    from saccade.golden import golden_file

    torch.set_num_threads(1)
    torch.manual_seed(_SEED)
    made = Recipe.model_validate(recipe)
    labels = tuple(f"class_{index:03d}" for index in range(1000))
    net = build(made.net, made.size, len(labels)).eval()
    fields = {
        **promises(net, made, labels),
        "provenance": Provenance(
            recipe=made.model_dump(mode="json"), data="none", held_out="none", seed=_SEED, commit=None,
            versions=versions(),
        ),
        "card": Card(summary=made.card.summary, license=made.card.license, parameters=net.parameter_count),
    }  # fmt: skip
    write_model(net, made.size, folder)
    bundle = Bundle(folder, draft_manifest(name, 1, fields))
    bundle = explained(bundle, folder) if relevance else bundle
    gradients = bundle.manifest.maps.gradients
    explain = None if gradients is None else exactly(bundle.relevance, bundle.manifest)
    (folder / GOLDEN).write_bytes(golden_file(bundle.manifest, Exported(net).eval().arrays, explain))
    with np.load(folder / GOLDEN) as golden:
        names = () if gradients is None else gradients.names
        wide = {name: 0.1 * float(np.abs(golden[name]).max()) for name in names}
    tolerance = {provider: {**kinds, **wide} for provider, kinds in bundle.manifest.tolerance.items()}
    return {**fields, "maps": bundle.manifest.maps, "tolerance": tolerance}

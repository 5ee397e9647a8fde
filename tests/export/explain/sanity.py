"""Checks that a map must pass to be worth showing, each with its number, on a bundle's relevance.onnx."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.stats import spearmanr
from torch.overrides import TorchFunctionMode

from export.explain.relevance import GRAD_CAM, RELEVANCE, TOP
from export.nets import Net
from export.reference import rebuild
from export.runtime import open_relevance
from saccade.bundle import RELEVANCE as FILE
from saccade.bundle import WEIGHTS, Bundle
from saccade.golden import Explain, made_pictures
from saccade.preprocess import normalize
from tests.export.explain.autograd import SOFTMAX

Array = NDArray[Any]
SEED = 31


def pictures(bundle: Bundle, count: int) -> Array:
    """(count, 3, H, W): made ones, prepared as the service does."""
    spec = bundle.manifest.preprocessing
    return normalize(made_pictures(count, spec.height, spec.width, SEED), spec)


def main_map(bundle: Bundle) -> str:
    """Relevance, or of a model without attention Grad-CAM."""
    assert bundle.manifest.maps.gradients is not None
    return RELEVANCE if RELEVANCE in bundle.manifest.maps.gradients.names else GRAD_CAM


def opened(bundle: Bundle) -> Explain:
    return open_relevance(bundle.relevance, threads=1)


def correlation(ones: Array, others: Array) -> float:
    """Mean Spearman rank correlation of maps (n, patches); one that is the same everywhere ranks nothing: 0."""
    found = []
    for one, other in zip(ones, others, strict=True):
        flat = np.ptp(one) == 0 or np.ptp(other) == 0
        found.append(0.0 if flat else float(spearmanr(one, other).statistic))
    return float(np.mean(found))


def across_classes(bundle: Bundle, count: int) -> float:
    """Rank correlation of the maps of the first two classes."""
    maps = opened(bundle)(pictures(bundle, count), np.tile([TOP, TOP - 1], (count, 1)))[main_map(bundle)]
    return correlation(maps[:, 0], maps[:, 1])


class Step(NamedTuple):
    part: str
    """Of the net whose weights are shuffled now, with all that come behind it."""
    correlation: float
    """With the map of the trained net, of the class that this finds."""


def randomised(bundle: Bundle, count: int, folder: Path) -> list[Step]:
    """Adebayo et al. 2018, cascading: from the head down, each part's weights are shuffled, each tensor in itself, so
    that nothing is left of what was learned but how large numbers are.
    """
    pixels, name = pictures(bundle, count), main_map(bundle)
    explain = opened(bundle)
    logits = explain(pixels, np.full((count, 1), TOP))["logits"]
    top = logits.argmax(1)[:, None].astype(np.int64)
    original = explain(pixels, top)[name][:, 0]
    for file in (FILE, WEIGHTS):
        shutil.copyfile(bundle.folder / file, folder / file)
    weights, generator = load_file(bundle.weights), np.random.default_rng(SEED)
    steps = []
    for part, names in _parts(rebuild(bundle)):
        _overwrite(folder / WEIGHTS, {key: generator.permutation(weights[key].ravel()) for key in names})
        changed = open_relevance(folder / FILE, threads=1)(pixels, top)[name][:, 0]
        steps.append(Step(part, correlation(original, changed)))
    return steps


def _parts(net: Net) -> Iterator[tuple[str, list[str]]]:
    """Blocks and what is outside of them, the last first, with the names of their tensors."""
    parts: dict[str, list[str]] = {}
    for key, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            found = re.match(r".*?\.\d+(?=\.)|[^.]+", key)
            assert found is not None
            parts.setdefault(found[0], []).append(key)
    yield from reversed(parts.items())


def _overwrite(file: Path, tensors: dict[str, Array]) -> None:
    """Other numbers at the places of a safetensors file that graphs point to."""
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    for name, array in tensors.items():
        begin, end = header[name]["data_offsets"]
        content[start + begin : start + end] = array.astype(np.float32).tobytes()
    file.write_bytes(content)


def constant(bundle: Bundle) -> bool:
    """Whether a picture of one colour has finite maps of every class: black, grey and white."""
    spec = bundle.manifest.preprocessing
    levels = np.array([0, 128, 255], np.uint8)
    pixels = normalize(np.broadcast_to(levels[:, None, None, None], (3, spec.height, spec.width, 3)).copy(), spec)
    found = opened(bundle)(pixels, np.tile(np.arange(len(bundle.manifest.labels)), (3, 1)))
    return all(bool(np.isfinite(array).all()) for array in found.values())


def alone(bundle: Bundle, count: int) -> float:
    """The largest difference of a picture's map alone and in a batch, as a share of that map's maximum."""
    pixels, explain, name = pictures(bundle, count), opened(bundle), main_map(bundle)
    classes = np.tile(np.arange(len(bundle.manifest.labels)), (count, 1))
    together = explain(pixels, classes)[name]
    apart = np.concatenate([explain(pixels[at : at + 1], classes[at : at + 1])[name] for at in range(count)])
    size = np.abs(together).max(2)
    return float((np.abs(together - apart).max(2)[size > 0] / size[size > 0]).max())


class _Nudge(TorchFunctionMode):
    """Adds a step to one number of the softmax that runs as number `which`."""

    def __init__(self, which: int, place: int, step: float) -> None:
        super().__init__()
        self._left, self._place, self._step = which, place, step

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in SOFTMAX:
            if self._left == 0:
                result = result.clone()
                result.view(-1)[self._place] += self._step
            self._left -= 1
        return result


def one_weight(net: Net, gradients: Callable[[Array], dict[str, Array]], pixels: Array, tries: int = 20) -> float:
    """The largest difference of a gradient of the graph from the central difference, in float64, of the eager net's
    logits when one weight of attention alone is changed; relative to the largest gradient of that layer.
    """
    net, generator, step = net.double().eval(), np.random.default_rng(SEED), 1e-5
    given, worst = torch.from_numpy(pixels[:1]).double(), 0.0

    def logits(which: int, place: int, change: float) -> Array:
        with torch.no_grad(), _Nudge(which, place, change):
            return np.asarray(net.explain(given).logits[0].numpy())

    for which, (_, found) in enumerate(gradients(pixels[:1]).items()):
        by = found[:, 0].reshape(len(found), -1)
        for place in generator.integers(0, by.shape[1], tries):
            slope = (logits(which, int(place), step) - logits(which, int(place), -step)) / (2 * step)
            worst = max(worst, float(np.abs(slope - by[:, place]).max() / np.abs(by).max()))
    return worst

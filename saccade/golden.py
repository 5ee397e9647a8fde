"""golden.npz: a few made pictures with what the source model answers; the service runs them before it says ready, and
through relevance.onnx before that answers anybody.

Logits and maps stand whole, those of the gradient for the classes that `class_index` (n, 2) names; of each attention
layer some rows (of windows, of some), and of the class map's tokens some patches, chosen by a fixed seed: as many as
the limit on the file's size allows. The pictures are made here, so that the file may be redistributed with any
model.
"""

import io
import re
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.errors import BundleError
from saccade.manifest import Manifest
from saccade.preprocess import normalize

MAX_BYTES = 1_000_000
SEED = 7
PICTURES = 4
"""At most."""
WINDOWS = 8
WIDEST, ROUNDING = 0.5, 1e-3
"""A variant's tolerances are measured, so a wide one is nothing unusual: at most this share of what the golden values
span, and what any provider may round. So it is with maps of the gradient, whose tolerances go by their size."""

_ONE_AT_A_TIME = threading.Lock()
"""numpy reads an array's head with `ast`, whose count of recursions threads share in CPython 3.11 (gh-106905): sessions
that open side by side would now and then end the start with a SystemError."""

Arrays = Mapping[str, NDArray[np.float32]]
Answer = Callable[[NDArray[np.float32]], Arrays]
"""A graph: (n, 3, H, W) -> outputs by name."""
Explain = Callable[[NDArray[np.float32], NDArray[np.int64]], Arrays]
"""relevance.onnx: (n, 3, H, W) and class_index (n, k) -> outputs by name, and maps (n, k, patches)."""

_CLASS_INDEX = "class_index"


def made_pictures(count: int, height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Pictures that belong to nobody, (count, height, width, 3): sums of random waves with noise, deterministic."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    pictures = np.empty((count, height, width, 3))
    for index in range(count):
        picture = pictures[index]
        for channel in range(3):
            down, right = generator.normal(0, 6, (2, 4, 1, 1))
            phase, strength = generator.uniform(0, 2 * np.pi, (4, 1, 1)), generator.uniform(10, 45, (4, 1, 1))
            waves = strength * np.sin(down * rows / height + right * columns / width + phase)
            picture[..., channel] = generator.uniform(60, 190) + waves.sum(0)
        picture += generator.normal(0, generator.uniform(0, 20), picture.shape)
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)


class _Extent(NamedTuple):
    """How much of each output the file holds."""

    pictures: int
    rows: int
    """Of each head of each attention layer or window."""
    patches: int
    """Of the class map's tokens."""


_EXTENTS = (_Extent(PICTURES, 8, 4096), _Extent(2, 8, 4096), _Extent(1, 8, 4096), _Extent(1, 4, 64), _Extent(1, 1, 16))
"""The first that fits: four pictures of a small net, one row of each head of a ViT-L."""


class Difference(NamedTuple):
    """Of one output from golden.npz."""

    difference: float
    """The largest, absolute; inf where a value is not finite."""
    span: float
    """Greatest less least golden value."""


def golden_file(manifest: Manifest, answer: Answer, explain: Explain | None = None) -> bytes:
    """The content of golden.npz, by the source model; `explain` is asked for the maps of the gradient, where there are
    any. Raises BundleError where too little would fit into it.
    """
    spec = manifest.preprocessing
    for extent in _EXTENTS:
        pictures = made_pictures(extent.pictures, spec.height, spec.width, SEED)
        outputs = answer(normalize(pictures, spec))
        arrays: dict[str, NDArray[np.generic]] = {"pictures": pictures}
        generator = np.random.default_rng(SEED)
        for name in manifest.outputs:
            arrays |= _kept(name, outputs[name], extent, generator)
        content = _packed(arrays)
        if explain is not None and len(content) <= MAX_BYTES:
            classes = golden_classes(manifest, outputs["logits"])
            found = explain(normalize(pictures, spec), classes)
            content = _packed(arrays | {_CLASS_INDEX: classes, **{name: found[name] for name in _map_names(manifest)}})
        if len(content) <= MAX_BYTES:
            return content
    raise BundleError(f"golden.npz would have {len(content)} bytes; the limit is {MAX_BYTES}")


def golden_classes(manifest: Manifest, logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Of logits (n, classes), class_index (n, 2): the top class, and one by its index, of each picture another.

    Of a variant the top one by its index too: where two are close, another machine's rounding may change their order.
    """
    count = len(logits)
    top = np.full(count, -1) if manifest.parent is None else logits.argmax(1)
    return np.stack([top, (3 + 5 * np.arange(count)) % len(manifest.labels)], 1).astype(np.int64)


def golden_differences(manifest: Manifest, path: Path, answer: Answer) -> dict[str, Difference]:
    """How far each output of `answer`, model.onnx, is from golden.npz."""
    return _differences(manifest, path, lambda pixels, _: answer(pixels), manifest.outputs)


def check_golden(manifest: Manifest, path: Path, provider: str, answer: Answer) -> None:
    """Raises BundleError unless every output is within the manifest's tolerance for this execution provider."""
    _check(manifest, provider, "", lambda: golden_differences(manifest, path, answer))


def check_golden_maps(manifest: Manifest, path: Path, provider: str, explain: Explain) -> None:
    """As check_golden, of all that relevance.onnx gives."""
    names = (*manifest.outputs, *_map_names(manifest))
    _check(manifest, provider, " of relevance.onnx", lambda: _differences(manifest, path, explain, names))


def _check(manifest: Manifest, provider: str, of: str, differences: Callable[[], dict[str, Difference]]) -> None:
    tolerance = manifest.tolerance.get(provider)
    if tolerance is None:
        known = ", ".join(manifest.tolerance)
        raise BundleError(f"{manifest.id} states no tolerance for {provider}; it states them for {known}")
    for name, found in differences().items():
        allowed = tolerance.get(name, tolerance.get(kind_of(name)))
        if allowed is None:
            raise BundleError(f"{manifest.id} states no tolerance for {kind_of(name)} on {provider}")
        of_gradient = name in _map_names(manifest)
        most = WIDEST * found.span + (0 if of_gradient else ROUNDING)
        if (of_gradient or manifest.parent is not None) and allowed > most:
            raise BundleError(
                f"{manifest.id} on {provider}: {allowed:.3g} is allowed of output {name}{of}, whose golden values span "
                f"{found.span:.3g}: wrong ones would pass"
            )
        if not found.difference <= allowed:
            raise BundleError(
                f"{manifest.id} on {provider}: output {name}{of} is {found.difference:.3g} away from its golden "
                f"values; {allowed:.3g} is allowed"
            )


def _differences(manifest: Manifest, path: Path, explain: Explain, names: Sequence[str]) -> dict[str, Difference]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes; the limit is {MAX_BYTES}")
        with _ONE_AT_A_TIME, path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            golden = {name: file[name] for name in file.files}
        spec = manifest.preprocessing
        if golden["pictures"].shape[1:] != (spec.height, spec.width, 3):
            raise ValueError(f"its pictures are {golden['pictures'].shape}, the net takes {spec.height} x {spec.width}")
        classes = golden_classes(manifest, golden["logits"])
        if set(names) > set(manifest.outputs) and not np.array_equal(golden[_CLASS_INDEX], classes):
            raise ValueError(f"its class_index is {golden[_CLASS_INDEX].tolist()}, and it must be {classes.tolist()}")
        outputs = explain(normalize(golden["pictures"], spec), classes)
        return {
            name: Difference(_difference(golden, name, outputs[name]), float(np.ptp(golden[name]))) for name in names
        }
    except (OSError, ValueError, TypeError, EOFError, LookupError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{path} does not fit the manifest: {error}") from error


def _map_names(manifest: Manifest) -> tuple[str, ...]:
    return () if manifest.maps.gradients is None else manifest.maps.gradients.names


def _packed(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # its keyword allow_pickle hides the rest
    return buffer.getvalue()


def kind_of(output: str) -> str:
    """What the manifest's tolerance calls it, unless it names the output itself: `attention` for `attention_00`."""
    return re.sub(r"_\d+$", "", output)


_AXES = {"windows": 1, "rows": -2}
"""Of attention (batch, [windows,] heads, rows, tokens) and of class tokens (batch, rows, width)."""


def _kept(
    name: str, output: NDArray[np.float32], extent: _Extent, generator: np.random.Generator
) -> dict[str, NDArray[np.generic]]:
    """What of an output is kept, and under `<name>_<axis>` which of it, where it is not all."""
    counts: dict[str, int] = {}
    if kind_of(name) == "attention":
        counts = {"rows": extent.rows} if output.ndim == 4 else {"windows": WINDOWS, "rows": extent.rows}
    elif kind_of(name) == "class_tokens" and output.shape[1] > extent.patches:
        counts = {"rows": extent.patches}
    chosen: dict[str, NDArray[np.generic]] = {}
    for axis, count in counts.items():
        picked = np.sort(generator.permutation(output.shape[_AXES[axis]])[:count])
        output = output.take(picked, _AXES[axis])
        chosen[f"{name}_{axis}"] = picked
    return {name: output, **chosen}


def _difference(golden: Mapping[str, NDArray[np.generic]], name: str, output: NDArray[np.float32]) -> float:
    seen = output
    for axis, place in _AXES.items():
        if f"{name}_{axis}" in golden:
            seen = seen.take(golden[f"{name}_{axis}"], place)  # type: ignore[arg-type]
    expected = golden[name]
    if seen.shape != expected.shape:
        raise ValueError(f"output {name} has shape {seen.shape}; golden.npz has {expected.shape}")
    difference = float(np.max(np.abs(seen.astype(np.float64) - expected.astype(np.float64))))
    return difference if np.isfinite(difference) else float("inf")

"""The table of families: how far a bundle is from the framework's own logits, attention and pixels.

`python -m tests.export.parity --out docs/families.md` measures every family and writes the page.
"""

import argparse
import io
import itertools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from export.from_transformers import adopt
from export.runtime import open_graph
from saccade.bundle import Bundle
from saccade.decode import decode
from saccade.manifest import AttentionLayer
from saccade.preprocess import preprocess
from saccade.sources import add_arguments
from tests.export import families
from tests.saccade.test_preprocess import photograph

# landscape, portrait, one pixel wide, one pixel high, the inputs' own sizes, tiny, odd, large
SIZES = [(96, 61), (61, 96), (1, 40), (40, 1), (48, 32), (32, 32), (64, 44), (96, 64), (3, 2), (333, 257), (1400, 1100)]


class Framework(NamedTuple):
    """What the framework's own model answers in eager mode."""

    logits: NDArray[np.float32]
    attention: list[NDArray[np.float32]]  # of each attention module, in the order in which they run
    reported: int  # how many of them `output_attentions=True` gives


class Measured(NamedTuple):
    """One row of the table."""

    family: str
    architecture: str
    attends: str
    maps: str
    logits: float
    attention: float | None
    levels: float  # of 255, the largest difference of a pixel value
    share: float  # of pixel values that differ by more than half a level


def ask(model: nn.Module, pixels: NDArray[np.float32]) -> Framework:
    """Runs the model as its users do, with `output_attentions=True`, and looks at its attention modules meanwhile.

    Swin reports the last block of each stage and MobileViT none; their modules compute the others just so.
    """
    seen: list[Tensor] = []

    def remember(weights: Any) -> None:
        if isinstance(weights, Tensor) and not any(weights is one for one in seen):  # Swin V2 hands them on
            seen.append(weights)

    hooks = []
    for module in model.modules():
        name = type(module).__name__
        if name == "MobileViTSelfAttention":
            dropout: Any = module.dropout
            hooks.append(dropout.register_forward_hook(lambda _, inputs, __: remember(inputs[0])))
        elif name.endswith("Attention") and not name.startswith("MobileViT"):
            hooks.append(module.register_forward_hook(lambda _, __, given: remember(given[-1])))
    with torch.no_grad():
        given = model(pixel_values=torch.from_numpy(pixels), output_attentions=True)
    for hook in hooks:
        hook.remove()
    reported = getattr(given, "attentions", None) or ()
    for one in reported:
        assert any(one.shape == other.shape and torch.equal(one, other) for other in seen)
    return Framework(given.logits.numpy(), [one.numpy() for one in seen], len(reported))


def load(folder: Path) -> nn.Module:
    """The framework's own way to a checkpoint."""
    from transformers import AutoModelForImageClassification

    with families.quiet():
        loaded: nn.Module = AutoModelForImageClassification.from_pretrained(folder, attn_implementation="eager")
    return loaded


def pixels_of(bundle: Bundle, count: int = 4) -> NDArray[np.float32]:
    """(count, 3, H, W): photographs of several sizes through the bundle's preprocessing."""
    sizes = itertools.islice(itertools.cycle([(96, 61), (61, 96), (333, 257)]), count)
    pictures = [photograph(width + index, height) for index, (width, height) in enumerate(sizes)]
    return np.stack([preprocess(picture, bundle.manifest.preprocessing) for picture in pictures])


def differences(bundle: Bundle, framework: Framework, pixels: NDArray[np.float32]) -> tuple[float, float | None]:
    """(largest difference of the logits, of the attention); None where there is no attention on either side."""
    outputs = open_graph(bundle.graph)(pixels)
    logits = float(np.abs(outputs["logits"] - framework.logits).max())
    layers = bundle.manifest.attention
    assert len(layers) == len(framework.attention)
    apart = [
        float(np.abs(outputs[layer.output] - weights.reshape(outputs[layer.output].shape)).max())
        for layer, weights in zip(layers, framework.attention, strict=True)
    ]
    return logits, max(apart, default=None)


def pixel_differences(name: str, bundle: Bundle, size: tuple[int, int]) -> NDArray[np.float64]:
    """In levels of 255, (3, H, W): a photograph of that width and height, prepared by us and by the framework."""
    spec = bundle.manifest.preprocessing
    file = io.BytesIO()
    photograph(*size).save(file, "PNG")
    ours = preprocess(decode(file.getvalue(), spec.background), spec)
    with Image.open(file) as picture:
        theirs = np.asarray(families.processor(name)(picture, return_tensors="np")["pixel_values"][0])
    return np.abs(ours - theirs).astype(np.float64) * 255 * np.array(spec.std)[:, None, None]


class Made(NamedTuple):
    """A family's checkpoint, and what the command made of it."""

    checkpoint: Path
    bundle: Bundle
    said: list[str]


def make(name: str, folder: Path) -> Made:
    """Saves the family's model below `folder` and exports it."""
    checkpoint = families.save(name, folder / "checkpoint")
    return Made(checkpoint, *adopt(exporting(checkpoint, folder / "models")))


def measure(name: str, made: Made) -> Measured:
    """Compares the bundle with the framework's own model and processor."""
    pixels = pixels_of(made.bundle)
    framework = ask(load(made.checkpoint), pixels)
    logits, attention = differences(made.bundle, framework, pixels)
    apart = [pixel_differences(name, made.bundle, size) for size in SIZES]
    manifest = made.bundle.manifest
    return Measured(
        name,
        families.FAMILIES[name].architecture,
        attends(manifest.attention, framework.reported),
        ", ".join(manifest.maps.available) or "none",
        logits,
        attention,
        max(one.max() for one in apart),
        float(np.mean([(one > 0.5).mean() for one in apart])),
    )


def exporting(checkpoint: Path | str, models: Path, *more: str) -> argparse.Namespace:
    """What the command line makes of `saccade export --from-transformers`."""
    words = ["--from-transformers", str(checkpoint), "--models", str(models), "--name", "it", *more]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def attends(layers: tuple[AttentionLayer, ...], reported: int) -> str:
    """How the layers attend, and how many of them the framework reports itself."""
    if not layers:
        return "no attention"
    windowed = [layer.windows for layer in layers if layer.windows is not None]
    kind = f"windows, {windowed[0].layout}" if windowed else "the whole picture"
    return f"{kind}; {len(layers)} layers, {reported} reported"


PAGE = """# Families of transformers

What `saccade export --from-transformers` takes, and how far a bundle is from the framework itself. The models are small
ones made from configurations, with weights that make attention uneven; nothing is downloaded. The page is written by

```sh
python -m tests.export.parity --out docs/families.md
```

and `make test` measures the same: logits must be within 1e-4, attention within 1e-5.

| family | class in transformers | attends to | maps | logits | attention | pixels, levels of 255 | pixels that differ |
|---|---|---|---|---|---|---|---|
{rows}

*Attention* is compared with the framework's eager modules, every layer; *reported* says how many of the layers
`output_attentions=True` gives by itself (Swin: the last block of each stage; MobileViT: none), which are the same
numbers to the last bit.

*Pixels* are compared with the framework's own processor on photographs of {count} sizes, from 1 x 40 to 1400 x 1100.
Where the processor only stretches, they are equal. Where it crops, Saccade resizes no more than the part that is seen,
and Pillow takes rows and columns of a part in another order than those of the whole, rounding to 8 bits between: some
values differ by one level, by two at most where a small picture is enlarged.

Other pictures reach the model as they do through `transformers.image_utils.load_image` (greyscale, palette, CMYK,
EXIF's orientations), with two differences that are meant: transparency shows the manifest's background, white, as the
framework's processors with `do_convert_rgb` have it, where `load_image` shows the colours that the file hides; and
16-bit greyscale is scaled to 8 bits, where `load_image` turns everything above 255 white.

*Maps*: rollout needs layers that share one grid, and a reading of the tokens that is known; the exact class map needs a
head directly behind the pool. A class token has none; BEiT's mean, DINOv2's head on two vectors and ConvNeXt's norm
behind the pool have none either.
"""


def page(measured: list[Measured]) -> str:
    """The document."""
    return PAGE.format(rows="\n".join(map(row, measured)), count=len(SIZES))


def row(one: Measured) -> str:
    attention = "" if one.attention is None else f"{one.attention:.0e}"
    cells = (one.family, f"`{one.architecture}`", one.attends, one.maps, f"{one.logits:.0e}", attention,
             f"{one.levels:.0f}", f"{one.share:.1%}".replace("%", " %"))  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        measured = [
            measure(name, make(name, Path(scratch) / str(index))) for index, name in enumerate(families.FAMILIES)
        ]
    options.out.write_text(page(measured), encoding="utf-8")


if __name__ == "__main__":
    main()

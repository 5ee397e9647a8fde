"""README's picture: one photograph, two classes, two maps.

    python -m benchmarks.relevance_picture --out docs/relevance.jpg

Nothing of it is chosen but the photograph, which is the README's: the model is the default one, the classes are its
first and its second, whatever they are.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.works import ROOT
from export.runtime import open_relevance
from saccade.bundle import open_bundle
from saccade.decode import decode
from saccade.geometry import region
from saccade.overlay import overlay, picture_file, write_whole
from saccade.preprocess import preprocess

PHOTOGRAPH = ROOT / "examples/chelsea.jpg"
MODEL = ROOT / "models/cifar10-hybrid-s/1"
_EDGE, _GAP, _LINE = 300, 8, 30


def panels() -> list[tuple[str, Image.Image]]:
    """(what stands below it, the part that the model saw), the photograph itself first."""
    bundle = open_bundle(MODEL)
    manifest = bundle.manifest
    assert manifest.maps.gradients is not None
    picture = decode(PHOTOGRAPH.read_bytes(), manifest.preprocessing.background)
    pixels = preprocess(picture, manifest.preprocessing)[None]
    found = open_relevance(bundle.relevance)(pixels, np.array([[-1, -2]]))
    order = np.argsort(-found["logits"][0], kind="stable")
    seen = region(picture.width, picture.height, manifest.preprocessing)
    box = (seen.left, seen.top, seen.left + seen.width, seen.top + seen.height)
    drawn = [("what the model saw", picture)]
    for rank, index in enumerate(order[:2]):
        values = found["relevance"][0, rank].reshape(manifest.maps.gradients.grid)
        drawn.append((f"what argued for “{manifest.labels[index]}”", overlay(picture, values, seen)))
    return [(said, one.resize((_EDGE, _EDGE), Image.Resampling.LANCZOS, box)) for said, one in drawn]


def sheet(parts: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Side by side, each above its words."""
    whole = Image.new("RGB", (len(parts) * (_EDGE + _GAP) - _GAP, _EDGE + _LINE), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(16)
    for index, (said, one) in enumerate(parts):
        left = index * (_EDGE + _GAP)
        whole.paste(one, (left, 0))
        draw.text((left + _EDGE / 2, _EDGE + _LINE / 2), said, "black", font, anchor="mm")
    return whole


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a JPEG")
    write_whole(parser.parse_args(arguments).out, picture_file(sheet(panels()), "JPEG"))


if __name__ == "__main__":
    main()

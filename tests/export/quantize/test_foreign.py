"""Variants of models from elsewhere: their classes are folders of pictures; windows are as good as whole pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.quantize.quantize import quantize
from export.runtime import open_graph
from export.verify import verify
from saccade.bundle import Bundle, open_bundle
from saccade.cli import main
from saccade.golden import made_pictures
from saccade.preprocess import normalize
from tests.export.graph import models
from tests.export.graph.conftest import write
from tests.export.quantize.conftest import LENIENT

LABELS = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """val/<label> and test/<label>, six made pictures each."""
    root = tmp_path_factory.mktemp("data")
    for part, seed in (("val", 1), ("test", 2)):
        made = made_pictures(6 * len(LABELS), 40, 60, seed)
        for index, pixels in enumerate(made):
            folder = root / "pictures" / part / LABELS[index % len(LABELS)]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return root / "pictures"


@pytest.fixture(scope="module", params=["Vit", "Swin"])
def parent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A classifier of `models` through `saccade export --from-onnx`."""
    net, folder = models.lively(getattr(models, request.param)()), tmp_path_factory.mktemp("taken")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    file = write(net, net.size, folder / "net.onnx", "script")
    words = ["--models", str(folder / "models"), "--name", "taken", "--labels", str(folder / "labels.txt")]
    assert main(["export", "--from-onnx", str(file), *words]) == 0
    return open_bundle(folder / "models" / "taken" / "1")


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_a_model_from_an_onnx_file_has_variants(parent: Bundle, precision: str, pictures: Path) -> None:
    """Smaller, near its parent in logits and every layer's weights, and verified again from disk."""
    variant = quantize(parent, precision, pictures, bounds=LENIENT)  # type: ignore[arg-type]
    card = variant.manifest.card.variant
    assert card is not None
    assert card.split == "image folder pictures, val, neither calibrated on nor chosen by"
    assert card.maps["attention"] >= 0.95
    assert variant.manifest.provenance.origin == parent.manifest.provenance.origin
    assert variant.weights.stat().st_size < 0.75 * parent.weights.stat().st_size
    spec = parent.manifest.preprocessing
    pixels = normalize(made_pictures(4, spec.height, spec.width, 3), spec)
    ours, theirs = (open_graph(bundle.graph)(pixels) for bundle in (variant, parent))
    for output, values in theirs.items():
        assert np.abs(ours[output] - values).max() < 0.1 * max(np.abs(values).max(), 0.1)
    if precision == "int8":
        assert verify(open_bundle(variant.folder), None).manifest.parity == variant.manifest.parity

"""Variants of the small bundles, made once."""

import shutil
from pathlib import Path

import pytest

from export.quantize.choose import Bounds
from export.quantize.quantize import quantize
from saccade.bundle import Bundle, open_bundle
from tests.conftest import NETS
from tests.once import shared

LENIENT = Bounds(top1=0.05)
"""Seventy digits judge: one label is more than a point."""


@pytest.fixture(scope="session")
def variants(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with each of NETS and both its variants. Only to be read."""

    def make(folder: Path, name: str) -> None:
        shutil.copytree(models / name, folder / name)
        for precision in ("int8", "float16"):
            quantize(open_bundle(folder / name / "1"), precision, None, bounds=LENIENT)

    return shared(tmp_path_factory, "variants", [*NETS], make)


@pytest.fixture(params=[f"{name}-{precision}" for name in NETS for precision in ("int8", "float16")])
def variant(request: pytest.FixtureRequest, variants: Path) -> Bundle:
    """Each of them in turn."""
    return open_bundle(variants / request.param / "1")


@pytest.fixture
def parent(variant: Bundle, variants: Path) -> Bundle:
    """That of `variant`."""
    assert variant.manifest.parent is not None
    return open_bundle(variants / variant.manifest.parent.name / "1")


@pytest.fixture
def copy(variants: Path, tmp_path: Path) -> Path:
    """A models folder of one's own with a parent, tiny-cct, and its variant in int8."""
    for name in ("tiny-cct", "tiny-cct-int8"):
        shutil.copytree(variants / name, tmp_path / "models" / name)
    return tmp_path / "models"

"""Pictures to be changed: parts of a photograph, at the size of small nets."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.conftest import ROOT

Pixels = NDArray[np.uint8]


def parts(height: int, width: int, count: int = 6) -> list[Pixels]:
    """Parts of the photograph in examples/, each 160 pixels wide and reduced."""
    with Image.open(ROOT / "examples/chelsea.jpg") as photograph:
        picture = photograph.convert("RGB")
    boxes = [(left, top) for top in (20, 120) for left in (0, 110, 220)][:count]
    return [
        np.array(picture.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, left + 160, top + 160)))
        for left, top in boxes
    ]


@pytest.fixture(scope="session")
def pictures() -> list[Pixels]:
    """Six of 32 x 32."""
    return parts(32, 32)


@pytest.fixture(scope="session", params=[(32, 32), (24, 17), (16, 40)], ids=str)
def picture(request: pytest.FixtureRequest) -> Pixels:
    """Square or not, even or odd."""
    return parts(*request.param, count=1)[0]

"""The tests that a bundle goes through: names, strengths, and the change of a picture that each of them is."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.evaluation.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from export.evaluation.robustness.levels import Pixels, Random
from export.evaluation.robustness.patchdrop import ORDERS, Order, chosen, drop
from export.evaluation.robustness.pose import rotate, translate, zoom
from saccade.manifest import Preprocessing

Family = Literal["rotation", "zoom", "translation", "patchdrop", "corruptions", "mosaics"]
FAMILIES: tuple[Family, ...] = ("rotation", "zoom", "translation", "patchdrop", "corruptions", "mosaics")

DEGREES = tuple(range(-90, 91, 15))
FACTORS = tuple(tenths / 10 for tenths in range(5, 16))
SHIFTS = tuple(sixteenths / 16 for sixteenths in range(5))
"""Of the side."""
SHARES = tuple(tenths / 10 for tenths in range(10))
"""Of the patches."""

Change = Callable[[Pixels, Random, NDArray[np.float32] | None], Pixels]
"""(picture, what may be drawn from, the model's map of the picture as it was) -> the picture changed."""


class Condition(NamedTuple):
    family: Family
    test: str
    value: float
    """How strong: degrees, factor, share of the side or of the patches, severity."""
    change: Change


def conditions(
    families: tuple[Family, ...], spec: Preprocessing, grid: tuple[int, int] | None, *, has_map: bool
) -> Iterator[Condition]:
    """Test by test, strengths rising. PatchDrop needs a grid, and all of its orders but the random one a map."""
    if "rotation" in families:
        yield from (Condition("rotation", "rotation", value, partial(_rotated, value)) for value in DEGREES)
    if "zoom" in families:
        yield from (Condition("zoom", "zoom", value, partial(_zoomed, value)) for value in FACTORS)
    if "translation" in families:
        yield from (Condition("translation", "translation", value, partial(_translated, value)) for value in SHIFTS)
    if "patchdrop" in families and grid is not None:
        for order in ORDERS if has_map else ORDERS[:1]:
            for share in SHARES:
                change = partial(_dropped, order, share, grid, mean_colour(spec))
                yield Condition("patchdrop", f"patchdrop_{order.replace('-', '_')}", share, change)
    if "corruptions" in families:
        for name in CORRUPTIONS:
            yield from (Condition("corruptions", name, value, partial(_corrupted, name, value)) for value in SEVERITIES)


def mean_colour(spec: Preprocessing) -> Pixels:
    """RGB (3,): the colour that is nearest to zero after normalisation."""
    mean = np.rint(np.array(spec.mean) * 255).clip(0, 255).astype(np.uint8)
    return mean if spec.channels == "RGB" else mean[::-1]


def _rotated(degrees: float, pixels: Pixels, *_: object) -> Pixels:
    return rotate(pixels, degrees)


def _zoomed(factor: float, pixels: Pixels, *_: object) -> Pixels:
    return zoom(pixels, factor)


def _translated(share: float, pixels: Pixels, random: Random, _: object) -> Pixels:
    return translate(pixels, share, random)


def _corrupted(name: str, severity: int, pixels: Pixels, random: Random, _: object) -> Pixels:
    return corrupt(pixels, name, severity, random)


def _dropped(
    order: Order,
    share: float,
    grid: tuple[int, int],
    colour: Pixels,
    pixels: Pixels,
    random: Random,
    salience: NDArray[np.float32] | None,
) -> Pixels:
    map_ = np.zeros(grid[0] * grid[1], np.float32) if salience is None else salience
    return drop(pixels, grid, chosen(order, share, map_, random), colour)

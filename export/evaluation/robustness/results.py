"""What robustness.json says, as types."""

from export.evaluation.figures import wilson_interval
from export.evaluation.robustness.conditions import Family
from saccade.frozen import Frozen
from saccade.manifest import Precision


class Share(Frozen):
    """So many of so many, with the 95 % interval of Wilson."""

    count: int
    of: int
    share: float
    interval95: tuple[float, float]


def share(count: int, of: int) -> Share:
    return Share(count=count, of=of, share=count / of, interval95=wilson_interval(count, of))


class Mean(Frozen):
    """A mean of values from 0 to 1 over pictures, with the 95 % interval of a normal distribution, cut off there."""

    mean: float
    interval95: tuple[float, float]


class Point(Frozen):
    value: float
    """Degrees, factor, share of the side or of the patches, or severity."""
    right: Share
    """Pictures that are given their label."""


class Curve(Frozen):
    family: Family
    test: str
    points: tuple[Point, ...]

    @property
    def mean(self) -> float:
        """Accuracy, mean over the strengths."""
        return sum(point.right.share for point in self.points) / len(self.points)


class Occurrence(Frozen):
    """Which classes occur in mosaics, read from the order of the scores; `chance` is of an order at random."""

    classes: float
    """That occur in one, mean over mosaics."""
    first: Share
    """Mosaics whose first label occurs in them."""
    first_chance: float
    found: Mean
    """Of the k classes that occur, the share among the first k labels; its chance is `first_chance`."""
    average_precision: Mean
    average_precision_chance: float


class Corners(Frozen):
    """Whether upper left and lower right tile are of one class: a half of the mosaics, so chance is 0.5."""

    probe: Share
    """Mosaics that a linear probe on the sorted logits judges right."""
    class_map: Share | None
    """Mosaics that the class map judges right; None without one, or where a tile has no patch of its own."""
    tile_labels: Share | None
    """Corners whose label is the highest of the class map's sums over the tile."""


class MosaicResult(Frozen):
    side: int
    """Pictures along each side: 2 or 3."""
    mosaics: int
    occurrence: Occurrence
    corners: Corners


class BundleResult(Frozen):
    id: str
    weights_sha256: str
    precision: Precision
    size: tuple[int, int]
    """Height and width of the net's input."""
    grid: tuple[int, int] | None
    """Rows and columns of patches that PatchDrop hides."""
    salience: str | None
    """The map that says which patches are salient."""
    clean: Share
    curves: tuple[Curve, ...]
    corruption_mean: float | None
    """Accuracy, mean over all corruptions and severities."""
    mosaics: tuple[MosaicResult, ...]

    def curve(self, test: str) -> Curve | None:
        """None where the bundle did not go through the test."""
        return next((curve for curve in self.curves if curve.test == test), None)


class Robustness(Frozen):
    """Of several bundles on the same pictures."""

    split: str
    data_sha256: str
    """Fingerprint of the split."""
    pictures: int
    """Measured."""
    pictures_of_split: int
    of_a_class: tuple[int, int]
    """Of those measured, the fewest and the most of one class that has any."""
    seed: int
    families: tuple[Family, ...]
    corruptions: str
    """Name of the set."""
    versions: dict[str, str]
    bundles: tuple[BundleResult, ...]

    def tests(self, family: Family | None = None) -> list[Curve]:
        """A curve of each test that any bundle went through, of one family or of all: for its name and strengths."""
        found = {curve.test: curve for one in self.bundles for curve in one.curves}
        return [curve for curve in found.values() if family in (None, curve.family)]

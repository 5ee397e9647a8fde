"""Mosaics: grids of pictures, of which half show one class in opposite corners. A data set, fixed by its seed."""

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.evaluation.robustness.sample import members
from export.examples import Examples
from saccade.errors import DataError
from saccade.manifest import Preprocessing


class Mosaics(Examples):
    """`count` mosaics of `side` x `side` pictures, each at the size that `spec` gives it.

    Every tile's class is drawn evenly, by itself, but for the last one's: of every second mosaic it is the class of the
    first tile, of the others another one. So nothing but the relation of the two tells which mosaics are which. Within
    a class pictures are drawn evenly; the last tile's is never the first one's.
    """

    labels: NDArray[np.int64]
    """(n,): 1 where the upper left and the lower right tile are of one class, else 0."""

    def __init__(self, examples: Examples, spec: Preprocessing, side: int, count: int, seed: int) -> None:
        """Classes of fewer than two pictures are left out. Raises DataError where fewer than two are left."""
        self._examples, self._spec, self.side = examples, spec, side
        found = [places for places in members(examples.labels) if len(places) >= 2]
        if len(found) < 2:
            raise DataError(f"mosaics need two classes of at least two pictures each, and there are {len(found)}")
        random = np.random.default_rng([seed, side])
        self.labels = np.arange(count, dtype=np.int64) % 2
        classes = random.integers(len(found), size=(count, side * side))
        other = (classes[:, 0] + random.integers(1, len(found), count)) % len(found)
        classes[:, -1] = np.where(self.labels == 1, classes[:, 0], other)
        self.tiles = np.array([[random.choice(found[place]) for place in row] for row in classes.tolist()])
        """(n, side²), row by row: their places in `examples`."""
        for tiles, place in zip(self.tiles, classes[:, -1].tolist(), strict=True):
            if tiles[-1] == tiles[0]:
                tiles[-1] = random.choice(found[place][found[place] != tiles[0]])
        self.tile_labels: NDArray[np.int64] = examples.labels[self.tiles]
        """(n, side²): their classes."""

    def picture(self, index: int) -> Image.Image:
        """RGB, `side` times as high and wide as a picture by itself."""
        height, width = self._spec.height, self._spec.width
        mosaic = Image.new("RGB", (self.side * width, self.side * height))
        for place, tile in enumerate(self.tiles[index].tolist()):
            row, column = divmod(place, self.side)
            pixels = np.ascontiguousarray(self._examples.pixels(tile, self._spec))
            mosaic.paste(Image.fromarray(pixels), (column * width, row * height))
        return mosaic

    def fingerprint(self) -> str:
        return hashlib.sha256(
            f"{self._examples.fingerprint()} {self.side} ".encode() + self.tiles.tobytes()
        ).hexdigest()


def whole(spec: Preprocessing) -> Preprocessing:
    """The same net's input, with nothing of a picture cropped: what brings a mosaic to the net."""
    return spec.model_copy(update={"fit": "stretch", "shortest_edge": None, "stretch_to": None})

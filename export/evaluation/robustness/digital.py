"""What processing does to a picture: of float64 (H, W, 3) from 0 to 1, to the same, which may leave 0 to 1."""

import io

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from export.evaluation.robustness.fields import SIDE, grid_of, resample, scale
from export.evaluation.robustness.levels import Floats, Random, to_levels


def contrast(x: Floats, _: Random, factor: float) -> Floats:
    """(x - mean) · factor + mean, each channel about its own mean over the picture."""
    means = x.mean((0, 1))
    return (x - means) * factor + means


def saturate(x: Floats, _: Random, factor: float, amount: float) -> Floats:
    """The saturation of HSV · factor + amount, hue and value as they were."""
    hsv = rgb_to_hsv(x)
    hsv[..., 1] = (hsv[..., 1] * factor + amount).clip(0, 1)
    return hsv_to_rgb(hsv)


def elastic(x: Floats, random: Random, strength: float, smoothness: float, shift: float) -> Floats:
    """An affine map that moves three points by up to `shift` each way, then displacements of ± `strength`, smoothed.

    All are shares of the shorter side. Bilinear; mirrored at the edge.
    """
    shape, side = np.array(x.shape[:2]), min(x.shape[:2])
    middle, third = shape // 2, side // 3
    points = middle + third * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])  # row, column
    moved = points + random.uniform(-shift * side, shift * side, points.shape)
    back = np.linalg.solve(np.c_[moved, np.ones(3)], points)  # (3, 2): place in the result -> in the picture
    place = np.indices(x.shape[:2]).astype(np.float64) + _displacements(x, random, strength, smoothness)
    rows, columns = np.moveaxis(np.c_[place.reshape(2, -1).T, np.ones(place[0].size)] @ back, -1, 0)
    where = np.stack([rows, columns]).reshape(place.shape)
    return np.stack([map_coordinates(x[..., channel], where, order=1, mode="mirror") for channel in range(3)], -1)


def pixelate(x: Floats, _: Random, share: float) -> Floats:
    """Reduced to that share of its sides and enlarged again, by means over boxes."""
    picture = Image.fromarray(to_levels(x))
    small = picture.resize(
        (max(int(picture.width * share), 1), max(int(picture.height * share), 1)), Image.Resampling.BOX
    )
    return np.asarray(small.resize(picture.size, Image.Resampling.BOX)) / 255


def jpeg(x: Floats, _: Random, quality: int) -> Floats:
    """Through a JPEG file of that quality."""
    file = io.BytesIO()
    Image.fromarray(to_levels(x)).save(file, "JPEG", quality=quality)
    with Image.open(file) as picture:
        return np.asarray(picture) / 255


def _displacements(x: Floats, random: Random, strength: float, smoothness: float) -> Floats:
    """(2, H, W), in pixels: down and right."""

    def one() -> Floats:
        field = random.uniform(-1, 1, grid_of(x))
        smooth = gaussian_filter(field, smoothness * SIDE, mode="reflect", truncate=3.0)
        return strength * SIDE * scale(x) * resample(smooth, x.shape)

    return np.stack([one(), one()])

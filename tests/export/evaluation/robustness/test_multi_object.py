"""What is read of mosaics: figures as scikit-learn and plain loops have them, maps as the eager net has them."""

import io
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import label_ranking_average_precision_score

from export.data import Digits
from export.evaluation.robustness.looks import Looks
from export.evaluation.robustness.mosaics import Mosaics, whole
from export.evaluation.robustness.multi_object import judge, mosaics_of, occurrence, tile_patches
from export.evaluation.robustness.sample import halves
from export.examples import load
from export.reference import rebuild
from saccade.bundle import open_bundle
from saccade.preprocess import normalize
from saccade.progress import Progress


def test_which_classes_occur_is_read_from_the_order_of_the_scores() -> None:
    """Average precision by scikit-learn; the others by a loop over the mosaics."""
    random = np.random.default_rng(0)
    logits, tiles = random.normal(size=(200, 7)).astype(np.float32), random.integers(7, size=(200, 4))
    seen = occurrence(logits, tiles)
    occurs = [set(row.tolist()) for row in tiles]
    best = [np.argsort(-row)[: len(present)].tolist() for row, present in zip(logits, occurs, strict=True)]
    truth = np.array([[label in present for label in range(7)] for present in occurs])
    assert seen.average_precision.mean == pytest.approx(label_ranking_average_precision_score(truth, logits))
    assert seen.first.count == sum(order[0] in present for order, present in zip(best, occurs, strict=True))
    found = [len(set(order) & present) / len(present) for order, present in zip(best, occurs, strict=True)]
    assert seen.found.mean == pytest.approx(np.mean(found))
    assert seen.classes == pytest.approx(np.mean([len(present) for present in occurs]))
    error = 1.96 * np.std(found, ddof=1) / 200**0.5
    assert seen.found.interval95 == pytest.approx((np.mean(found) - error, np.mean(found) + error))


@pytest.mark.parametrize("present", [[0], [0, 3], [1, 2, 4]])
def test_chance_is_the_mean_over_all_orders(present: list[int]) -> None:
    """All 120 orders of five labels, each as likely."""
    orders = np.array(list(permutations(range(5))), np.float32)
    seen = occurrence(orders, np.tile(present, (120, 1)))
    assert seen.average_precision_chance == pytest.approx(seen.average_precision.mean)
    assert seen.first_chance == pytest.approx(seen.first.share)
    assert seen.first_chance == pytest.approx(seen.found.mean)


@pytest.mark.parametrize(("grid", "side"), [((8, 8), 2), ((8, 8), 3), ((4, 6), 3), ((3, 5), 2), ((1, 4), 2)])
def test_a_tile_has_the_patches_whose_middles_lie_in_it(grid: tuple[int, int], side: int) -> None:
    """By a loop over the patches; where there is none, nothing is judged."""
    rows, columns = grid
    first, last = [], []
    for row, column in product(range(rows), range(columns)):
        down, right = (row + 0.5) / rows, (column + 0.5) / columns
        if down < 1 / side and right < 1 / side:
            first.append(row * columns + column)
        if down > 1 - 1 / side and right > 1 - 1 / side:
            last.append(row * columns + column)
    seen = tile_patches(grid, side)
    if not first:
        assert seen is None
    else:
        assert seen is not None
        assert (sorted(seen[0].tolist()), sorted(seen[1].tolist())) == (first, last)


@pytest.mark.parametrize(("name", "side"), [("tiny-cct", 2), ("tiny-resnet", 3)])
def test_corners_are_judged_as_by_the_eager_net(models: Path, name: str, side: int) -> None:
    """The net rebuilt in PyTorch, its class map, and a logistic regression on its sorted logits, in a plain loop."""
    bundle = open_bundle(models / name / "1")
    spec, net, examples = bundle.manifest.preprocessing, rebuild(bundle), Digits().test()
    seen = judge(Looks(bundle), examples, spec, side, 40, 3, Progress())
    rows, columns = net.class_grid or (0, 0)
    features, same, right_labels, right_pairs, all_logits, all_tiles = [], [], 0, 0, [], []
    for number, half in enumerate(halves(examples.labels, 3)):
        mosaics = Mosaics(examples.choose(half), spec, side, 20, 6 + number)
        pixels = load(mosaics, whole(spec)).pixels
        with torch.no_grad():
            outputs = net.explain(torch.from_numpy(normalize(pixels, spec)))
        assert outputs.class_tokens is not None
        maps = (outputs.class_tokens @ net.head.weight.detach().T).reshape(20, rows, columns, 10)
        for index in range(20):
            given = []
            for down, right in ((0, 0), (side - 1, side - 1)):
                total = torch.zeros(10)
                for row, column in product(range(rows), range(columns)):
                    if int((row + 0.5) / rows * side) == down and int((column + 0.5) / columns * side) == right:
                        total += maps[index, row, column]
                given.append(int(total.argmax()))
            tiles = mosaics.tile_labels[index].tolist()
            right_labels += (given[0] == tiles[0]) + (given[1] == tiles[-1])
            right_pairs += (given[0] == given[1]) == (tiles[0] == tiles[-1])
        features.append(outputs.logits.sort(dim=1, descending=True).values.double().numpy())
        same.append(mosaics.labels)
        all_logits.append(outputs.logits.numpy())
        all_tiles.append(mosaics.tile_labels)
    probed = 0
    for fit, asked in ((0, 1), (1, 0)):
        mean, deviation = features[fit].mean(0), features[fit].std(0)
        probe = LogisticRegression(max_iter=1000).fit((features[fit] - mean) / deviation, same[fit])
        probed += int((probe.predict((features[asked] - mean) / deviation) == same[asked]).sum())
    corners = seen.corners
    assert corners.class_map is not None
    assert corners.tile_labels is not None
    assert (corners.class_map.count, corners.class_map.of) == (right_pairs, 40)
    assert (corners.tile_labels.count, corners.tile_labels.of) == (right_labels, 80)
    assert (corners.probe.count, corners.probe.of) == (probed, 40)
    expected = occurrence(np.concatenate(all_logits), np.concatenate(all_tiles))
    assert seen.occurrence.first == expected.first
    assert seen.occurrence.average_precision.mean == pytest.approx(expected.average_precision.mean)


def test_a_model_without_a_class_map_is_probed_alone(models: Path) -> None:
    """A class-token ViT has scores, and they are what every bundle can be asked."""
    bundle = open_bundle(models / "tiny-vit" / "1")
    seen = judge(Looks(bundle), Digits().test(), bundle.manifest.preprocessing, 2, 8, 0, Progress())
    assert seen.corners.class_map is None
    assert seen.corners.tile_labels is None
    assert seen.corners.probe.of == 8


def test_mosaics_are_counted_as_they_are_seen(models: Path) -> None:
    """Batch by batch, so that the time left is known while they run."""

    class Noted(Progress):
        steps: tuple[int, ...] = ()

        def step(self, failed: int, count: int = 1) -> None:
            self.steps += (count,)
            super().step(failed, count)

    bundle, progress = open_bundle(models / "tiny-vit" / "1"), Noted(io.StringIO())
    judge(Looks(bundle), Digits().test(), bundle.manifest.preprocessing, 2, 80, 0, progress)
    assert progress.done == 80
    assert max(progress.steps) <= 16


def test_an_interval_of_shares_stays_among_them() -> None:
    """Where nearly all is found, the normal distribution would go on beyond 1; where nearly nothing is, below 0."""
    logits = np.tile(np.arange(5, 0, -1.0, np.float32), (20, 1))
    for common, rare in ((0, 4), (4, 0)):
        tiles = np.full((20, 4), common)
        tiles[0] = rare
        found = occurrence(logits, tiles).found
        assert found.mean == (0.95 if common == 0 else 0.05)
        assert 0 <= found.interval95[0] < found.mean < found.interval95[1] <= 1
        assert (found.interval95[0] == 0) == (common == 4)
        assert (found.interval95[1] == 1) == (common == 0)


def test_there_are_as_many_mosaics_as_pictures() -> None:
    """An even number, and enough to fit a probe on."""
    assert [mosaics_of(pictures) for pictures in (1, 9, 500, 1001)] == [8, 8, 500, 1000]

"""Pictures through a graph, many at a time: what eager PyTorch says of each, in their order."""

import io
import pickle
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.cifar10 import Cifar10
from export.data import Digits
from export.evaluation.predict import BATCH, predict
from export.examples import Examples
from export.recipe import load_recipe
from export.reference import rebuild
from export.runtime import open_graph
from saccade.bundle import Bundle, open_bundle
from saccade.errors import DataError
from saccade.preprocess import resize
from saccade.progress import Progress
from tests.export.test_data import write_cifar10, write_record


@pytest.fixture
def cct(models: Path) -> Bundle:
    return open_bundle(models / "tiny-cct" / "1")


def test_each_output_is_that_of_its_picture(cct: Bundle) -> None:
    """In the pictures' order, the last and smaller batch too; whichever outputs are asked for."""
    examples = Digits().test().choose(np.arange(5 * BATCH + 3))
    spec = cct.manifest.preprocessing
    progress = Progress(io.StringIO(), done=1)
    graph = open_graph(cct.graph, threads=1, only=("logits", "rollout"))
    found = predict(graph, examples, spec, progress=progress, threads=3)
    pixels = np.stack([resize(example.picture, spec) for example in examples])
    inputs = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - torch.tensor(spec.mean)[:, None, None]) / (
        torch.tensor(spec.std)[:, None, None]
    )
    with torch.inference_mode():
        expected = rebuild(cct)(inputs).numpy()
    np.testing.assert_allclose(found["logits"], expected, atol=1e-4)
    assert found["rollout"].shape == (len(examples), 64)
    assert progress.done == 1 + len(examples)


def test_the_number_of_threads_changes_no_bit(cct: Bundle) -> None:
    """Batches are the same whoever takes them."""
    graph, examples = open_graph(cct.graph, threads=1, only=("logits",)), Digits().test()
    one, four = (predict(graph, examples, cct.manifest.preprocessing, threads=threads) for threads in (1, 4))
    np.testing.assert_array_equal(one["logits"], four["logits"])


def test_a_change_gets_the_picture_at_the_size_of_the_net_and_its_number(cct: Bundle) -> None:
    """And what it gives is what runs: pictures told to be others answer as those do."""
    graph, spec = open_graph(cct.graph, threads=1, only=("logits",)), cct.manifest.preprocessing
    examples = Digits().test()
    held = [resize(example.picture, spec) for example in examples]

    def reverse(picture: np.ndarray, index: int) -> np.ndarray:
        np.testing.assert_array_equal(picture, held[index])
        return held[len(held) - 1 - index]

    plain = predict(graph, examples, spec)["logits"]
    np.testing.assert_allclose(predict(graph, examples, spec, change=reverse)["logits"], plain[::-1], atol=1e-5)


class Counted(Examples):
    """Pictures that are counted as long as anybody holds them."""

    def __init__(self, count: int) -> None:
        self.labels = np.zeros(count, np.int64)
        self.held = self.most = 0
        self._counting = threading.Lock()

    def picture(self, index: int) -> Image.Image:
        picture = Image.new("RGB", (40, 30))
        with self._counting:
            self.held += 1
            self.most = max(self.most, self.held)
        weakref.finalize(picture, self._let_go)
        return picture

    def _let_go(self) -> None:
        with self._counting:
            self.held -= 1

    def fingerprint(self) -> str:
        return ""


def test_memory_does_not_grow_with_the_number_of_pictures(cct: Bundle) -> None:
    """A thread holds the picture that it prepares and the one before it, however many come."""
    graph = open_graph(cct.graph, threads=1, only=("logits",))
    for count in (100, 1_000):
        examples = Counted(count)
        predict(graph, examples, cct.manifest.preprocessing, threads=2)
        assert examples.held == 0
        assert examples.most <= 4


def test_what_is_wrong_with_a_picture_ends_it(cct: Bundle) -> None:
    """No figure is made of some of the pictures; none at all is said too."""
    graph, examples = open_graph(cct.graph, threads=1, only=("logits",)), Digits().test()

    def fail(picture: np.ndarray, index: int) -> np.ndarray:
        if index == 200:
            raise DataError("picture 200 is damaged")
        return picture

    with pytest.raises(DataError, match="picture 200 is damaged"):
        predict(graph, examples, cct.manifest.preprocessing, change=fail)
    with pytest.raises(DataError, match="no pictures"):
        predict(graph, examples.choose(np.arange(0)), cct.manifest.preprocessing)


def test_records_of_cifar10_are_read_in_another_process_as_here(tmp_path: Path) -> None:
    """What is sent there names the files and does not hold them."""
    write_cifar10(tmp_path / "data")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    write_record(tmp_path / "data" / "test_batch.bin", 9_999, 3, pixels)
    examples = Cifar10(tmp_path / "data").test()
    examples.picture(0)
    sent = pickle.dumps(examples)
    assert len(sent) < 200_000
    np.testing.assert_array_equal(np.asarray(pickle.loads(sent).picture(9_999)), pixels)


@pytest.mark.parametrize(
    "spec", [{}, {"fit": "stretch", "shortest_edge": None}, {"height": 24, "width": 24}, {"shortest_edge": 48}],
    ids=["as it is", "stretched", "smaller", "cropped"],
)  # fmt: skip
def test_a_record_is_seen_as_the_picture_that_it_is(tmp_path: Path, spec: dict[str, object]) -> None:
    """What goes to the net is what the one preprocessing makes of the picture, chosen or not."""
    write_cifar10(tmp_path / "data")
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    write_record(tmp_path / "data" / "test_batch.bin", 7, 3, pixels)
    preprocessing = load_recipe("cifar10-cct").preprocessing.model_copy(update=spec)
    examples = Cifar10(tmp_path / "data").test()
    expected = resize(Image.fromarray(pixels), preprocessing)
    np.testing.assert_array_equal(examples.pixels(7, preprocessing), expected)
    np.testing.assert_array_equal(examples.choose(np.array([3, 7])).pixels(1, preprocessing), expected)

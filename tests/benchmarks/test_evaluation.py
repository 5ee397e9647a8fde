"""The benchmark of evaluation compares like with like."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.evaluation import compare, photographs, records
from benchmarks.works import Work
from tests.conftest import ROOT


@pytest.mark.parametrize("kind", ["records", "photographs"])
def test_both_loops_answer_the_same_for_the_same_pictures(kind: str, tmp_path: Path) -> None:
    """`compare` holds their logits to each other in each round, and gives a speed of each."""
    folder = ROOT / "models/cifar10-cct/1"
    picture = ROOT / "examples/chelsea.jpg"
    work = Work("cct", "", folder, "cifar10-cct@1", picture, "image/jpeg")
    (tmp_path / "data").mkdir()
    bundle, examples, read = (records if kind == "records" else photographs)(work, tmp_path / "data", 40)
    assert len(examples) == 40
    assert read(3).shape == (32, 32, 3)
    ours, bare = compare(bundle, examples, read, 2)
    assert len(ours) == len(bare) == 2
    assert min(*ours, *bare) > 0


def test_another_picture_is_noticed(tmp_path: Path) -> None:
    """A loop that reads something else is no limit of ours."""
    work = Work("cct", "", ROOT / "models/cifar10-cct/1", "cifar10-cct@1", ROOT / "examples/chelsea.jpg", "image/jpeg")
    (tmp_path / "data").mkdir()
    bundle, examples, read = records(work, tmp_path / "data", 20)
    with pytest.raises(AssertionError, match="Not equal"):
        compare(bundle, examples, lambda index: np.zeros_like(read(index)), 1)

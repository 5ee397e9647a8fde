"""The service as a contestant: on the model that is measured alone, and only where it answers."""

from pathlib import Path

import pytest

from benchmarks.contestants import OURS, folder_of_one
from benchmarks.entrants import LiveServer
from benchmarks.works import Work
from saccade.bundle import find_bundles
from tests.service.reference import PNG


@pytest.fixture
def work(models: Path, tmp_path: Path) -> Work:
    picture = tmp_path / "picture.png"
    picture.write_bytes(PNG)
    return Work("tiny", "tiny-resnet", models / "tiny-resnet" / "1", "tiny-resnet@1", picture, "image/png")


def test_a_work_is_served_alone_whatever_the_cache_held(work: Work, models: Path, tmp_path: Path) -> None:
    """Another model linked by an earlier state of the benchmarks, a link that leads elsewhere or nowhere."""
    folder = tmp_path / "models-tiny"
    folder.mkdir()
    (folder / "tiny-cct").symlink_to(models / "tiny-cct")
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    (folder / "tiny-resnet").symlink_to(models / "tiny-vit")
    for _ in range(2):
        assert folder_of_one(work, tmp_path) == folder
        (found,) = find_bundles(folder)
        assert found.resolve() == work.bundle.resolve()
        assert [one.name for one in folder.iterdir()] == ["tiny-resnet"]


def test_a_server_that_refuses_is_not_measured(work: Work, tmp_path: Path) -> None:
    """Said before anything is: the figures of refusals are better than those of answers."""
    work.picture.write_bytes(b"no picture")
    with pytest.raises(RuntimeError, match=r"answers tiny-resnet with 400: .*invalid_image"):
        LiveServer(OURS, work, "labels", {}, tmp_path)

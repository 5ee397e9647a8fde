"""A name at the hub: fetched whole, gone on with where it broke, checked, and never half used."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from export.pretrained.hub import find
from saccade.errors import DataError
from tests.export.pretrained.small_hub import COMMIT, SmallHub

NAME = "somebody/tiny-vit"
WEIGHTS = bytes(range(256)) * 4096
FILES = {
    "config.json": json.dumps({"model_type": "vit"}).encode(),
    "preprocessor_config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"a pickle",
    "README.md": b"# a card",
}


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, which huggingface_hub reads when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    """The hub that huggingface_hub speaks to, with an empty cache."""
    with SmallHub(NAME, FILES) as it:
        point_at(it.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield it


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_name_gives_its_json_and_safetensors_and_nothing_else(hub: SmallHub) -> None:
    """No pickle is even fetched, and the answer says which commit it is."""
    found = find(NAME)
    assert contents(found.folder) == {name: FILES[name] for name in FILES if name.endswith((".json", ".safetensors"))}
    assert found.revision == COMMIT
    assert set(hub.served) == set(contents(found.folder))


def test_a_folder_of_that_name_goes_before_the_hub(hub: SmallHub, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    assert find(NAME) == (Path(NAME), None)
    assert not hub.served
    with pytest.raises(DataError, match="--revision belongs to a name at the hub"):
        find(NAME, "main")


def test_a_download_that_breaks_off_goes_on_where_it_was(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second request asks for what is missing, and the whole is the file."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 65536)  # by default what is less than 10 MB is kept back
    hub.fault["model.safetensors"] = "cut"
    assert contents(find(NAME).folder)["model.safetensors"] == WEIGHTS
    assert hub.served["model.safetensors"] < 1.6 * len(WEIGHTS)  # half of it, and then the other half


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_file_is_refused_by_its_checksum_and_fetched_anew(hub: SmallHub, name: str) -> None:
    """Of the right length, with one bit changed: it is never used, and the same command then works."""
    hub.fault[name] = "damage"
    with pytest.raises(DataError, match=rf"{name} arrived damaged and was removed: its checksum is [0-9a-f]+, the hub"):
        find(NAME)
    assert contents(find(NAME).folder)[name] == FILES[name]


def test_what_was_never_finished_is_not_used(hub: SmallHub) -> None:
    """A hub that fails within a model is an error that names it; what came before is kept for the next try."""
    hub.fault["model.safetensors"] = "refuse"
    with pytest.raises(DataError, match=rf"{NAME} could not be had from the hub at {hub.url}: .*500"):
        find(NAME)
    before = dict(hub.served)
    assert contents(find(NAME).folder)["model.safetensors"] == WEIGHTS
    assert hub.served["config.json"] == before["config.json"]


def test_without_a_network_what_was_fetched_before_is_used_and_checked(
    hub: SmallHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline the cache is enough; bytes that changed on the disk since are noticed."""
    folder = find(NAME).folder
    point_at("http://127.0.0.1:1", monkeypatch)
    assert find(NAME).folder == folder
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(b"other")
    with pytest.raises(DataError, match=r"model\.safetensors arrived damaged"):
        find(NAME)


def test_what_else_is_in_the_cache_is_let_alone(hub: SmallHub) -> None:
    """Another program's folder, a card whose content is damaged, a link to nowhere: not looked at, not removed."""
    folder = find(NAME).folder
    (folder / "onnx").mkdir()
    (folder / "README.md").symlink_to(folder / ("0" * 40))
    card = folder.parents[1] / "blobs" / ("1" * 40)
    card.write_bytes(b"damaged")
    (folder / "CARD.md").symlink_to(card)
    assert find(NAME).folder == folder
    assert card.exists()
    assert {"onnx", "README.md", "CARD.md"} <= {path.name for path in folder.iterdir()}


def test_content_that_is_gone_from_the_cache_is_said_and_fetched_again(
    hub: SmallHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to nowhere, in a cache of a time when huggingface_hub kept no list of what should be there. Without a
    network it is an error; with one, all is well.
    """
    folder = (tmp_path / "old") / find(NAME).folder.relative_to(tmp_path / "cache")
    (tmp_path / "cache").rename(tmp_path / "old")  # the list is also remembered, by its place
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "old"))
    shutil.rmtree(folder.parents[1] / "trees")
    (folder / "model.safetensors").resolve().unlink()
    with monkeypatch.context() as offline:
        point_at("http://127.0.0.1:1", offline)
        with pytest.raises(
            DataError, match=r"content of model\.safetensors is missing from the cache, .*: fetch it aga"
        ):
            find(NAME)
    assert contents(find(NAME).folder)["model.safetensors"] == WEIGHTS


def test_a_cache_without_links_says_how_to_get_a_folder(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on disks that have none: nothing there says what the content should be. The way out that is said works."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    with pytest.raises(DataError, match=rf"cannot be checked: .*snapshot_download\('{NAME}', local_dir=DIR\)"):
        find(NAME)
    snapshot_download(NAME, local_dir="own")
    assert contents(find("own").folder)["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("somebody/else", None, r"no folder somebody/else here, and somebody/else could not be had from the hub"),
        (NAME, "v9", r"tiny-vit \(revision v9\) could not be had from the hub"),
        ("./missing", None, r"\./missing is no folder here, and no name at the hub"),
        ("a/b/c", None, r"a/b/c is no folder here"),
    ],
)
def test_a_name_that_is_nowhere_is_said(hub: SmallHub, name: str, revision: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find(name, revision)


def test_a_hub_that_is_not_there_is_said(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:1", monkeypatch)
    with pytest.raises(DataError, match=r"could not be had from the hub at http://127\.0\.0\.1:1: .*"):
        find(NAME)

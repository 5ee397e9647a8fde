"""Publishing: whole or not at all, one version after the other."""

import errno
import os
import resource
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from export.nets import build
from export.publish import publish
from export.recipe import Recipe
from saccade.bundle import Bundle, open_bundle
from saccade.cli import main
from saccade.errors import BundleError, DataError

FILES = {"manifest.json", "model.onnx", "relevance.onnx", "weights.safetensors", "golden.npz"}


def test_a_bundle_holds_its_files_and_says_where_they_come_from(bundle: Bundle, runs: dict[str, Path]) -> None:
    """With the bundle alone: the recipe, the data, the split, the seed, what it cost, how many parameters there are."""
    manifest = bundle.manifest
    recipe = Recipe.model_validate_json((runs[manifest.name] / "recipe.json").read_text())
    assert {path.name for path in bundle.folder.iterdir()} == FILES
    assert Recipe.model_validate(manifest.provenance.recipe) == recipe
    assert manifest.provenance.data == "scikit-learn digits"
    assert manifest.provenance.held_out.startswith("1 of 10 training pictures of each class")
    assert manifest.card.parameters == sum(p.numel() for p in build(recipe.net, recipe.size, 10).parameters())
    assert manifest.card.training is not None
    assert manifest.card.training.epochs == 1
    assert manifest.card.training.best_epoch == 1
    assert manifest.labels == tuple("0123456789")
    best = load_file(runs[manifest.name] / "best.safetensors")
    assert all(tensor.equal(best[name]) for name, tensor in load_file(bundle.weights).items())


def test_a_second_export_of_a_name_is_its_second_version(runs: dict[str, Path], models: Path, tmp_path: Path) -> None:
    """A version is never written twice: the first one stays as it was."""
    shutil.copytree(models / "tiny-resnet", tmp_path / "models" / "tiny-resnet")
    first = (tmp_path / "models" / "tiny-resnet" / "1" / "manifest.json").read_bytes()
    assert (
        main(["export", str(runs["tiny-resnet"]), "--models", str(tmp_path / "models"), "--name", "tiny-resnet"]) == 0
    )
    assert sorted(path.name for path in (tmp_path / "models" / "tiny-resnet").iterdir()) == ["1", "2"]
    assert open_bundle(tmp_path / "models" / "tiny-resnet" / "2").manifest.id == "tiny-resnet@2"
    assert (tmp_path / "models" / "tiny-resnet" / "1" / "manifest.json").read_bytes() == first


@pytest.mark.parametrize("share", [0.05, 0.99], ids=["at once", "at the last byte"])
def test_a_full_disk_while_exporting_leaves_nothing(
    runs: dict[str, Path], models: Path, tmp_path: Path, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, exit code 2, and not even an empty folder of that name; the kernel's own limit plays the disk."""
    biggest = max(path.stat().st_size for path in (models / "tiny-resnet" / "1").iterdir())
    (tmp_path / "models").mkdir()
    arguments = ["export", str(runs["tiny-resnet"]), "--models", str(tmp_path / "models"), "--name", "new"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * biggest), limits[1]))
    try:
        code = main(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    said = capsys.readouterr().err
    assert "saccade: could not write" in said
    assert "File too large" in said
    assert list((tmp_path / "models").iterdir()) == []


def test_a_disk_that_fills_up_at_the_manifest_leaves_nothing(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last write may fail as well as the first, and an older version is not touched by it."""
    (tmp_path / "models" / "new" / "1").mkdir(parents=True)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match=r"could not write .*new/2: .*No space left on device"):
        publish(runs["tiny-resnet"], tmp_path / "models", "new")
    assert [path.name for path in (tmp_path / "models" / "new").iterdir()] == ["1"]


@pytest.mark.parametrize("name", ["Upper", "a/b", "../up", "", "with space"])
def test_a_name_that_no_url_would_take_is_refused_and_leaves_nothing(
    runs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """The name is checked before anything is written, wherever it would have led."""
    (tmp_path / "models").mkdir()
    with pytest.raises(BundleError, match="name: String should match pattern"):
        publish(runs["tiny-resnet"], tmp_path / "models", name)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert list((tmp_path / "models").iterdir()) == []


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    """And no folder for its model is made."""
    with pytest.raises(DataError, match="is not a run folder"):
        publish(tmp_path / "nothing", tmp_path / "models", "new")
    assert list(tmp_path.iterdir()) == []


def test_the_golden_file_is_small_and_holds_arrays_only(bundle: Bundle) -> None:
    """Under 1 MB, no pickles, pictures that were made here, logits and maps whole, 8 rows of each attention layer."""
    assert bundle.golden.stat().st_size < 1_000_000
    assert all(name.endswith(".npy") for name in zipfile.ZipFile(bundle.golden).namelist())
    with np.load(bundle.golden, allow_pickle=False) as file:
        golden = {name: file[name] for name in file.files}
    manifest = bundle.manifest
    assert all(array.dtype.kind in "fui" for array in golden.values())
    count = len(golden["pictures"])
    assert golden["pictures"].shape == (count, manifest.preprocessing.height, manifest.preprocessing.width, 3)
    assert golden["logits"].shape == (count, len(manifest.labels))
    assert set(manifest.outputs) <= golden.keys()
    for layer in manifest.attention:
        rows = golden[f"{layer.output}_rows"]
        assert len(set(rows.tolist())) == min(8, layer.tokens)
        assert golden[layer.output].shape == (count, layer.heads, len(rows), layer.tokens)
    if manifest.maps.rollout:
        assert golden["rollout"].shape == (count, manifest.attention[-1].patches)

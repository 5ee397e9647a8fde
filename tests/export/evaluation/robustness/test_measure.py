"""`saccade robustness`: numbers of a plain loop in eager PyTorch, bundles side by side, every bit fixed by the seed."""

import io
import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from export.data import Digits
from export.evaluation.robustness.measure import Order, measure
from export.folder import ImageFolder
from export.reference import rebuild
from saccade.bundle import open_bundle
from saccade.cli import main

EVERY = "rotation,zoom,translation,patchdrop,corruptions,mosaics"


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "robustness.json").read_text())


def run(models: Path, out: Path, *arguments: str) -> dict[str, Any]:
    assert main(["robustness", "--models", str(models), "--out", str(out), *arguments]) == 0
    return results(out)


def curve(found: dict[str, Any], bundle: int, test: str) -> dict[float, dict[str, Any]]:
    """Strength -> what was right."""
    (points,) = [one["points"] for one in found["bundles"][bundle]["curves"] if one["test"] == test]
    return {point["value"]: point["right"] for point in points}


def right_in_torch(bundle: Path, turns: int) -> int:
    """Test digits that the rebuilt net gives their label, turned by so many right angles."""
    examples = list(Digits().test())
    pictures = [np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR)) for picture, _ in examples]
    images = torch.from_numpy(np.stack([np.rot90(pixels, turns) for pixels in pictures])).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        given = rebuild(open_bundle(bundle))((images / 255 - 0.5) / 0.5).argmax(-1)
    return int((given == torch.tensor([label for _, label in examples])).sum())


@pytest.fixture(scope="module")
def whole(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every test, of an attention net, of a CNN and of one whose pictures are of another form; 20 pictures."""
    out = tmp_path_factory.mktemp("whole")
    run(models, out, "tiny-cct", "tiny-resnet", "tiny-vit", "--pictures", "20", "--seed", "5")
    return out


def test_the_numbers_are_those_of_a_plain_loop_in_pytorch(models: Path, tmp_path: Path) -> None:
    """Every test digit as it is and turned by a right angle either way, with Wilson's interval."""
    found = run(models, tmp_path, "tiny-cct", "--only", "rotation", "--pictures", "360")
    assert (found["pictures"], found["pictures_of_split"]) == (360, 360)
    points = curve(found, 0, "rotation")
    expected = {turns * 90: right_in_torch(models / "tiny-cct" / "1", turns) for turns in (-1, 0, 1)}
    assert {degrees: points[degrees]["count"] for degrees in expected} == expected
    assert found["bundles"][0]["clean"] == points[0]
    interval = binomtest(expected[90], 360).proportion_ci(0.95, method="wilson")
    assert points[90]["interval95"] == pytest.approx((interval.low, interval.high))
    assert points[90]["share"] == expected[90] / 360


def test_every_test_is_there(whole: Path) -> None:
    """Strengths as promised, each counted over all pictures; where nothing is changed, as many right as without."""
    found = results(whole)
    assert [one["id"] for one in found["bundles"]] == ["tiny-cct@1", "tiny-resnet@1", "tiny-vit@1"]
    assert found["families"] == EVERY.split(",")
    for place, one in enumerate(found["bundles"]):
        assert len([of for of in one["curves"] if of["family"] == "corruptions"]) == 18
        assert all(point["right"]["of"] == 20 for of in one["curves"] for point in of["points"])
        for test, nothing in (("rotation", 0), ("zoom", 1), ("translation", 0), ("patchdrop_salient", 0)):
            assert curve(found, place, test)[nothing] == one["clean"]
        shares = [curve(found, place, of["test"])[severity]["share"] for of in one["curves"]
                  if of["family"] == "corruptions" for severity in (1, 2, 3, 4, 5)]  # fmt: skip
        assert one["corruption_mean"] == pytest.approx(np.mean(shares))
        assert [mosaic["side"] for mosaic in one["mosaics"]] == [2, 3]
    cct, resnet, vit = found["bundles"]
    assert (cct["salience"], cct["grid"], cct["size"]) == ("rollout", [8, 8], [16, 16])
    assert (resnet["salience"], resnet["grid"]) == ("class map of the label given", [4, 4])
    assert (vit["grid"], vit["size"]) == ([4, 6], [16, 24])


def test_what_it_was_measured_with_is_said(models: Path, whole: Path) -> None:
    """Seed, split, fingerprints, versions."""
    found = results(whole)
    assert (found["seed"], found["split"], found["pictures"]) == (5, "scikit-learn digits, test", 20)
    assert found["data_sha256"] == Digits().test().fingerprint()
    manifest = open_bundle(models / "tiny-cct" / "1").manifest
    assert found["bundles"][0]["weights_sha256"] == manifest.files["weights.safetensors"].sha256
    assert {"onnxruntime", "numpy", "scipy", "pillow", "scikit-learn", "saccade"} <= found["versions"].keys()


def test_tables_and_plots_have_the_bundles_side_by_side(whole: Path) -> None:
    """robustness.md has each number with its interval; each family has a plot; nothing else is left behind."""
    assert {path.name for path in whole.iterdir()} == {
        "robustness.json", "robustness.md", "rotation.png", "zoom.png", "translation.png", "patchdrop.png",
        "corruptions.png", "mosaics.png",
    }  # fmt: skip
    for path in whole.glob("*.png"):
        assert min(Image.open(io.BytesIO(path.read_bytes())).size) > 200
    text, found = (whole / "robustness.md").read_text(), results(whole)
    assert "| accuracy, % | tiny-cct@1 | tiny-resnet@1 | tiny-vit@1 |" in text
    assert "20 of 360 pictures, 2 of each class; seed 5" in text
    assert "## PatchDrop most salient by its own map first" in text
    shares = [curve(found, place, "rotation")[-90] for place in range(3)]
    cells = [
        f"{100 * one['share']:.1f} ({100 * one['interval95'][0]:.1f} to {100 * one['interval95'][1]:.1f})"
        for one in shares
    ]
    assert f"| -90 | {' | '.join(cells)} |" in text
    fog = [curve(found, place, "fog") for place in range(3)]
    rows = [" · ".join(f"{100 * one[severity]['share']:.1f}" for severity in (1, 2, 3, 4, 5)) for one in fog]
    assert all(row in text for row in rows)


def test_a_seed_fixes_every_bit(models: Path, tmp_path: Path) -> None:
    """Files are the same, whichever bundles stand beside; another seed draws other pictures and other mosaics."""
    arguments = ("--only", "translation,mosaics", "--pictures", "12")
    first = run(models, tmp_path / "first", "tiny-resnet", *arguments, "--seed", "1")
    run(models, tmp_path / "again", "tiny-resnet", *arguments, "--seed", "1")
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    beside = run(models, tmp_path / "beside", "tiny-cct", "tiny-resnet", *arguments, "--seed", "1")
    assert beside["bundles"][1] == first["bundles"][0]
    other = run(models, tmp_path / "other", "tiny-resnet", *arguments, "--seed", "2")
    assert other["bundles"][0]["mosaics"] != first["bundles"][0]["mosaics"]


def test_noise_is_fixed_by_the_seed_alone(models: Path) -> None:
    """Every corruption counts the same a second time; another seed is other pictures and other noise."""
    bundle = open_bundle(models / "tiny-resnet" / "1")
    first, again, other = (
        measure([bundle], None, "test", Order(("corruptions",), 16, seed)).bundles[0].curves for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_model_without_maps_is_measured_without_patchdrop(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no patches; beside others its cells say none."""
    shutil.copytree(models / "tiny-resnet" / "1", tmp_path / "plain" / "1")
    path = tmp_path / "plain" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["name"] = "plain"
    manifest["maps"] |= {"class_map": None, "default": []}
    path.write_text(json.dumps(manifest))
    found = run(models, tmp_path / "out", "tiny-resnet", str(path.parent), "--only", "patchdrop", "--pictures", "10")
    assert (found["bundles"][1]["grid"], found["bundles"][1]["curves"]) == (None, [])
    assert found["bundles"][1]["clean"] == found["bundles"][0]["clean"]
    assert "| none |" in capsys.readouterr().out
    assert (tmp_path / "out" / "patchdrop.png").is_file()


def test_no_plot_of_an_earlier_run_is_left_beside_the_numbers(models: Path, tmp_path: Path) -> None:
    """A folder holds one run; what is not ours in it stays."""
    (tmp_path / "notes.txt").write_text("mine")
    run(models, tmp_path, "tiny-resnet", "--only", "zoom", "--pictures", "4")
    run(models, tmp_path, "tiny-resnet", "--only", "translation", "--pictures", "4")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"notes.txt", "robustness.json", "robustness.md", "translation.png"}


def test_bundles_that_would_see_other_pictures_are_not_compared(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an image folder, held-out pictures are a tenth of train/ for a bundle trained on it, for another one val/."""
    digits = Digits().test()
    for label, part in product(range(10), ("train", "train", "val", "test")):
        folder = tmp_path / "data" / part / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        place = int(np.flatnonzero(digits.labels == label)[len(list(folder.iterdir())) + 2 * (part != "train")])
        digits.picture(place).save(folder / f"{place}.png")
    shutil.copytree(models / "tiny-resnet" / "1", tmp_path / "tiny-resnet" / "1")
    path = tmp_path / "tiny-resnet" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    training = ImageFolder(tmp_path / "data", (255, 255, 255)).training()
    manifest["provenance"] |= {"data": "image folder data", "data_sha256": training.fingerprint()}
    path.write_text(json.dumps(manifest))
    both = (str(models / "tiny-cct" / "1"), str(path.parent), "--data", str(tmp_path / "data"))
    only = ("--only", "zoom", "--pictures", "4")
    run(models, tmp_path / "out", *both, *only)
    out = str(tmp_path / "out")
    assert main(["robustness", *both, *only, "--out", out, "--split", "held-out"]) == 2
    assert "tiny-resnet@1 on other pictures (image folder data, held-out)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tiny-cct", "--only", "rotation,frost"), "--only has 'frost'; the tests are rotation, zoom"),
        (("tiny-cct", "tiny-cct@1"), "tiny-cct@1 is given 2 times"),
        (("tiny-cct", "--seed", "-1"), "--seed must be at least 0, not -1"),
        (("nobody",), "no model 'nobody'"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    """Exit code 2, nothing written."""
    assert main(["robustness", "--models", str(models), "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out/*"))


def folder_of(root: Path, counts: dict[str, int]) -> str:
    """An image folder of so many test digits of each."""
    digits = Digits().test()
    for label, count in counts.items():
        folder = root / "test" / label
        folder.mkdir(parents=True)
        for place in np.flatnonzero(digits.labels == int(label))[:count].tolist():
            digits.picture(place).save(folder / f"{place}.png")
    return str(root)


def test_how_evenly_classes_are_measured_is_said(models: Path, tmp_path: Path) -> None:
    """A class that has few pictures gives all of them, and they are fewer than another's."""
    data = folder_of(tmp_path / "data", {"0": 2, "1": 20, "2": 20})
    found = run(models, tmp_path / "out", "tiny-resnet", "--data", data, "--only", "translation", "--pictures", "22")
    assert (found["pictures"], found["of_a_class"]) == (22, [2, 10])
    assert "22 of 42 pictures, 2 to 10 of a class; seed 0" in (tmp_path / "out" / "robustness.md").read_text()


def test_too_few_pictures_for_mosaics_are_told_first(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three of a class leave one to a half: said before any picture is run, with the way out, which works."""
    data = folder_of(tmp_path / "data", {"3": 3, "7": 12})
    out = tmp_path / "out"
    command = ["robustness", "--models", str(models), "tiny-cct", "tiny-resnet", "--data", data, "--out", str(out)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "mosaics need two classes of at least four pictures each, two for each half, and image folder data" in error
    assert "test has 1: leave mosaics out by --only" in error
    assert not list(out.iterdir())
    assert main([*command, "--only", "translation"]) == 0
    four = folder_of(tmp_path / "enough", {"3": 4, "7": 4})
    assert main([*command[:-4], "--data", four, "--out", str(out), "--only", "mosaics"]) == 0


def test_a_folder_that_cannot_be_written_is_told_first(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any picture is measured."""
    (tmp_path / "file").write_text("mine")
    out = str(tmp_path / "file" / "out")
    assert main(["robustness", "--models", str(models), "tiny-cct", "--out", out, "--pictures", "10"]) == 2
    assert f"could not write to {out}" in capsys.readouterr().err


def test_the_command_names_its_tests(capsys: pytest.CaptureFixture[str]) -> None:
    """--help lists what --only takes."""
    with pytest.raises(SystemExit):
        main(["robustness", "--help"])
    assert EVERY in "".join(capsys.readouterr().out.split())

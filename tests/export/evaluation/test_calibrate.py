"""`saccade calibrate`: the temperature is the best one of the held-out pictures, and what is served has it."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from export.data import Digits
from export.examples import held_out
from saccade.bundle import Bundle, open_bundle, update_bundle
from saccade.cli import main
from saccade.picture import picture_bytes
from tests.export.evaluation.test_figures import temperature_by_lbfgs

InTorch = Callable[[str], tuple[torch.Tensor, torch.Tensor]]


def test_the_temperature_is_the_best_of_the_held_out_pictures(
    copy: Bundle, in_torch: InTorch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As another optimizer finds it on the logits of eager PyTorch; figures before and after are on the card."""
    assert main(["calibrate", str(copy.folder)]) == 0
    manifest = open_bundle(copy.folder).manifest
    logits, labels = in_torch("held-out")
    assert manifest.temperature == pytest.approx(temperature_by_lbfgs(logits.numpy(), labels.numpy()), rel=1e-3)
    calibration = manifest.card.calibration
    assert calibration is not None
    assert calibration.split == "scikit-learn digits, held-out"
    assert calibration.pictures == len(labels) == held_out(Digits().training().labels, Digits.classes).sum()
    for quality, temperature in ((calibration.raw, 1.0), (calibration.served, manifest.temperature)):
        assert quality.nll == pytest.approx(F.cross_entropy(logits / temperature, labels).item(), rel=1e-5)
    assert calibration.served.nll < calibration.raw.nll
    printed = capsys.readouterr().out
    for said in (f"temperature {manifest.temperature:.4f}", f"{calibration.served.ece:.4f}  {calibration.raw.ece:.4f}"):
        assert said in printed


def test_what_is_served_is_calibrated_and_the_class_map_sums_to_the_raw_logit(
    copy: Bundle, in_torch: InTorch, serve: Callable[..., object]
) -> None:
    """Scores are softmax(logits / T) of eager PyTorch; the order of labels is that of the logits; the answer says T."""
    before = open_bundle(copy.folder).manifest
    assert main(["calibrate", str(copy.folder)]) == 0
    client = serve(models=copy.folder.parent.parent)
    info = client.get("/v1/models/tiny-cct").json()
    temperature = info["manifest"]["temperature"]
    assert temperature == open_bundle(copy.folder).manifest.temperature != 1
    assert info["card"]["calibration"]["pictures"] > 0
    assert (before.labels, before.files) == (tuple(info["manifest"]["labels"]), open_bundle(copy.folder).manifest.files)
    logits = in_torch("test")[0]
    query = "top_k=10&decimals=9&maps=class&classes=topk"
    for place in range(5):
        picture = picture_bytes(Digits().test().picture(place))
        answer = client.post(f"/v1/classify?{query}", content=picture).json()
        expected = (logits[place] / temperature).softmax(0)
        order = [label["index"] for label in answer["labels"]]
        assert order == logits[place].argsort(descending=True).tolist()
        np.testing.assert_allclose([label["score"] for label in answer["labels"]], expected[order], atol=1e-5)
        assert [one["class_index"] for one in answer["maps"]] == order
        for one in answer["maps"]:
            assert one["temperature"] == temperature
            assert one["logit"] == pytest.approx(logits[place, one["class_index"]].item(), abs=1e-4)
            assert np.sum(one["values"]) + one["bias"] == pytest.approx(one["logit"], abs=1e-4)


def test_no_figure_of_another_temperature_stays(
    copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is dropped from the card and said; the same temperature once more leaves a figure where it is."""
    evaluate = ["evaluate", str(copy.folder), "--out", str(tmp_path / "out")]
    calibrate = ["calibrate", str(copy.folder)]
    assert [main(evaluate), main(calibrate)] == [0, 0]
    assert "off the card, for they were of another temperature: scikit-learn digits, test" in capsys.readouterr().out
    assert open_bundle(copy.folder).manifest.card.evaluation == ()
    assert [main(evaluate), main(calibrate)] == [0, 0]
    assert "off the card" not in capsys.readouterr().out
    (figure,) = open_bundle(copy.folder).manifest.card.evaluation
    assert figure.raw != figure.served
    assert (
        f"temperature, {open_bundle(copy.folder).manifest.temperature:.4f},"
        in (tmp_path / "out" / "evaluation.md").read_text()
    )


def test_figures_on_what_the_temperature_was_fitted_to_say_so(
    copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where they are printed, and in the card in words: they are better than those of other pictures."""
    assert main(["calibrate", str(copy.folder)]) == 0
    for split in ("test", "held-out"):
        assert main(["evaluate", str(copy.folder), "--split", split, "--out", str(tmp_path / split)]) == 0
    printed, words = capsys.readouterr().out, (tmp_path / "held-out" / "evaluation.md").read_text()
    assert "tiny-cct@1 on scikit-learn digits, held-out (the temperature was fitted to it): " in printed
    assert "tiny-cct@1 on scikit-learn digits, test: " in printed
    assert "| scikit-learn digits, held-out (the temperature was fitted to it) | " in words
    assert "| scikit-learn digits, test | " in words


def test_a_model_from_elsewhere_is_calibrated_on_a_folder_of_its_own(copy: Bundle, tmp_path: Path) -> None:
    """On val/ beside test/; val/ alone is what would be measured on, and is refused."""
    manifest = json.loads((copy.folder / "manifest.json").read_text())
    manifest["provenance"] = {"commit": None, "versions": {}}
    (copy.folder / "manifest.json").write_text(json.dumps(manifest))
    training = Digits().training()
    for place in range(0, 600, 5):
        folder = tmp_path / "data" / "val" / str(training.labels[place])
        folder.mkdir(parents=True, exist_ok=True)
        training.picture(place).save(folder / f"{place}.png")
    command = ["calibrate", str(copy.folder), "--data", str(tmp_path / "data")]
    assert main(command) == 2
    shutil.copytree(tmp_path / "data" / "val", tmp_path / "data" / "test")
    assert main(command) == 0
    calibrated = open_bundle(copy.folder).manifest
    assert calibrated.card.calibration is not None
    assert (calibrated.card.calibration.split, calibrated.card.calibration.pictures) == ("image folder data, val", 120)
    assert calibrated.temperature != 1


def refused(capsys: pytest.CaptureFixture[str], bundle: Bundle, *arguments: str) -> str:
    before = (bundle.folder / "manifest.json").read_bytes()
    assert main(["calibrate", str(bundle.folder), *arguments]) == 2
    assert (bundle.folder / "manifest.json").read_bytes() == before
    return capsys.readouterr().err.splitlines()[-1]


def test_too_few_pictures_are_refused(
    copy: Bundle, tmp_path: Path, in_torch: InTorch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fewer than 50, fewer than five wrong ones, fewer than the temperature is from; --anyway takes them."""
    manifest = json.loads((copy.folder / "manifest.json").read_text())
    manifest["provenance"] = {"commit": None, "versions": {}}
    (copy.folder / "manifest.json").write_text(json.dumps(manifest))
    digits, (logits, labels) = Digits().test(), in_torch("test")
    wrong = (logits.argmax(1) != labels).nonzero()[:, 0].tolist()
    right = (logits.argmax(1) == labels).nonzero()[:, 0].tolist()
    for name, places in (
        ("few", right[:25] + wrong[:24]),
        ("sure", right[:60] + wrong[:4]),
        ("many", range(len(labels))),
    ):
        for part in ("test", "val"):
            for place in places:
                folder = tmp_path / name / part / str(labels[place].item())
                folder.mkdir(parents=True, exist_ok=True)
                digits.picture(place).save(folder / f"{place}.png")
    few, sure, many = (("--data", str(tmp_path / name)) for name in ("few", "sure", "many"))
    assert "image folder few, val has 49 pictures; a temperature needs 50 (--anyway)" in refused(capsys, copy, *few)
    said = refused(capsys, copy, *sure)
    assert "tiny-cct@1 is wrong on 4 of 64 pictures (image folder sure, val); a temperature needs 5 to hold it" in said
    assert main(["calibrate", str(copy.folder), *many]) == 0
    said = refused(capsys, copy, *sure)
    assert "was calibrated on 360 pictures (image folder many, val) and image folder sure, val has 64: --anyway" in said
    assert main(["calibrate", str(copy.folder), *few, "--anyway"]) == 0
    calibration = open_bundle(copy.folder).manifest.card.calibration
    assert calibration is not None
    assert calibration.pictures == 49


def test_what_has_no_best_temperature_is_refused(
    copy: Bundle, tmp_path: Path, in_torch: InTorch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where every held-out picture is right, none is, whatever is asked; several labels a picture have none either."""
    manifest = json.loads((copy.folder / "manifest.json").read_text())
    manifest["provenance"] = {"commit": None, "versions": {}}
    (copy.folder / "manifest.json").write_text(json.dumps(manifest))
    logits, labels = in_torch("test")
    right = [place for place in range(len(labels)) if logits[place].argmax() == labels[place]]
    for part in ("test", "val"):
        for place in right:
            folder = tmp_path / "data" / part / str(labels[place].item())
            folder.mkdir(parents=True, exist_ok=True)
            Digits().test().picture(place).save(folder / f"{place}.png")
    said = refused(capsys, copy, "--data", str(tmp_path / "data"), "--anyway")
    assert f"image folder data, val, {len(right)} pictures: no temperature between 1/20 and 20 is best" in said
    several = update_bundle(open_bundle(copy.folder), {"scores": "sigmoid"})
    assert "gives each label by itself (sigmoid)" in refused(capsys, several, "--data", str(tmp_path / "data"))
    assert math.isclose(open_bundle(copy.folder).manifest.temperature, 1.0)

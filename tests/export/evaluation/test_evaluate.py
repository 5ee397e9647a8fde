"""`saccade evaluate`: figures as eager PyTorch and scikit-learn have them, on the card, in files, here and served."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torch.nn import functional as F

from export.data import Digits
from export.describe import describe
from export.evaluation.ask import log_scores
from export.evaluation.evaluate import Evaluated, evaluate
from export.evaluation.pictures import Split, choose_pictures
from saccade.api import Label
from saccade.bundle import Bundle, open_bundle, update_bundle
from saccade.cli import main
from saccade.errors import BundleError
from tests.conftest import Server, tiny_recipe

InTorch = Callable[[str], tuple[torch.Tensor, torch.Tensor]]
FILES = {"evaluation.json", "evaluation.md", "reliability.png", "confusion.png", "per-class.png", "mistakes.png"}


def evaluated(folder: Path, split: Split) -> Evaluated:
    """Of the digits, by the bundle as it is now; nothing is written."""
    bundle = open_bundle(folder)
    return evaluate(bundle, choose_pictures(bundle.manifest, None, split))


def splits_on(folder: Path) -> list[str]:
    """Of the card, in its order."""
    return [figure.split for figure in open_bundle(folder).manifest.card.evaluation]


def run(bundle: Bundle, out: Path, *arguments: str | Path) -> dict[str, Any]:
    """evaluation.json."""
    assert main(["evaluate", str(bundle.folder), "--out", str(out), *map(str, arguments)]) == 0
    return json.loads((out / "evaluation.json").read_text())


@pytest.mark.parametrize("split", ["test", "held-out"])
def test_every_figure_is_what_the_net_gets_right(copy: Bundle, tmp_path: Path, in_torch: InTorch, split: str) -> None:
    """Through ONNX Runtime and the one preprocessing it is the same as in PyTorch, at the temperature of the bundle."""
    update_bundle(copy, {"temperature": 0.6})
    found = run(copy, tmp_path / "out", "--split", split)
    logits, labels = in_torch(split)
    count, given = len(labels), logits.argmax(1)
    right = int((given == labels).sum())
    figure = found["evaluation"]
    assert (figure["split"], figure["pictures"], figure["correct"]) == (f"scikit-learn digits, {split}", count, right)
    assert figure["top1"] == right / count
    reference = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert figure["interval95"] == pytest.approx((reference.low, reference.high))
    assert figure["top5"] == top_k_accuracy_score(labels, logits, k=5, labels=range(10))
    matrix = confusion_matrix(labels, given, labels=range(10))
    assert found["confusion"] == matrix.tolist()
    assert figure["per_class"] == [list(pair) for pair in zip(matrix.sum(1), matrix.diagonal(), strict=True)]
    for quality, bins, temperature in (("raw", "reliability_raw", 1.0), ("served", "reliability_served", 0.6)):
        scores = (logits / temperature).softmax(1)
        assert figure[quality]["nll"] == pytest.approx(F.cross_entropy(logits / temperature, labels).item(), rel=1e-5)
        squares = (scores - F.one_hot(labels, 10)).square().sum(1)
        assert figure[quality]["brier"] == pytest.approx(squares.mean().item(), rel=1e-5)
        highest, error = scores.max(1).values, 0.0
        for number, one in enumerate(found[bins]):
            inside = (highest > number / 15) & (highest <= (number + 1) / 15)
            assert one["pictures"] == int(inside.sum())
            if one["pictures"]:
                assert one["confidence"] == pytest.approx(highest[inside].mean().item(), rel=1e-5)
                assert one["accuracy"] == pytest.approx((given == labels)[inside].double().mean().item())
                error += one["pictures"] / count * abs(one["accuracy"] - one["confidence"])
        assert figure[quality]["ece"] == pytest.approx(error, abs=1e-9)


def test_the_mistakes_are_the_most_confident_ones(copy: Bundle, tmp_path: Path, in_torch: InTorch) -> None:
    """In falling order of what was served, each with its picture's number, true label and given label."""
    found = run(copy, tmp_path / "out", "--mistakes", "7")
    logits, labels = in_torch("test")
    scores = logits.softmax(1)
    confidence, given = scores.max(1)
    wrong = [place for place in confidence.argsort(descending=True).tolist() if given[place] != labels[place]][:7]
    assert [one["place"] for one in found["mistakes"]] == wrong
    for place, one in zip(wrong, found["mistakes"], strict=True):
        assert (one["picture"], one["label"], one["given"]) == (
            str(place),
            str(labels[place].item()),
            str(given[place].item()),
        )
        assert one["score"] == pytest.approx(confidence[place].item(), abs=1e-5)
        assert one["score_of_label"] == pytest.approx(scores[place, labels[place]].item(), abs=1e-5)


def test_two_runs_find_the_same(copy: Bundle, tmp_path: Path) -> None:
    """To the byte, but for the times."""
    first, second = (run(copy, tmp_path / name, "--cost") for name in ("first", "second"))
    for found in (first, second):
        assert {one.pop("milliseconds") > 0 for one in found["cost"]} == {True}
    assert first == second
    for name in FILES - {"evaluation.json", "evaluation.md"}:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_files_and_card_hold_what_was_found(copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures on the card are those of evaluation.json; the card in words has them too; pictures can be opened."""
    found = run(copy, tmp_path / "out", "--cost")
    printed = capsys.readouterr()
    manifest = open_bundle(copy.folder).manifest
    (figure,) = manifest.card.evaluation
    assert figure.model_dump(mode="json") == found["evaluation"]
    assert manifest.card.macs == found["macs"] == describe(tiny_recipe("tiny-cct")).macs
    assert [one.model_dump(mode="json") for one in manifest.card.cost] == found["cost"]
    assert {(one.batch, one.threads == 1) for one in manifest.card.cost} >= {(1, True), (8, True)}
    assert found["files"] == {name: entry.sha256 for name, entry in manifest.files.items()}
    assert figure.data_sha256 == Digits().test().fingerprint()
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    for name in FILES:
        if name.endswith(".png"):
            with Image.open(tmp_path / "out" / name) as picture:
                picture.load()
                assert picture.width >= 500
    words = (tmp_path / "out" / "evaluation.md").read_text()
    for said in (
        f"{figure.top1:.2%}",
        f"{manifest.card.macs:,} multiply",
        manifest.card.summary,
        "| 7 |",
        "| logits |",
    ):
        assert said in words
    assert "tiny-cct@1 on scikit-learn digits, test: 360 pictures" in printed.out
    assert "  top-1" in printed.out
    assert "saccade: 360 of 360 pictures, " in printed.err


def test_the_card_keeps_one_figure_a_split(copy: Bundle) -> None:
    """A second reading of a split replaces the first; the other split's stays; the bundle stays whole."""
    for split in ("test", "held-out", "test"):
        evaluated(copy.folder, split).write_card()
    assert splits_on(copy.folder) == ["scikit-learn digits, held-out", "scikit-learn digits, test"]


def test_two_splits_evaluated_at_once_are_both_on_the_card(copy: Bundle) -> None:
    """Each adds to the card as it is when it is written, so the second does not undo the first."""
    both = [evaluated(copy.folder, split) for split in ("test", "held-out")]
    for one in both:
        one.write_card()
    assert splits_on(copy.folder) == ["scikit-learn digits, test", "scikit-learn digits, held-out"]


def test_figures_of_a_bundle_that_changed_meanwhile_are_not_written(copy: Bundle) -> None:
    """They are of other scores than it gives by now; the card stays, and the sentence says what changed."""
    before = evaluated(copy.folder, "test")
    update_bundle(open_bundle(copy.folder), {"temperature": 0.5})
    with pytest.raises(BundleError, match=r"differs from what was evaluated in temperature: run this again"):
        before.write_card()
    assert splits_on(copy.folder) == []


def folder_of_digits(data: Path, places: range, part: str = "test") -> None:
    """An image folder of test digits."""
    digits = Digits().test()
    for place in places:
        folder = data / part / str(digits.labels[place])
        folder.mkdir(parents=True, exist_ok=True)
        digits.picture(place).save(folder / f"{place}.png")


def test_results_have_a_place_of_their_own(copy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the current folder, by bundle, data and split; with --no-card the bundle is left as it is."""
    monkeypatch.chdir(tmp_path)
    before = (copy.folder / "manifest.json").read_bytes()
    folder_of_digits(tmp_path / "data", range(60))
    place = tmp_path / "evaluations" / "tiny-cct@1"
    assert main(["evaluate", "tiny-cct", "--no-card"]) == 0
    first = {path.name: path.read_bytes() for path in (place / "scikit-learn-digits-test").iterdir()}
    assert main(["evaluate", "tiny-cct", "--no-card", "--data", "data"]) == 0
    assert {path.name for path in (place / "image-folder-data-test").iterdir()} == FILES == set(first)
    assert {path.name: path.read_bytes() for path in (place / "scikit-learn-digits-test").iterdir()} == first
    assert (copy.folder / "manifest.json").read_bytes() == before


def test_data_sets_of_one_name_have_a_figure_each(copy: Bundle, tmp_path: Path) -> None:
    """They are told apart by their pictures, and the same ones are measured anew."""
    for name, count in (("one", 40), ("other", 60), ("one", 40)):
        if not (tmp_path / name).exists():
            folder_of_digits(tmp_path / name / "data", range(count))
        run(open_bundle(copy.folder), tmp_path / "out", "--data", tmp_path / name / "data")
    kept = [(figure.split, figure.pictures) for figure in open_bundle(copy.folder).manifest.card.evaluation]
    assert kept == [("image folder data, test", 60), ("image folder data, test", 40)]


def test_cost_is_measured_only_when_asked_for(copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It depends on what else the machine does: an evaluation without --cost leaves the card's figures as they are."""
    assert len(run(copy, tmp_path / "out", "--cost")["cost"]) >= 2
    before = open_bundle(copy.folder).manifest.card.cost
    capsys.readouterr()
    assert run(open_bundle(copy.folder), tmp_path / "out")["cost"] == []
    assert open_bundle(copy.folder).manifest.card.cost == before
    assert " ms" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(copy, tmp_path / "out", "--cost", "--url", "http://127.0.0.1:1")
    assert "not allowed with argument --cost" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told_first(
    copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, before any picture is run."""
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out"
    assert main(["evaluate", str(copy.folder), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"saccade: could not write to {out}: Not a directory\n"


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "robustness"])
def test_logits_that_are_no_numbers_are_refused(
    not_finite: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    """By each command that counts answers, in a line that names the model; nothing is written."""
    monkeypatch.chdir(tmp_path)
    before = (not_finite.folder / "manifest.json").read_bytes()
    assert main([command, str(not_finite.folder)]) == 2
    assert "tiny-cct@1 gives logits that are NaN or infinite: " in capsys.readouterr().err.splitlines()[-1]
    assert (not_finite.folder / "manifest.json").read_bytes() == before
    assert not list(tmp_path.glob("evaluations/**/*.json"))


def test_a_bundle_that_cannot_be_written_keeps_its_card(
    copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures are written all the same, and it is said."""
    before = (copy.folder / "manifest.json").read_bytes()
    (copy.folder / ".manifest.json.part").symlink_to("/dev/full")  # what even root cannot write to
    run(copy, tmp_path / "out")
    printed = capsys.readouterr()
    assert "saccade: the card stays as it was: could not write to " in printed.err
    assert "and the card" not in printed.out
    assert (copy.folder / "manifest.json").read_bytes() == before


def test_a_service_gives_the_same_figures(models: Path, tmp_path: Path, server: Server, capsys: Any) -> None:
    """Through HTTP and the service's own pipeline, from scores of nine decimals; no card, no times."""
    bundle = open_bundle(models / "tiny-vit" / "1")
    before = (bundle.folder / "manifest.json").read_bytes()
    here = run(bundle, tmp_path / "here", "--no-card")
    there = run(bundle, tmp_path / "there", "--url", server.url, "--concurrency", "4")
    assert (bundle.folder / "manifest.json").read_bytes() == before
    assert there["cost"] == []
    assert there["evaluation"].pop("through") == "a service, CPUExecutionProvider"
    for quality in ("raw", "served"):
        assert there["evaluation"].pop(quality) == pytest.approx(here["evaluation"].pop(quality), abs=1e-6)
    del here["evaluation"]["through"]
    for name in ("model", "files", "evaluation", "confusion", "labels"):
        assert there[name] == here[name]
    for ours, theirs in zip(here["mistakes"], there["mistakes"], strict=True):
        assert theirs["place"] == ours["place"]
        assert theirs["score"] == pytest.approx(ours["score"], abs=1e-5)


def test_of_scores_that_round_to_the_same_the_order_of_the_answer_stays() -> None:
    """It is that of the logits; each score is known to as many digits as it had."""
    order, scores = [4, 2, 0, 5, 3, 1], [0.9, 0.05, 0.05, 0.0, 0.0, 0.0]
    said = [Label(label=str(index), index=index, score=score) for index, score in zip(order, scores, strict=True)]
    found = log_scores(said)
    assert np.argsort(-found).tolist() == order
    np.testing.assert_allclose(np.exp(found[order]), np.maximum(scores, 5e-10), rtol=1e-11)


def test_files_go_to_the_service_as_they_are(models: Path, tmp_path: Path, server: Server) -> None:
    """A JPEG is decoded there as it is here, and its path is what a mistake is called."""
    bundle = open_bundle(models / "tiny-cct" / "1")
    test = Digits().test()
    for place in range(0, 60):
        folder = tmp_path / "data" / "val" / str(test.labels[place])
        folder.mkdir(parents=True, exist_ok=True)
        test.picture(place).resize((50, 40)).save(folder / f"{place}.jpg")
    here = run(bundle, tmp_path / "here", "--no-card", "--data", tmp_path / "data")
    there = run(bundle, tmp_path / "there", "--data", tmp_path / "data", "--url", server.url)
    assert here["evaluation"]["split"] == there["evaluation"]["split"] == "image folder data, val"
    assert here["confusion"] == there["confusion"]
    assert [one["picture"] for one in here["mistakes"]] == [one["picture"] for one in there["mistakes"]]
    assert here["mistakes"][0]["picture"].startswith(f"{here['mistakes'][0]['label']}/")


def refused(capsys: pytest.CaptureFixture[str], bundle: Bundle, tmp_path: Path, *arguments: str) -> str:
    """The one line; nothing is written."""
    before = (bundle.folder / "manifest.json").read_bytes()
    assert main(["evaluate", str(bundle.folder), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert (bundle.folder / "manifest.json").read_bytes() == before
    assert not list(tmp_path.glob("out/*"))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("saccade: ")
    return printed.err


def test_another_model_behind_the_address_is_refused(
    copy: Bundle, tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its figures would be taken for this bundle's: whatever makes other scores, no such version, no service."""
    same = copy.manifest
    labels = [*same.labels[1:], same.labels[0]]
    for field, value in (
        ("temperature", 2.0),
        ("labels", labels),
        ("preprocessing", {**same.preprocessing.model_dump(), "mean": (0.4, 0.5, 0.5)}),
    ):
        other = update_bundle(open_bundle(copy.folder), {field: value})
        said = refused(capsys, other, tmp_path, "--url", server.url)
        assert f"tiny-cct@1 of the service at {server.url} differs from the bundle in {field}: start it anew" in said
        update_bundle(other, {field: getattr(same, field)})
    golden = (copy.folder / "golden.npz").read_bytes()
    other = update_bundle(open_bundle(copy.folder), {}, {"golden.npz": golden + b"\0"})
    assert "differs from the bundle in files: start it anew" in refused(capsys, other, tmp_path, "--url", server.url)
    copy.folder.rename(copy.folder.parent / "2")
    manifest = json.loads((copy.folder.parent / "2" / "manifest.json").read_text())
    (copy.folder.parent / "2" / "manifest.json").write_text(json.dumps({**manifest, "version": 2}))
    second = open_bundle(copy.folder.parent / "2")
    assert "tiny-cct@2" in refused(capsys, second, tmp_path, "--url", server.url)
    assert "does not answer" in refused(capsys, second, tmp_path, "--url", "http://127.0.0.1:1")


def test_what_cannot_be_judged_is_refused(copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, and nothing is written: several labels a picture, other classes, a picture that is damaged."""
    several = update_bundle(copy, {"scores": "sigmoid"})
    assert "gives each label by itself (sigmoid)" in refused(capsys, several, tmp_path)
    copy = update_bundle(several, {"scores": "softmax"})
    (tmp_path / "data" / "test" / "11").mkdir(parents=True)
    assert "test/11 is none of the 10 classes 0, 1" in refused(capsys, copy, tmp_path, "--data", str(tmp_path / "data"))
    (tmp_path / "data" / "test" / "11").rename(tmp_path / "data" / "test" / "1")
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "test" / "1" / "a.png")
    (tmp_path / "data" / "test" / "1" / "b.png").write_bytes(b"no picture")
    assert "test/1/b.png: the 10 bytes are not a picture" in refused(
        capsys, copy, tmp_path, "--data", str(tmp_path / "data")
    )


def test_labels_of_any_script_and_a_split_without_mistakes_are_drawn(copy: Bundle, tmp_path: Path) -> None:
    """Dollars are no formula, a stroke ends no cell, and letters that the font lacks stop nothing."""
    manifest = json.loads((copy.folder / "manifest.json").read_text())
    manifest["labels"][:4] = ["$5 and $6", "a|b", "日本", "x" * 300]
    manifest["provenance"] = {"commit": None, "versions": {}}
    (copy.folder / "manifest.json").write_text(json.dumps(manifest))
    folder = tmp_path / "data" / "test" / "a|b"
    folder.mkdir(parents=True)
    Image.fromarray(np.full((9, 9, 3), 90, np.uint8)).save(folder / "only.png")
    found = run(open_bundle(copy.folder), tmp_path / "out", "--data", tmp_path / "data")
    assert found["evaluation"]["pictures"] == 1
    assert found["macs"] is None
    assert "| a\\|b | 1 |" in (tmp_path / "out" / "evaluation.md").read_text()
    right = found["evaluation"]["correct"]
    assert len(found["mistakes"]) == 1 - right

"""`saccade quantize` refuses with the numbers, and leaves nothing behind; so do commands that a variant is not for."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export.quantize.agreement import Agreement
from export.quantize.choose import Bounds
from export.quantize.quantize import quantize
from saccade.bundle import open_bundle
from saccade.cli import main
from saccade.errors import BundleError, DataError
from tests.export.quantize.conftest import LENIENT
from tests.export.quantize.test_quantize import eager
from tests.export.test_verify import restate_checksum


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("name", "bounds", "said"),
    [
        (
            "tiny-vit-mean",
            Bounds(maps=1.01),
            r"agrees with its maps by a rank correlation of .*attention, least layer [01]\.\d{4}; 1\.01 is the least",
        ),
        (
            "tiny-convmixer",
            Bounds(top1=-2.0),
            r"is right on \S+% of 70 .* on \S+%: it loses -?\d\.\d\d points, -200 are allowed",
        ),
    ],
)
def test_a_variant_that_loses_too_much_is_refused(
    models: Path, tmp_path: Path, name: str, bounds: Bounds, said: str
) -> None:
    """The numbers are said and nothing is left; told to, it is written, and its card admits the same."""
    shutil.copytree(models / name, tmp_path / name)
    before, bundle = listing(tmp_path), open_bundle(tmp_path / name / "1")
    with pytest.raises(BundleError, match=rf"{name}@1 in int8 {said}.*\(--anyway writes it\)"):
        quantize(bundle, "int8", None, bounds=bounds)
    assert listing(tmp_path) == before
    card = quantize(bundle, "int8", None, bounds=bounds, anyway=True).manifest.card.variant
    assert card is not None
    assert card.pictures == 70


@pytest.mark.parametrize("anyway", [False, True])
def test_numbers_that_are_none_are_said(models: Path, tmp_path: Path, anyway: bool) -> None:
    """Activations of a million, which float32 holds and float16 does not: neither agreement nor a warning of numpy."""
    shutil.copytree(models / "tiny-cct", tmp_path / "tiny-cct")
    bundle = open_bundle(tmp_path / "tiny-cct" / "1")
    weights = load_file(bundle.weights)
    weights["tokenizer.0.weight"] = weights["tokenizer.0.weight"] * np.float32(1e6)
    save_file(weights, bundle.weights)
    bundle, before = restate_checksum(bundle.folder, "weights.safetensors"), listing(tmp_path)
    assert np.isfinite(eager(bundle, 0)["logits"]).all()
    with pytest.raises(BundleError, match=r"tiny-cct@1 in float16 gives numbers that are none in logits, .*rollout"):
        quantize(bundle, "float16", None, anyway=anyway)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny-cct-int8", "--float16"], "tiny-cct-int8@1 is a variant already (int8): quantise tiny-cct@1"),
        (["tiny-cct"], "one of the arguments --int8 --float16 is required"),
        (["tiny-cct", "--int8", "--name", "../x"], "'../x' is no name for a model"),
        (
            ["tiny-cct", "--int8", "--name", "tiny-cct"],
            "tiny-cct@1 is no int8 variant of tiny-cct: give another",
        ),
        (
            ["tiny-cct", "--float16", "--name", "tiny-cct-int8"],
            "tiny-cct-int8@1 is no float16 variant of tiny-cct",
        ),
        (["tiny-cct", "--int8", "--data", "nowhere"], "nowhere"),
        (["tiny-cct", "--int8", "--pictures", "0"], "must be a whole number from 1 to 1000000, not '0'"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    copy: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and nothing is written."""
    before = listing(copy)
    try:
        code = main(["quantize", *words, "--models", str(copy)])
    except SystemExit as error:  # of the parser
        code = int(error.code or 0)
    assert code == 2
    assert said in capsys.readouterr().err
    assert listing(copy) == before


def test_a_model_of_several_labels_a_picture_is_refused(copy: Path) -> None:
    """Pictures with one label each do not say what such a variant loses."""
    path = copy / "tiny-cct" / "1" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scores": "sigmoid"}))
    with pytest.raises(DataError, match=r"tiny-cct@1 gives each label by itself \(sigmoid\)"):
        quantize(open_bundle(path.parent), "int8", None, bounds=LENIENT)


def test_training_does_not_begin_with_a_variant(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights are no net's."""
    words = ["train", "digits-cct", "--out", str(tmp_path / "run"), "--init", "tiny-cct-int8", "--models", str(copy)]
    assert main(words) == 2
    assert "tiny-cct-int8@1 is a variant in int8: begin with tiny-cct@1" in capsys.readouterr().err


def test_a_variant_is_not_calibrated(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its temperature is its parent's, whoever is asked."""
    before = open_bundle(copy / "tiny-cct-int8" / "1").manifest
    assert main(["calibrate", "tiny-cct-int8", "--models", str(copy)]) == 2
    assert (
        "tiny-cct-int8@1 is a variant and has its parent's temperature: calibrate tiny-cct@1" in capsys.readouterr().err
    )
    assert open_bundle(copy / "tiny-cct-int8" / "1").manifest == before


def test_half_a_point_is_not_more_than_half_a_point() -> None:
    """One label of 200, whatever the parent is right on: by counts, not by what floats make of the difference."""
    for right in range(1, 201):
        assert Bounds().hold(Agreement(200, right / 200, (right - 1) / 200, 1.0, {}, 0.0)), right
    for right in range(1, 200):
        assert not Bounds().hold(Agreement(199, right / 199, (right - 1) / 199, 1.0, {}, 0.0)), right


def test_no_name_is_no_name(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As any name that is none: a sentence, and nothing is written under the default one."""
    before = listing(copy)
    assert main(["quantize", "tiny-cct", "--models", str(copy), "--float16", "--name", ""]) == 2
    assert "''" in capsys.readouterr().err
    assert listing(copy) == before


def test_a_calibrated_parent_names_the_variants_that_it_leaves_behind(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They go on with the temperature that they were made with; a damaged bundle beside them is passed over."""
    shutil.copytree(copy / "tiny-cct-int8", copy / "damaged")
    assert main(["calibrate", "tiny-cct", "--models", str(copy), "--anyway"]) == 0
    assert "made of it, and of another temperature now: tiny-cct-int8@1 (" in capsys.readouterr().out

"""The card in words says all that the manifest says of quality, of a variant too."""

from pathlib import Path

import pytest

from export.evaluation.card import card_text
from export.evaluation.findings import Findings, judge
from export.evaluation.pictures import choose_pictures
from saccade.bundle import open_bundle
from saccade.card import Calibration, Cost, ScoreQuality, Training, Variant
from saccade.manifest import Parent


def test_every_part_of_a_card_is_in_words(models: Path) -> None:
    """Training, calibration, cost, what a variant lost, parity: each with its figures, or that there are none."""
    manifest = open_bundle(models / "tiny-vit" / "1").manifest
    chosen = choose_pictures(manifest, None, "test")
    logits = chosen.examples.labels[:, None] == [[label - label % 2 for label in range(10)]]  # odd labels are wrong
    found = Findings(
        model="tiny-vit@1",
        files={},
        temperature=2.0,
        labels=manifest.labels,
        macs=None,
        cost=(),
        versions={},
        command="saccade evaluate tiny-vit",
        **judge(manifest, chosen, 5.0 * logits, 2, "a test"),
    )
    cost = Cost(batch=8, threads=2, milliseconds=1.25, provider="CPUExecutionProvider", hardware="An Engine")
    quality = ScoreQuality(nll=0.125, brier=0.25, ece=0.0625)
    fields = {
        "training": Training(epochs=7, seconds=600, hardware="A Loom"),
        "calibration": Calibration(split="held back", data_sha256="0" * 64, pictures=77, raw=quality, served=quality),
        "cost": (cost,),
        "evaluation": (found.evaluation,),
        "macs": 1_234_567,
        "variant": Variant(
            split="kept", pictures=55, parent_top1=0.75, top1=0.5, same_label=0.875, logits=0.25,
            maps={"rollout": 0.9375}, calibrated_on="others", in_float=("head",), bytes=1_000, parent_bytes=4_000,
        ),
    }  # fmt: skip
    parent = Parent(name="big", version=3, weights_sha256="0" * 64)
    changed = {
        "card": manifest.card.model_copy(update=fields),
        "parent": parent,
        "precision": "int8",
        "temperature": 2.0,
    }
    text = card_text(manifest.model_copy(update=changed), found)
    for said in (
        "7 epochs, 10 minutes on A Loom", "held back (77 pictures)", "| 8 | 2 | 1.25 |", "An Engine",
        "1,234,567 multiply",
        "int8, made of big@3, calibrated on others", "top-1 50.00%, the parent's 75.00%", "87.50%", "rollout 0.9375",
        "1,000 bytes, the parent's 4,000", "left in float32: head", "scikit-learn digits, held out 1 of 10",
        "| logits |", "Made by `saccade evaluate tiny-vit`.",
    ):  # fmt: skip
        assert said in text
    bare = manifest.model_copy(update={"parity": None, "card": manifest.card.model_copy(update={"training": None})})
    text = card_text(bare, found)
    assert "Not measured." in text
    assert "multiply-accumulates not counted" in text
    assert "Cost" not in text


@pytest.mark.parametrize("classes", [50])
def test_of_many_classes_the_lowest_are_listed(models: Path, classes: int) -> None:
    """And it is said how many are not."""
    manifest = open_bundle(models / "tiny-vit" / "1").manifest
    figure_of = choose_pictures(manifest, None, "test")
    found = judge(manifest, figure_of, (figure_of.examples.labels[:, None] == range(10)) * 1.0, 0, "a test")
    labels = tuple(f"label {number}" for number in range(classes))
    per_class = tuple((10, number % 10) for number in range(classes))
    evaluation = found["evaluation"].model_copy(update={"per_class": per_class})
    whole = Findings(
        **{**found, "evaluation": evaluation, "confusion": ((0,) * classes,) * classes}, model="m@1", files={},
        temperature=1, labels=labels, macs=None, cost=(), versions={}, command="",
    )  # fmt: skip
    text = card_text(manifest, whole)
    assert text.count("| label ") == 40 + 1  # the head
    assert "10 classes more" in text
    assert "| label 0 | 10 | 0 | 0.00% |" in text
    assert "| label 9 |" not in text

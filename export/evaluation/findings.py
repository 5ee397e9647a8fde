"""What an evaluation finds: the types of evaluation.json, and how they come from logits and labels."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.evaluation.figures import BINS, Scored, confusion, quality, reliability, scored, top_k, wilson_interval
from export.evaluation.pictures import Chosen
from saccade.card import Cost, Evaluation
from saccade.frozen import Frozen
from saccade.manifest import Manifest


class Bin(Frozen):
    """Of a reliability diagram: the pictures whose highest score is in (low, high]."""

    low: float
    high: float
    pictures: int
    confidence: float | None
    """Mean of their highest scores; None where there is no picture."""
    accuracy: float | None


class Mistake(Frozen):
    """A picture that got a wrong label."""

    picture: str
    """Its path below the split's folder, or its number in the data set."""
    place: int
    """Among the pictures of the split."""
    label: str
    """The true one."""
    given: str
    score: float
    """Of the label that it was given, as served."""
    score_of_label: float


class Findings(Frozen):
    """All of one evaluation. But for `cost`, which is empty where nothing else was said, two of the same are equal."""

    model: str
    """`name@version`."""
    files: dict[str, str]
    """File of the bundle -> its sha256."""
    temperature: float
    evaluation: Evaluation
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Pictures of the label of a row that were given the label of a column."""
    reliability_raw: tuple[Bin, ...]
    reliability_served: tuple[Bin, ...]
    mistakes: tuple[Mistake, ...]
    """The most confident first."""
    macs: int | None
    cost: tuple[Cost, ...]
    versions: dict[str, str]
    command: str


def to_json(found: Findings) -> bytes:
    """One line a field, so that two evaluations can be compared with diff."""
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.model_dump(mode="json").items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def judge(
    manifest: Manifest, chosen: Chosen, logits: NDArray[np.floating[Any]], mistakes: int, through: str
) -> dict[str, Any]:
    """The fields of Findings that logits (n, labels) decide. Of the wrong answers the `mistakes` most confident."""
    labels, classes, count = chosen.examples.labels, len(manifest.labels), len(chosen.examples)
    matrix = confusion(logits.argmax(1), labels, classes)
    correct = int(matrix.trace())
    raw, served = (scored(logits, labels, temperature) for temperature in (1.0, manifest.temperature))
    evaluation = Evaluation(
        split=chosen.name,
        data_sha256=chosen.examples.fingerprint(),
        pictures=count,
        correct=correct,
        top1=correct / count,
        interval95=wilson_interval(correct, count),
        top5=top_k(logits, labels, 5) if classes > 5 else None,
        per_class=tuple(zip(matrix.sum(1).tolist(), matrix.diagonal().tolist(), strict=True)),
        raw=quality(raw),
        served=quality(served),
        through=through,
    )
    return {
        "evaluation": evaluation,
        "confusion": matrix.tolist(),
        "reliability_raw": _bins(raw),
        "reliability_served": _bins(served),
        "mistakes": _mistakes(manifest, chosen, logits.argmax(1), served, mistakes),
    }


def _bins(it: Scored) -> tuple[Bin, ...]:
    counts, confidences, rights = reliability(it.highest, it.right)
    return tuple(
        Bin(
            low=place / BINS,
            high=(place + 1) / BINS,
            pictures=count,
            confidence=confidence / count if count else None,
            accuracy=right / count if count else None,
        )
        for place, (count, confidence, right) in enumerate(
            zip(counts.tolist(), confidences.tolist(), rights.tolist(), strict=True)
        )
    )


def _mistakes(
    manifest: Manifest, chosen: Chosen, given: NDArray[np.int64], served: Scored, most: int
) -> tuple[Mistake, ...]:
    """Equally confident ones in the pictures' order."""
    labels = chosen.examples.labels
    wrong = np.flatnonzero(~served.right)
    first = wrong[np.argsort(-served.highest[wrong], kind="stable")][:most]
    return tuple(
        Mistake(
            picture=chosen.examples.name(place).encode("utf-8", "replace").decode(),  # a file may be called anything
            place=place,
            label=manifest.labels[labels[place]],
            given=manifest.labels[given[place]],
            score=float(served.highest[place]),
            score_of_label=float(np.exp(served.log_of_label[place])),
        )
        for place in first.tolist()
    )

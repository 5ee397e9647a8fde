"""The card of a bundle in words, evaluation.md: what its manifest says of quality and cost, and one evaluation."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from export.evaluation.findings import Findings
from saccade.card import Calibration, Card, Cost, Evaluation, Variant
from saccade.manifest import Manifest, Provenance

_CLASSES = 40
"""Classes that are listed; of more, those of the lowest accuracy. evaluation.json has all."""
_PAIRS = 10
"""Confusions that are listed."""


def card_text(manifest: Manifest, found: Findings) -> str:
    """Markdown. The plots beside it are linked by their names."""
    card = manifest.card
    parts = [
        f"# {manifest.id}\n\n{card.summary}",
        _bullets(_facts(manifest)),
        f"## Accuracy and calibration\n\n{_evaluations(card)}\n\n![reliability](reliability.png)",
        *([_calibration(card.calibration, manifest.temperature)] if card.calibration else []),
        f"## Classes\n\n{_classes(found)}\n\n![accuracy of each class](per-class.png)",
        f"## Confusions\n\n{_confusions(found)}\n\n![confusion matrix](confusion.png)",
        f"## Most confidently wrong\n\n{_mistakes(found)}\n\n![the pictures](mistakes.png)",
        *([f"## Cost\n\n{_cost(card.cost)}"] if card.cost else []),
        *([f"## Against its parent\n\n{_variant(manifest, card.variant)}"] if card.variant else []),
        f"## Parity\n\n{_parity(manifest)}",
        f"Made by `{found.command}`.",
    ]
    return "\n\n".join(parts) + "\n"


def summary(found: Findings, calibration: Calibration | None) -> str:
    """The figures as the command line prints them."""
    it = found.evaluation
    rows = [
        ("top-1", f"{it.top1:.2%}", f"95 % interval {it.interval95[0]:.2%} to {it.interval95[1]:.2%}"),
        *([] if it.top5 is None else [("top-5", f"{it.top5:.2%}", "")]),
        ("NLL", f"{it.served.nll:.4f}", f"{it.raw.nll:.4f} with temperature 1"),
        ("Brier", f"{it.served.brier:.4f}", f"{it.raw.brier:.4f}"),
        ("ECE", f"{it.served.ece:.4f}", f"{it.raw.ece:.4f}"),
        *((_batch(one), f"{one.milliseconds:.3g} ms", "a picture") for one in found.cost),
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    head = f"{found.model} on {_named(it, calibration)}: {it.pictures:,} pictures, through {it.through}"
    return "\n".join([head, *(f"  {a:{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows)])


def _facts(manifest: Manifest) -> Iterator[str]:
    card = manifest.card
    spec = manifest.preprocessing
    yield f"Licence: {card.license}"
    if card.limits:
        yield f"Limits: {card.limits}"
    yield f"Input: {spec.height} x {spec.width} pixels, {len(manifest.labels)} labels, {manifest.precision}"
    macs = "multiply-accumulates not counted" if card.macs is None else f"{card.macs:,} multiply-accumulates a picture"
    yield f"Size: {card.parameters:,} parameters, {macs}, {sum(it.bytes for it in manifest.files.values()):,} bytes"
    yield f"Maps: {', '.join(manifest.maps.available) or 'none'}; attention layers: {len(manifest.attention)}"
    yield f"From: {_from(manifest.provenance)}"
    if card.training is not None:
        made = card.training
        yield f"Training: {made.epochs} epochs, {made.seconds / 60:.0f} minutes on {made.hardware}"


def _from(provenance: Provenance) -> str:
    if provenance.origin is not None:
        origin = provenance.origin
        return f"{origin.name} ({origin.kind}{f', {origin.revision}' if origin.revision else ''}), not trained here"
    begun = "" if provenance.init is None else f", beginning with {provenance.init.name}"
    return f"trained on {provenance.data}, held out {provenance.held_out}, seed {provenance.seed}{begun}"


def _named(it: Evaluation, calibration: Calibration | None) -> str:
    """The split; and whether its calibration is that of pictures to which the temperature was fitted."""
    fitted = calibration is not None and calibration.data_sha256 == it.data_sha256
    return f"{it.split} (the temperature was fitted to it)" if fitted else it.split


def _evaluations(card: Card) -> str:
    return (
        _table(
            ("split", "pictures", "top-1 (95 % interval)", "top-5", "NLL", "Brier", "ECE", "through"),
            (
                (
                    _named(it, card.calibration),
                    f"{it.pictures:,}",
                    f"{it.top1:.2%} ({it.interval95[0]:.2%} to {it.interval95[1]:.2%})",
                    "" if it.top5 is None else f"{it.top5:.2%}",
                    *(
                        f"{getattr(it.served, name):.4f} ({getattr(it.raw, name):.4f})"
                        for name in ("nll", "brier", "ece")
                    ),
                    it.through,
                )
                for it in card.evaluation
            ),
        )
        + "\n\nNLL, Brier and ECE are those of the scores as served, and with temperature 1 in brackets."
    )


def _calibration(it: Calibration, temperature: float) -> str:
    return (
        f"The temperature, {temperature:.4f}, is that of least NLL on {it.split} ({it.pictures:,} pictures): there NLL "
        f"is {it.served.nll:.4f} ({it.raw.nll:.4f} with temperature 1) and ECE {it.served.ece:.4f} ({it.raw.ece:.4f})."
    )


def _classes(found: Findings) -> str:
    named = [
        (label, pictures, right)
        for label, (pictures, right) in zip(found.labels, found.evaluation.per_class, strict=True)
        if pictures
    ]
    listed = named
    if len(named) > _CLASSES:
        listed = sorted(named, key=lambda one: one[2] / one[1])[:_CLASSES]
    table = _table(
        ("label", "pictures", "right", "share"),
        ((label, f"{pictures:,}", f"{right:,}", f"{right / pictures:.2%}") for label, pictures, right in listed),
    )
    more = len(named) - len(listed)
    return table + (
        f"\n\n{more} classes more, all with a larger share or the same, are in evaluation.json." * bool(more)
    )


def _confusions(found: Findings) -> str:
    counts = np.array(found.confusion)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_PAIRS]
    pairs = [divmod(place, len(counts)) for place in order.tolist() if counts.flat[place]]
    return _table(
        ("is", "was called", "pictures"),
        ((found.labels[row], found.labels[column], f"{counts[row, column]:,}") for row, column in pairs),
    )


def _mistakes(found: Findings) -> str:
    return _table(
        ("picture", "is", "was called", "score", "score of the true label"),
        ((it.picture, it.label, it.given, f"{it.score:.4f}", f"{it.score_of_label:.4f}") for it in found.mistakes),
    )


def _cost(them: Sequence[Cost]) -> str:
    table = _table(
        ("batch", "threads", "milliseconds a picture"),
        ((str(it.batch), str(it.threads), f"{it.milliseconds:.3g}") for it in them),
    )
    where = f"on {them[0].hardware}, {them[0].provider}"
    return f"{table}\n\nThrough ONNX Runtime alone, every output computed, {where}."


def _variant(manifest: Manifest, it: Variant) -> str:
    parent = manifest.parent.id if manifest.parent else "its parent"
    maps = ", ".join(f"{name} {value:.4f}" for name, value in it.maps.items())
    return _bullets(
        [
            f"{manifest.precision}, made of {parent}, calibrated on {it.calibrated_on}",
            f"{it.split}, {it.pictures:,} pictures: top-1 {it.top1:.2%}, the parent's {it.parent_top1:.2%}; the same "
            f"label for {it.same_label:.2%}",
            f"rank correlation with the parent's maps: {maps or 'it has none'}",
            f"distance of the logits from the parent's, relative: {it.logits:.4f}",
            *(["**more is lost than is allowed**: it was written all the same (--anyway)"] if it.anyway else []),
            f"{it.bytes:,} bytes, the parent's {it.parent_bytes:,}",
            f"left in float32: {', '.join(it.in_float) or 'nothing'}",
        ]
    )


def _parity(manifest: Manifest) -> str:
    parity = manifest.parity
    if parity is None:
        return "Not measured."
    table = _table(
        ("promise", "largest difference", "allowed"),
        ((name, f"{it.largest:.2e}", f"{it.allowed:.0e}") for name, it in parity.checks.items()),
    )
    batches = ", ".join(map(str, parity.batches))
    return f"{table}\n\nAgainst {parity.source}, in batches of {batches}, {parity.provider}."


def _batch(it: Cost) -> str:
    return f"batch {it.batch}, {it.threads} thread{'' if it.threads == 1 else 's'}"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    if len(lines) == 2:
        return "None."
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)

"""`saccade calibrate`: the temperature of least NLL on held-out pictures, written into the manifest."""

from pathlib import Path

import numpy as np

from export.evaluation.figures import fit_temperature, score_quality
from export.evaluation.pictures import Chosen, choose_pictures
from export.evaluation.predict import predict
from export.finite import check_logits
from export.runtime import open_graph
from saccade.bundle import Bundle, update_bundle
from saccade.card import Calibration
from saccade.errors import BundleError, DataError
from saccade.manifest import Manifest
from saccade.progress import Progress

LEAST_PICTURES = 50
LEAST_WRONG = 5
"""The right ones alone would have it ever lower, so the wrong ones hold it: with w of them its standard error is some
0.5/√w to 0.9/√w of itself, as repeated draws of made logits show. With fewer than five it can be half of it.
"""


def calibrate(bundle: Bundle, data: Path | None, *, anyway: bool = False) -> Bundle:
    """Fits on the split `held-out` and writes temperature and `card.calibration`.

    Evaluations on the card are dropped where the temperature has changed: they are of scores that nobody gets any more.
    Raises BundleError, for a variant too; DataError where no temperature is best, and, unless `anyway`, where pictures
    or the wrong ones are too few to tell, or fewer than those of the calibration that is there.
    """
    manifest, progress = bundle.manifest, Progress()
    if manifest.parent is not None:
        raise BundleError(
            f"{manifest.id} is a variant and has its parent's temperature: calibrate {manifest.parent.id} and quantise "
            "it anew"
        )
    chosen = choose_pictures(manifest, data, "held-out")
    labels = chosen.examples.labels
    if not anyway:
        _check_pictures(manifest, chosen)
    graph = open_graph(bundle.graph, threads=1, only=("logits",))
    progress.total = len(labels)
    logits = predict(graph, chosen.examples, manifest.preprocessing, progress=progress)["logits"]
    progress.end()
    check_logits(manifest.id, logits)
    wrong = int(np.count_nonzero(logits.argmax(1) != labels))
    if wrong < LEAST_WRONG and not anyway:
        raise DataError(
            f"{manifest.id} is wrong on {wrong} of {len(labels):,} pictures ({chosen.name}); a temperature needs "
            f"{LEAST_WRONG} to hold it (--anyway)"
        )
    try:
        temperature = fit_temperature(logits, labels)
    except ValueError as error:
        raise DataError(f"{chosen.name}, {len(labels):,} pictures: {error}") from error
    calibration = Calibration(
        split=chosen.name,
        data_sha256=chosen.examples.fingerprint(),
        pictures=len(labels),
        raw=score_quality(logits, labels, 1.0),
        served=score_quality(logits, labels, temperature),
    )
    evaluation = manifest.card.evaluation if temperature == manifest.temperature else ()
    card = manifest.card.model_copy(update={"calibration": calibration, "evaluation": evaluation})
    return update_bundle(bundle, {"temperature": temperature, "card": card.model_dump()})


def _check_pictures(manifest: Manifest, chosen: Chosen) -> None:
    count, before = len(chosen.examples), manifest.card.calibration
    if count < LEAST_PICTURES:
        raise DataError(f"{chosen.name} has {count} pictures; a temperature needs {LEAST_PICTURES} (--anyway)")
    if before is not None and count < before.pictures:
        raise DataError(
            f"{manifest.id} was calibrated on {before.pictures:,} pictures ({before.split}) and {chosen.name} has "
            f"{count:,}: --anyway replaces it"
        )

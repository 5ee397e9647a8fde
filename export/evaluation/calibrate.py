"""`saccade calibrate`: the temperature of least NLL on held-out pictures, written into the manifest."""

from pathlib import Path

from export.evaluation.figures import fit_temperature, score_quality
from export.evaluation.pictures import choose_pictures
from export.evaluation.predict import predict
from export.runtime import open_graph
from saccade.bundle import Bundle, update_bundle
from saccade.errors import DataError
from saccade.manifest import Calibration
from saccade.progress import Progress


def calibrate(bundle: Bundle, data: Path | None) -> Bundle:
    """Fits on the split `held-out` and writes temperature and `card.calibration`.

    Evaluations on the card are dropped where the temperature has changed: they are of scores that nobody gets any more.
    Raises DataError where no temperature is best, as where every picture is right, BundleError.
    """
    manifest, progress = bundle.manifest, Progress()
    chosen = choose_pictures(manifest, data, "held-out")
    graph = open_graph(bundle.graph, threads=1, only=("logits",))
    logits = predict(graph, chosen.examples, manifest.preprocessing, progress=progress)["logits"]
    progress.end()
    labels = chosen.examples.labels
    try:
        temperature = fit_temperature(logits, labels)
    except ValueError as error:
        raise DataError(f"{chosen.name}, {len(labels)} pictures: {error}") from error
    calibration = Calibration(
        split=chosen.name,
        pictures=len(labels),
        raw=score_quality(logits, labels, 1.0),
        served=score_quality(logits, labels, temperature),
    )
    evaluation = manifest.card.evaluation if temperature == manifest.temperature else ()
    card = manifest.card.model_copy(update={"calibration": calibration, "evaluation": evaluation})
    return update_bundle(bundle, {"temperature": temperature, "card": card.model_dump()})

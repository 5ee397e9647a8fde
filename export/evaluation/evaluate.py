"""Accuracy of a bundle: every picture of a split through the one preprocessing and ONNX Runtime."""

from pathlib import Path

from export.evaluation.figures import confusion, score_quality, top_k, wilson_interval
from export.evaluation.pictures import Split, choose_pictures
from export.evaluation.predict import predict
from export.runtime import open_graph
from saccade.bundle import Bundle, update_bundle
from saccade.manifest import Evaluation
from saccade.progress import Progress


def evaluate(bundle: Bundle, data: Path | None, split_name: Split) -> Bundle:
    """Reads the split once and writes top-1 accuracy with its interval onto the card. Raises DataError."""
    manifest = bundle.manifest
    chosen = choose_pictures(manifest, data, split_name)
    answer, progress = open_graph(bundle.graph, threads=1, only=("logits",)), Progress()
    logits = predict(answer, chosen.examples, manifest.preprocessing, progress=progress)["logits"]
    progress.end()
    labels, classes, count = chosen.examples.labels, len(manifest.labels), len(chosen.examples)
    matrix = confusion(logits.argmax(1), labels, classes)
    correct = int(matrix.trace())
    evaluation = Evaluation(
        split=chosen.name,
        pictures=count,
        correct=correct,
        top1=correct / count,
        interval95=wilson_interval(correct, count),
        top5=top_k(logits, labels, 5) if classes > 5 else None,
        per_class=tuple(zip(matrix.sum(1).tolist(), matrix.diagonal().tolist(), strict=True)),
        raw=score_quality(logits, labels, 1.0),
        served=score_quality(logits, labels, manifest.temperature),
        through="ONNX Runtime, CPUExecutionProvider",
    )
    others = tuple(figure for figure in manifest.card.evaluation if figure.split != evaluation.split)
    card = manifest.card.model_copy(update={"evaluation": (*others, evaluation)})
    return update_bundle(bundle, {"card": card.model_dump()})

"""Pictures -> what a running service answers for them, as logits, so that its figures are those of its scores."""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.evaluation.pictures import Chosen
from saccade.api import Label
from saccade.client import Client
from saccade.errors import DataError, RequestError, ServiceError
from saccade.manifest import Manifest
from saccade.progress import Progress

DECIMALS = 9
"""Of a score on the wire, the most that there are."""
FLOOR = 0.5 * 10**-DECIMALS
"""What a score that was rounded to 0 is taken for: the largest that is."""
_APART = 1e-12
"""Between the logarithms of neighbours in an answer: of scores that are rounded to the same, the first stays higher."""


def ask(
    url: str, manifest: Manifest, chosen: Chosen, concurrency: int, progress: Progress
) -> tuple[NDArray[np.float64], str]:
    """(n, labels) log-scores times the temperature, which are logits but for a constant a picture; and who answered.

    Files are sent as they are, `concurrency` at a time. SACCADE_API_KEY holds the key, if there is one. Raises
    RequestError and ServiceError, DataError where the service has another bundle under the name.
    """
    examples, count = chosen.examples, len(chosen.examples)
    logits = np.empty((count, len(manifest.labels)))
    with Client(url, key=os.environ.get("SACCADE_API_KEY") or None) as client:
        served = client.model(manifest.id)
        differs = manifest.unlike(served.manifest)
        if differs:
            raise DataError(
                f"{manifest.id} of the service at {url} differs from the bundle in {', '.join(differs)}: start it anew"
            )
        outcomes = client.classify_many(
            map(examples.file, range(count)),
            concurrency=concurrency,
            model=manifest.id,
            top_k=len(manifest.labels),
            maps="none",
            decimals=DECIMALS,
        )
        for place, (_, answer, error) in enumerate(outcomes):
            if isinstance(error, RequestError):
                raise DataError(f"{examples.name(place)} of {chosen.name}: {error}") from error
            if answer is None:
                raise error or ServiceError(f"{url} did not answer")
            if (answer.model.name, answer.model.version) != (manifest.name, manifest.version):
                raise ServiceError(
                    f"{url} answered with {answer.model.name}@{answer.model.version}, asked for {manifest.id}"
                )
            logits[place] = log_scores(answer.labels)
            progress.step(0)
    logits *= manifest.temperature
    return logits, f"a service, {served.plan.provider}"


def log_scores(labels: Sequence[Label]) -> NDArray[np.float64]:
    """(labels,): of all labels of an answer, as they stand in it, to logarithms by their index, in the same order."""
    values = np.log(np.maximum([label.score for label in labels], FLOOR)) - _APART * np.arange(len(labels))
    result = np.empty(len(labels))
    result[[label.index for label in labels]] = values
    return result

"""`saccade evaluate`: every picture of a split, through ONNX Runtime here or through a service, and what came of it.

Pictures go through the one preprocessing; logits of all of them are kept, pictures are not.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.describe import describe
from export.environment import command
from export.evaluation.ask import ask
from export.evaluation.card import card_text
from export.evaluation.cost import measure_cost
from export.evaluation.findings import Findings, judge, to_json
from export.evaluation.pictures import Chosen
from export.evaluation.plots import confusion_plot, per_class_plot, reliability_plot
from export.evaluation.predict import predict
from export.evaluation.sheet import contact_sheet
from export.finite import check_logits
from export.recipe import recipe_of
from export.runtime import PROVIDER, open_graph
from export.weights import versions
from saccade.bundle import Bundle, open_bundle, update_bundle
from saccade.card import Card
from saccade.errors import BundleError
from saccade.manifest import Manifest
from saccade.overlay import write_whole
from saccade.progress import Progress


class Evaluated:
    """Findings, and the pictures that they are about."""

    def __init__(self, bundle: Bundle, chosen: Chosen, findings: Findings) -> None:
        self.findings = findings
        self._bundle = bundle
        self._chosen = chosen

    def card(self, card: Card) -> Card:
        """With what was found: one evaluation a split of each data set, the newest last."""
        found = self.findings
        which = (found.evaluation.split, found.evaluation.data_sha256)
        others = tuple(one for one in card.evaluation if (one.split, one.data_sha256) != which)
        fields = {"evaluation": (*others, found.evaluation), "macs": found.macs, "cost": found.cost or card.cost}
        return card.model_copy(update=fields)

    def write_card(self) -> Bundle:
        """Onto the card as it is by now, for other splits may have been evaluated meanwhile.

        Raises BundleError where it cannot be written, and where the bundle is no longer the one that was evaluated.
        """
        now = open_bundle(self._bundle.folder)
        differs = self._bundle.manifest.unlike(now.manifest)
        if differs:
            raise BundleError(f"{now.folder} differs from what was evaluated in {', '.join(differs)}: run this again")
        return update_bundle(now, {"card": self.card(now.manifest.card).model_dump()})

    def write(self, folder: Path) -> None:
        """evaluation.json, the card in words, plots, a sheet of the mistakes: into a folder that is there.

        Raises DataError.
        """
        found, examples = self.findings, self._chosen.examples
        manifest = self._bundle.manifest
        manifest = manifest.model_copy(update={"card": self.card(manifest.card)})
        contents = {
            "reliability.png": reliability_plot(found),
            "confusion.png": confusion_plot(found),
            "per-class.png": per_class_plot(found),
            "mistakes.png": contact_sheet((examples.picture(one.place) for one in found.mistakes), found.mistakes),
            "evaluation.md": card_text(manifest, found).encode(),
            "evaluation.json": to_json(found),
        }
        for name, content in contents.items():
            write_whole(folder / name, content)


def evaluate(
    bundle: Bundle,
    chosen: Chosen,
    *,
    cost: bool = False,
    url: str | None = None,
    concurrency: int = 16,
    mistakes: int = 25,
) -> Evaluated:
    """Reads the pictures once. `cost`: measures time a picture too, of the graph in this process.

    `url` is of a service that serves this bundle; `concurrency` requests are on their way. Raises DataError,
    BundleError; with `url` RequestError and ServiceError too.
    """
    manifest, progress = bundle.manifest, Progress()
    progress.total = len(chosen.examples)
    logits: NDArray[np.floating[Any]]
    if url is None:
        graph = open_graph(bundle.graph, threads=1, only=("logits",))
        logits = predict(graph, chosen.examples, manifest.preprocessing, progress=progress)["logits"]
        through = f"ONNX Runtime, {PROVIDER}"
    else:
        logits, through = ask(url, manifest, chosen, concurrency, progress)
    progress.end()
    check_logits(manifest.id, logits)
    findings = Findings(
        model=manifest.id,
        files={name: entry.sha256 for name, entry in manifest.files.items()},
        temperature=manifest.temperature,
        labels=manifest.labels,
        macs=_macs(manifest),
        cost=measure_cost(bundle) if cost else (),
        versions=versions(),
        command=command(1),
        **judge(manifest, chosen, logits, mistakes, through),
    )
    return Evaluated(bundle, chosen, findings)


def _macs(manifest: Manifest) -> int | None:
    """Of a net of our own, counted anew; what the card says of another."""
    if manifest.provenance.recipe is None:
        return manifest.card.macs
    return describe(recipe_of(manifest), len(manifest.labels)).macs

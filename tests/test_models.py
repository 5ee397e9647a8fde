"""The models in the repository: each is what its card says, and the service says the same."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from export.describe import describe
from export.recipe import recipe_of
from export.reference import reference_of
from export.verify import prove
from saccade.bundle import find_bundles, open_bundle
from service.app import create_app
from service.settings import Settings
from tests.conftest import ROOT

SHIPPED = find_bundles(ROOT / "models")
EVERY_MODEL = pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.parent.name)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(Settings(models=ROOT / "models"))) as client:
        yield client


@EVERY_MODEL
def test_a_shipped_model_holds_what_it_promises(folder: Path) -> None:
    """What `saccade verify` would write is measured again: graph, maps and batches against the source model."""
    bundle = open_bundle(folder)
    parity = prove(bundle, reference_of(bundle), None).parity  # raises where a promise is broken
    assert parity.checks.keys() == (bundle.manifest.parity or parity).checks.keys()


@EVERY_MODEL
def test_the_card_of_a_shipped_model_is_complete(folder: Path) -> None:
    """Accuracy with its interval, class by class, calibration before and after, training, size and cost."""
    manifest = open_bundle(folder).manifest
    card = manifest.card
    figures = {figure.split: figure for figure in card.evaluation}
    assert set(figures) == {"CIFAR-10, test", "CIFAR-10, held-out"}
    figure = figures["CIFAR-10, test"]
    assert figure.pictures == 10_000
    assert figure.top1 == figure.correct / 10_000
    assert figure.interval95[0] < figure.top1 < figure.interval95[1]
    assert figure.top5 is not None
    assert [pictures for pictures, _ in figure.per_class] == [1000] * 10
    assert sum(correct for _, correct in figure.per_class) == figure.correct
    assert manifest.temperature != 1
    assert figure.served.nll < figure.raw.nll
    assert card.training is not None
    assert {cost.batch for cost in card.cost} >= {1, 8}
    assert (card.calibration is None) == (card.variant is not None) == (manifest.parent is not None)
    if card.calibration is not None:
        description = describe(recipe_of(manifest))
        assert (card.parameters, card.macs) == (description.parameters, description.macs)
        assert card.calibration.split == "CIFAR-10, held-out"
    if card.variant is not None:
        assert card.variant.split.startswith("CIFAR-10, held-out")
        assert not card.variant.anyway


@EVERY_MODEL
def test_the_service_tells_of_each_what_its_manifest_says(client: TestClient, folder: Path) -> None:
    """Several models at once; /v1/models/{name} has card, parity and plan of each."""
    manifest: dict[str, Any] = open_bundle(folder).manifest.model_dump(mode="json")
    told = client.get(f"/v1/models/{folder.parent.name}").json()
    assert told["card"] == manifest["card"]
    assert told["parity"] == manifest["parity"]
    assert told["plan"]["provider"] == "CPUExecutionProvider"


def test_the_best_attention_model_is_the_one_that_is_asked_without_a_name() -> None:
    """`make serve`, the image and the compose file have the same default, of at least 87 % on the test pictures."""
    manifests = [open_bundle(folder).manifest for folder in SHIPPED]
    right = {
        manifest.name: figure.correct
        for manifest in manifests
        if manifest.attention and manifest.parent is None
        for figure in manifest.card.evaluation
        if figure.split == "CIFAR-10, test"
    }
    best = max(right, key=right.__getitem__)
    assert right[best] >= 8_700
    served = re.search(r"^DEFAULT_MODEL .*echo (\S+)\)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert served is not None
    copied = re.findall(
        r"^COPY models/(\S+) /models/(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    variables = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["x-service"]["environment"]
    assert served[1] == best
    assert copied == [(best, best)]
    assert variables["SACCADE_DEFAULT_MODEL"] == f"${{DEFAULT_MODEL-{best}}}"

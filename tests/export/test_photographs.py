"""The recipe for photographs, whole: from a folder to an answer."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from export.recipe import load_recipe
from export.reference import rebuild
from saccade.bundle import open_bundle
from saccade.cli import main
from saccade.preprocess import normalize, resize
from service.app import create_app
from service.settings import Settings
from tests.export.conftest import float64

CLASSES = ("church", "dog", "fish", "golf ball", "horn", "lorry", "parachute", "petrol pump", "radio", "saw")


def photograph(generator: np.random.Generator) -> Image.Image:
    """Larger than the net's input, and not square: coloured noise, enlarged."""
    height, width = generator.integers(200, 320, 2)
    return Image.fromarray(generator.integers(0, 256, (9, 12, 3), np.uint8)).resize((int(width), int(height)))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the recipe's own net, trained for one epoch on ten classes laid out as Imagenette."""
    root, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 1)):
        for name in CLASSES:
            folder = root / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                photograph(generator).save(folder / f"{index}.jpg")
    recipe = load_recipe("imagenette-hybrid").model_dump()
    recipe["training"] |= {"epochs": 1, "warmup_epochs": 0.5, "batch": 10}
    (root / "mine.json").write_text(json.dumps(recipe))
    data = ["--data", str(root / "data")]
    assert main(["train", str(root / "mine.json"), *data, "--out", str(root / "run"), "--workers", "0"]) == 0
    assert main(["export", str(root / "run"), "--name", "photographs", "--models", str(root / "models")]) == 0
    out = ["--out", str(root / "evaluation")]
    assert main(["evaluate", "photographs", *data, "--models", str(root / "models"), *out]) == 0
    return root / "models"


def test_a_photograph_is_answered_with_the_nets_own_attention_over_it(models: Path) -> None:
    """A JPEG of any size -> the label and rollout of the net in eager PyTorch, on a grid of 12 x 12."""
    bundle = open_bundle(models / "photographs" / "1")
    picture = photograph(np.random.default_rng(5))
    file = io.BytesIO()
    picture.save(file, "PNG")
    with TestClient(create_app(Settings(models=models))) as client:
        answer = client.post("/v1/classify?decimals=9&top_k=10", content=file.getvalue()).json()

    spec = bundle.manifest.preprocessing
    with torch.inference_mode():
        outputs = rebuild(bundle).explain(torch.from_numpy(normalize(resize(picture, spec)[None], spec)))
    scores = float64(outputs.logits.double().softmax(-1))[0]
    seen = {label["label"]: label["score"] for label in answer["labels"]}
    np.testing.assert_allclose([seen[name] for name in CLASSES], scores, atol=1e-5)
    (drawn,) = answer["maps"]
    assert (drawn["name"], drawn["grid"]) == ("rollout", [12, 12])
    first, second = (float64(weights)[0].mean(0) for weights in outputs.attention)
    mixed = (second + np.eye(144)) / 2 @ (first + np.eye(144)) / 2
    np.testing.assert_allclose(np.array(drawn["values"]).ravel(), mixed.mean(0), atol=1e-6)


def test_the_photographs_of_val_are_what_is_evaluated(models: Path) -> None:
    """Imagenette names its test pictures val/; one of each class was made."""
    (figure,) = open_bundle(models / "photographs" / "1").manifest.card.evaluation
    assert figure.per_class == tuple((1, right) for _, right in figure.per_class)
    assert (figure.pictures, len(figure.per_class)) == (10, 10)

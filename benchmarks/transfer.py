"""Whether fine-tuning pays: the CIFAR-10 model moved to scikit-learn's digits, and the same recipe from scratch.

    python -m benchmarks.transfer [--epochs 3] [--seeds 1 2 3]

Batches, augmentation, schedule and seed are alike; from scratch all layers are trained at one rate. Held-out accuracy.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from export.data import open_source
from export.init import Weights, read_weights
from export.recipe import load_recipe
from export.run import read_run
from export.train import train

MODELS = Path(__file__).parent.parent / "models"
SOURCE = "cifar10-cct"


def accuracy(seed: int, epochs: int, folder: Path, init: Callable[[], Weights] | None) -> float:
    """After the last epoch, on the held-out digits."""
    recipe = load_recipe("digits-finetune")
    changes = {"epochs": epochs, **({} if init else {"layer_decay": 1.0})}
    training = recipe.training.model_copy(update=changes)
    recipe = recipe.model_copy(update={"seed": seed, "training": training})
    train(recipe, open_source(recipe.data, None, recipe.preprocessing), folder, init=init)
    return float(read_run(folder)[3][-1]["held_out_accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    given = parser.parse_args()
    lines = [f"| seed | from scratch | from `{SOURCE}` |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as scratch:
        for seed in given.seeds:
            fresh = accuracy(seed, given.epochs, Path(scratch) / f"fresh-{seed}", None)
            source = partial(read_weights, SOURCE, MODELS)
            tuned = accuracy(seed, given.epochs, Path(scratch) / f"tuned-{seed}", source)
            lines.append(f"| {seed} | {fresh:.1%} | {tuned:.1%} |".replace("%", " %"))
    print("\n".join(lines))


if __name__ == "__main__":
    main()

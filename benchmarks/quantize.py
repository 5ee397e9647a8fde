"""What a variant in int8 costs and gains beside its parent, in one process, by turns, in the service's own sessions.

    python -m benchmarks.quantize                                        # ViT-S/16 at 224 pixels, weights random
    python -m benchmarks.quantize --data DIR cifar10-hybrid-s cifar10-resnet-s cifar10-cct

Bundles are copied, and quantised as `saccade quantize --int8` does; what they lose stands on the variant's card. Of
random weights labels and maps say nothing, so only the speed is printed.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks.machine import machine
from benchmarks.stats import Ratio, paired_ratio
from benchmarks.works import ROOT, random_net
from export.quantize.choose import Bounds
from export.quantize.quantize import quantize
from export.recipe import load_recipe
from saccade.bundle import Bundle, open_bundle, resolve_bundle, write_bundle
from saccade.golden import made_pictures
from saccade.preprocess import normalize
from service.placement import CPU
from service.session import OnnxRunner, load_head

RANDOM = "random-vit-s"
RECIPE = "imagenet-vit-s"
NO_BOUNDS = Bounds(top1=2.0, maps=-1.0)
PICTURES = 64
SEED = 21


def random_pair(models: Path) -> tuple[Bundle, Bundle]:
    """The ViT-S and its variant, every layer but the head quantised, calibrated on made pictures."""
    recipe = load_recipe(RECIPE).model_dump(mode="json")
    parent = write_bundle(models, RANDOM, 1, partial(random_net, name=RANDOM, recipe=recipe))
    pictures = models.parent / "pictures"
    for part, count in (("val", 4 * PICTURES), ("test", 1)):
        folder = pictures / part / "class_000"
        folder.mkdir(parents=True)
        for index in range(0, count, 64):
            for at, pixels in enumerate(made_pictures(min(64, count), 224, 224, SEED + index)):
                Image.fromarray(pixels).save(folder / f"{index + at:04d}.png", compress_level=1)
    return parent, quantize(parent, "int8", pictures, pictures=PICTURES, bounds=NO_BOUNDS, anyway=True)


def pair(name: str, models: Path, data: Path | None) -> tuple[Bundle, Bundle]:
    """A bundle of the repository, or of a folder, and its variant."""
    source = resolve_bundle(ROOT / "models", name)
    copy = models / source.parent.name / source.name
    shutil.copytree(source, copy)
    parent = open_bundle(copy)
    return parent, quantize(parent, "int8", data)


def speeds(parent: Bundle, variant: Bundle, batch: int, threads: int, rounds: int) -> Ratio:
    """Pictures a second of the variant over its parent's, all outputs fetched, one run of each a round."""
    spec, outputs = parent.manifest.preprocessing, parent.manifest.outputs
    pixels = normalize(made_pictures(batch, spec.height, spec.width, SEED), spec)
    runners = [OnnxRunner(bundle, [CPU], threads, head=load_head(bundle)) for bundle in (parent, variant)]
    seconds: list[list[float]] = [[], []]
    for number in range(-2, rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            repeats = max(1, round(0.05 / seconds[which][0])) if seconds[which] else 1
            started = time.perf_counter()
            for _ in range(repeats):
                runners[which].run(pixels, outputs)
            seconds[which].append((time.perf_counter() - started) / repeats)
    return paired_ratio(seconds[0][2:], seconds[1][2:])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", help="names of bundles in models/, or paths (default: a random ViT-S/16)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="pictures of the bundles, as for saccade quantize")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args(arguments)
    lines = []
    for name in given.bundles or [RANDOM]:
        with tempfile.TemporaryDirectory() as scratch:
            models = Path(scratch) / "models"
            parent, variant = random_pair(models) if not given.bundles else pair(name, models, given.data)
            card = variant.manifest.card.variant
            assert card is not None
            size = f"{card.parent_bytes / 2**20:.2f} → {card.bytes / 2**20:.2f} MiB"
            lost = "- | - | -"
            if given.bundles:
                maps = ", ".join(f"{kind} {value:.4f}" for kind, value in card.maps.items())
                lost = f"{card.parent_top1:.2%} → {card.top1:.2%} of {card.pictures} | {card.same_label:.2%} | {maps}"
            ratios = [
                speeds(parent, variant, batch, threads, given.rounds) for threads in given.threads for batch in (1, 8)
            ]
            said = " | ".join(f"{one.median:.2f} ({one.low:.2f} to {one.high:.2f})" for one in ratios)
            lines.append(f"| {parent.manifest.id} | {size} | {lost} | {said} |")
    print(f"{machine()['cpu']}, {', '.join(machine()['flags'])}; ONNX Runtime; ratios of {given.rounds} pairs")
    heads = [f"{threads} thread, batch {batch}" for threads in given.threads for batch in (1, 8)]
    print(f"| bundle | graph and weights | top-1 | same label | rank correlation | {' | '.join(heads)} |")
    print("\n".join(["|---" * (5 + len(heads)) + "|", *lines]))


if __name__ == "__main__":
    main()

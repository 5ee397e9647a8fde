"""All attention of a ViT-Ti/16 at 224 pixels as JSON (1.4 million numbers), against bare orjson on the same arrays.

    python -m benchmarks.full_dump [--rounds 15]

Ours selects, checks for NaN, rounds and encodes; the bar is 1.5 times what orjson alone takes for the rounded arrays.
"""

import argparse
import statistics
import time

import numpy as np
import orjson

from saccade.api import ClassifyOptions
from saccade.card import Card
from saccade.geometry import Region
from saccade.manifest import AttentionLayer, Manifest, Maps, Pooling, Preprocessing, Provenance, SpecialTokens
from service import postprocess
from service.encode import to_json
from service.selection import select

LAYERS, HEADS, GRID, CLASSES = 12, 3, (14, 14), 1000


def manifest() -> Manifest:
    return Manifest(
        schema_version=1,
        name="vit-ti",
        version=1,
        labels=tuple(f"class {index}" for index in range(CLASSES)),
        preprocessing=Preprocessing(height=224, width=224, fit="stretch", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        attention=tuple(
            AttentionLayer(
                output=f"attention_{index:02d}", grid=GRID, heads=HEADS, special_tokens=SpecialTokens(count=1)
            )
            for index in range(LAYERS)
        ),
        pooling=Pooling(kind="class_token"),
        maps=Maps(default=("rollout",), rollout="rollout"),
        tolerance={},
        provenance=Provenance(recipe={}, data="", held_out="", seed=0, commit=None, versions={}),
        card=Card(summary="", license="", parameters=0),
        files={},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    model = manifest()
    tokens = model.attention[0].tokens
    generator = np.random.default_rng(0)
    scores = generator.normal(0, 2, (LAYERS, HEADS, tokens, tokens))
    weights = (np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)).astype(np.float32)
    outputs = {layer.output: array for layer, array in zip(model.attention, weights, strict=True)}
    outputs["logits"] = generator.normal(0, 1, CLASSES).astype(np.float32)
    options = ClassifyOptions(attention="all", heads="all", maps="none")
    selection = select(model, options, 2**30)
    rounded = [postprocess.rounded(array, 6) for array in weights]

    def ours() -> bytes:
        return to_json(postprocess.answer(model, None, selection, outputs, (500, 375), Region(0, 0, 500, 375)))

    def bare() -> bytes:
        return orjson.dumps(rounded, option=orjson.OPT_SERIALIZE_NUMPY)

    ratios, seconds = [], []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        answer = ours()
        middle = time.perf_counter()
        bare()
        end = time.perf_counter()
        ratios.append((middle - start) / (end - middle))
        seconds.append(middle - start)
    ratios, seconds = ratios[1:], seconds[1:]  # the first round warms up
    print(f"{weights.size:,} numbers, {len(answer):,} bytes, {rounds} paired rounds")
    print(f"ours / bare orjson: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"ours: median {statistics.median(seconds) * 1000:.0f} ms on this machine")


if __name__ == "__main__":
    main()

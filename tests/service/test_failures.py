"""Runs that fail, on a real server: each member of a batch is answered, and the next batch runs."""

import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from saccade.bundle import Bundle, open_bundle
from service.batcher import Floats, Indices
from tests.service.reference import Gated, Real, Scene


class Failing(Real):
    """Raises in its first run."""

    def run(self, pixels: Floats, outputs: Sequence[str], class_index: Indices | None = None) -> dict[str, Floats]:
        answers = super().run(pixels, outputs, class_index)
        if len(self.sizes) == 1:
            raise RuntimeError("the device is gone")
        return answers


class Spoiled(Real):
    """In its first run, NaN in the logits of some rows."""

    def __init__(self, bundle: Bundle, rows: Sequence[int]) -> None:
        super().__init__(bundle)
        self.rows = list(rows)

    def run(self, pixels: Floats, outputs: Sequence[str], class_index: Indices | None = None) -> dict[str, Floats]:
        answers = super().run(pixels, outputs, class_index)
        if len(self.sizes) == 1:
            answers["logits"][self.rows] = np.nan
        return answers


@pytest.fixture
def bundle(models: Path) -> Bundle:
    return open_bundle(models / "tiny-cct" / "1")


@pytest.fixture
def scenes() -> Iterator[list[Scene]]:
    """To be stopped afterwards."""
    started: list[Scene] = []
    yield started
    for scene in started:
        scene.stop()


def three(scene: Scene) -> list[httpx.Response]:
    """Three callers at once, who share a batch."""
    with ThreadPoolExecutor(3) as threads:
        return [one.result() for one in [threads.submit(scene.post) for _ in range(3)]]


TOGETHER: dict[str, Any] = {"max_batch": 3, "max_wait_ms": 60_000}


@pytest.mark.parametrize("decode_threads", [0, 1])
def test_a_run_that_raises_answers_each_of_its_members_and_the_next_one_runs(
    models: Path, bundle: Bundle, scenes: list[Scene], decode_threads: int
) -> None:
    """Three times 500, with the size of the batch; then three times 200."""
    runner = Failing(bundle)
    scenes.append(scene := Scene(models, runner, **TOGETHER, decode_threads=decode_threads))
    for response in three(scene):
        assert (response.status_code, response.json()["code"]) == (500, "inference_failed")
        assert "a batch of 3 failed: RuntimeError" in response.json()["error"]
    assert [response.status_code for response in three(scene)] == [200] * 3
    assert runner.sizes == [3, 3]
    assert scene.metric("saccade_admitted_images") == 0
    assert scene.metric("saccade_images_total") == 3


@pytest.mark.parametrize("rows", [(0,), (1, 2), (0, 1, 2)])
def test_who_got_what_is_not_finite_is_told_and_who_did_not_is_answered(
    models: Path, bundle: Bundle, scenes: list[Scene], rows: tuple[int, ...]
) -> None:
    """NaN is an error of its own row; the next batch runs."""
    runner = Spoiled(bundle, rows)
    scenes.append(scene := Scene(models, runner, **TOGETHER))
    responses = three(scene)
    assert sorted(response.status_code for response in responses) == [200] * (3 - len(rows)) + [500] * len(rows)
    for response in responses:
        if response.status_code == 500:
            assert response.json()["code"] == "inference_failed"
            assert "not finite in its output logits" in response.json()["error"]
    assert [response.status_code for response in three(scene)] == [200] * 3
    assert runner.sizes == [3, 3]


def test_retry_after_is_the_time_that_the_engine_really_needs(
    models: Path, bundle: Bundle, scenes: list[Scene]
) -> None:
    """Measured: one image took so long, eight are waiting, come again in eight times as long."""
    runner = Gated(bundle)
    scenes.append(scene := Scene(models, runner, max_batch=1, queue_images=8))
    try:
        with ThreadPoolExecutor(9) as threads:
            asked = [threads.submit(scene.post) for _ in range(2)]
            while scene.metric("saccade_queue_age_seconds") < 0.4:
                pass
            runner.go_on.set()
            assert [one.result().status_code for one in asked] == [200, 200]
            runner.go_on.clear()
            seconds = scene.metric("saccade_run_seconds_sum", graph="model")
            asked = [threads.submit(scene.post) for _ in range(8)]
            scene.until("saccade_admitted_images", 8)
            refused = scene.post()
            assert refused.status_code == 429
            assert re.fullmatch(r"\d+", refused.headers["retry-after"])
            # 2 images in the time of both runs, and what was spent around them; the first counts 0.95 of the second
            expected = 8 * seconds / 2
            assert math.floor(expected) <= int(refused.headers["retry-after"]) <= math.ceil(1.2 * expected) + 1
            assert int(refused.headers["retry-after"]) > 1
            runner.go_on.set()
            assert [one.result().status_code for one in asked] == [200] * 8
    finally:
        runner.go_on.set()

"""One picture through the whole service, against the net itself in eager PyTorch."""

import asyncio
import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from saccade.api import Answer, ClassifyOptions
from saccade.bundle import Bundle, open_bundle
from service.classifier import Classifier
from service.metrics import Metrics
from service.plan import find_cpus, make_plan
from service.selection import offered
from service.settings import Settings
from service.workers import Workers
from tests.conftest import ROOT, Server
from tests.service.reference import (
    NAMES,
    PNG,
    WITH_ATTENTION,
    WITH_CLASS_MAP,
    Eager,
    Real,
    Scene,
    ask,
    copy_bundle,
    eager,
    encoded,
    patches,
    picture,
    png,
    pooled_row,
    rollout,
    softmax,
)


@pytest.fixture(scope="module")
def references(models: Path) -> dict[str, tuple[Bundle, Eager]]:
    """Of each bundle what the eager net says of PNG."""
    bundles = {name: open_bundle(models / name / "1") for name in NAMES}
    return {name: (bundle, eager(bundle, PNG)) for name, bundle in bundles.items()}


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_has_the_keys_of_the_wire_format_and_no_others(service: TestClient, name: str) -> None:
    """A caller may write down the answer's type once, from the documentation."""
    attentive = name != "tiny-resnet"
    has = "rollout" if name == "tiny-vit" else "class"
    answer = ask(service, model=name, maps=has, **({"attention": "all"} if attentive else {}))
    Answer.model_validate(answer, strict=False)
    assert list(answer) == ["request_id", "model", "labels", "maps", "attention", "geometry", "timing"]
    assert answer["model"] == {"name": name, "version": 1}
    assert all(set(label) == {"label", "index", "score"} for label in answer["labels"])
    more = {"sum", "bias", "logit", "temperature"} if has == "class" else {"special_tokens_share"}
    assert set(answer["maps"][0]) == {"name", "class_index", "grid", "values"} | more
    assert set(answer["geometry"]) == {"image", "region"}
    assert set(answer["geometry"]["image"]) == {"width", "height"}
    assert set(answer["geometry"]["region"]) == {"left", "top", "width", "height"}
    assert set(answer["timing"]) == {"decode_ms", "queue_ms", "run_ms", "total_ms", "batch_size"}
    assert (answer["attention"] is not None) == attentive
    for entry in answer["attention"] or ():
        assert set(entry) == {"layer", "window", "heads", "grid", "special_tokens", "rows", "shape", "weights"}
        assert set(entry["special_tokens"]) == {"count", "place"}


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_probabilities_of_the_net_itself(
    service: TestClient, references: dict[str, tuple[Bundle, Eager]], name: str
) -> None:
    """What is served is the model that was trained: 1e-5 on every probability, the most probable first."""
    bundle, reference = references[name]
    expected = softmax(reference.logits)
    answer = ask(service, model=name, top_k=100, decimals=9)
    scores = [label["score"] for label in answer["labels"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(label["index"] for label in answer["labels"]) == list(range(len(expected)))
    for label in answer["labels"]:
        assert label["score"] == pytest.approx(expected[label["index"]], abs=1e-5)
        assert label["label"] == bundle.manifest.labels[label["index"]]


@pytest.mark.parametrize("top_k", [1, 3, 5, 100])
def test_top_k_keeps_the_most_probable_labels(service: TestClient, top_k: int) -> None:
    """top_k never reorders or rescales: it is the head of the full list; 5 is the default."""
    full = ask(service, top_k=100)["labels"]
    assert ask(service, top_k=top_k)["labels"] == full[:top_k]
    assert ask(service)["labels"] == full[:5]


def test_min_score_leaves_out_what_is_less_probable_and_may_leave_nothing(service: TestClient) -> None:
    """Probabilities stay those over all classes, however few are shown."""
    full = ask(service, top_k=100, decimals=9)["labels"]
    bound = (full[1]["score"] + full[2]["score"]) / 2
    assert ask(service, top_k=100, decimals=9, min_score=bound)["labels"] == full[:2]
    assert ask(service, min_score=1)["labels"] == []


@pytest.mark.parametrize("decimals", [0, 1, 3, 6, 9])
def test_decimals_rounds_scores_maps_and_weights(service: TestClient, decimals: int) -> None:
    """Every number of the arrays is the nearest with so many digits after the point."""
    exact = ask(service, attention="last", maps="pooling,rollout", decimals=9)
    seen = ask(service, attention="last", maps="pooling,rollout", decimals=decimals)

    def numbers(answer: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
        arrays = [np.array(entry["values"]) for entry in answer["maps"]]
        arrays += [np.array(entry["weights"]) for entry in answer["attention"]]
        arrays += [np.array([label["score"] for label in answer["labels"]])]
        return np.concatenate([array.ravel() for array in arrays])

    assert np.abs(numbers(seen) - numbers(exact)).max() <= 0.5 * 10**-decimals + 1e-9 + 1e-7
    digits = [f"{number:.12f}".rstrip("0").partition(".")[2] for number in numbers(seen)]
    assert max(map(len, digits)) <= max(decimals, 0)


# --- maps


@pytest.mark.parametrize("name", NAMES)
def test_without_a_word_an_answer_has_the_manifests_default_maps(
    service: TestClient, references: dict[str, tuple[Bundle, Eager]], name: str
) -> None:
    """Small by default: no attention, one map, each value on the grid."""
    answer = ask(service, model=name)
    assert tuple(entry["name"] for entry in answer["maps"]) == references[name][0].manifest.maps.default
    assert answer["attention"] is None


@pytest.mark.parametrize("name", NAMES)
def test_maps_none_leaves_all_maps_out(service: TestClient, name: str) -> None:
    """Labels alone are a right request."""
    assert ask(service, model=name, maps="none")["maps"] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_map_alone_and_all_together_have_the_grids_shape(
    service: TestClient, references: dict[str, tuple[Bundle, Eager]], name: str
) -> None:
    """`values` is rows x columns of `grid`, for grids that are not square too."""
    available = references[name][0].manifest.maps.available
    alone = [ask(service, model=name, maps=one)["maps"] for one in available]
    together = ask(service, model=name, maps=",".join(available))["maps"]
    for one, entry in zip([entry for entries in alone for entry in entries], together, strict=True):
        assert (one["name"], one["class_index"]) == (entry["name"], entry["class_index"])
        assert np.array(entry["values"]).shape == tuple(entry["grid"])
        np.testing.assert_allclose(one["values"], entry["values"], atol=2e-6)  # of two graphs, and rounded
        assert (entry["class_index"] is None) == (entry["name"] in ("pooling", "rollout"))
    if name == "tiny-vit":
        assert {tuple(entry["grid"]) for entry in together} == {(4, 6)}


def test_maps_come_in_the_order_asked_for(service: TestClient) -> None:
    """The caller's order is kept."""
    answer = ask(service, maps="class,rollout,pooling")
    assert [entry["name"] for entry in answer["maps"]] == ["class", "rollout", "pooling"]


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_rollout_is_the_published_product_over_the_nets_own_weights(
    service: TestClient, references: dict[str, tuple[Bundle, Eager]], name: str
) -> None:
    """Rollout means what the paper says: the pooled row times (mean over heads + identity) / 2 of each layer."""
    bundle, reference = references[name]
    (entry,) = ask(service, model=name, maps="rollout", decimals=9)["maps"]
    row = rollout(bundle, reference)
    np.testing.assert_allclose(entry["values"], patches(bundle, row), atol=1e-5)
    assert entry["special_tokens_share"] == pytest.approx(1 - patches(bundle, row).sum(), abs=1e-5)


def test_the_pooling_map_is_what_learned_pooling_gave_each_patch(
    service: TestClient, references: dict[str, tuple[Bundle, Eager]]
) -> None:
    """It sums to 1: the shares with which the patches made the label."""
    bundle, reference = references["tiny-cct"]
    assert reference.pooling is not None
    (entry,) = ask(service, maps="pooling", decimals=9)["maps"]
    np.testing.assert_allclose(entry["values"], patches(bundle, reference.pooling), atol=1e-5)
    assert np.sum(entry["values"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", WITH_CLASS_MAP)
def test_a_class_map_and_its_bias_add_up_to_the_logit(
    service: TestClient, references: dict[str, tuple[Bundle, Eager]], name: str
) -> None:
    """The exact class map proves itself: sum + bias = logit within 1e-4, and the logit is the net's."""
    _, reference = references[name]
    entries = ask(service, model=name, maps="class", classes="topk", top_k=100, decimals=9)["maps"]
    assert len(entries) == len(reference.logits)
    for entry in entries:
        index = entry["class_index"]
        assert reference.tokens is not None
        expected = reference.tokens.astype(np.float64) @ reference.weight[index].astype(np.float64)
        np.testing.assert_allclose(np.ravel(entry["values"]), expected, atol=1e-4)
        assert entry["sum"] + entry["bias"] == pytest.approx(entry["logit"], abs=1e-4)
        assert np.sum(entry["values"]) == pytest.approx(entry["sum"], abs=1e-5)
        assert entry["logit"] == pytest.approx(reference.logits[index], abs=1e-4)
        assert entry["bias"] == pytest.approx(reference.bias[index], abs=1e-7)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["3"], [3]),
        (["3,0,7"], [3, 0, 7]),
        (["3", "0,7"], [3, 0, 7]),
        (["3", "3,0", "0"], [3, 0]),
        ([" 3 , 0 "], [3, 0]),
    ],
)
def test_classes_by_index_come_in_the_order_asked_for_and_once(
    service: TestClient, classes: list[str], expected: list[int]
) -> None:
    """With commas or given again, it is one list."""
    entries = ask(service, maps="class", classes=classes)["maps"]
    assert [entry["class_index"] for entry in entries] == expected


def test_classes_top1_and_topk_follow_the_labels(service: TestClient) -> None:
    """top1 is the default and explains the first label; topk explains each label in turn."""
    answer = ask(service, maps="class", classes="topk", top_k=3)
    indices = [label["index"] for label in answer["labels"]]
    assert [entry["class_index"] for entry in answer["maps"]] == indices
    for asked in ({}, {"classes": "top1"}, {"classes": indices[:1]}):
        (entry,) = ask(service, maps="class", **asked)["maps"]
        assert entry["class_index"] == indices[0]
        np.testing.assert_allclose(entry["values"], answer["maps"][0]["values"], atol=2e-6)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["tench, Tinca tinca"], [0]),
        (["tench, Tinca tinca", "dog"], [0, 2]),
        (["dog,cat"], [2, 1]),
        (["a, b, c", "9", "cat,5"], [3, 9, 1, 5]),
        (["ünïcode"], [4]),
    ],
)
def test_labels_name_classes_even_where_they_hold_commas(
    models: Path, tmp_path: Path, serve: Any, classes: list[str], expected: list[int]
) -> None:
    """ImageNet's labels are lists of synonyms: a whole label is tried before its parts."""
    names = ("tench, Tinca tinca", "cat", "dog", "a, b, c", "ünïcode", *"56789")
    names = tuple(f"class {name}" if name.isdigit() else name for name in names)
    copy_bundle(models, "tiny-cct", tmp_path, labels=names)
    client = serve(models=tmp_path)
    entries = ask(client, maps="class", classes=classes)["maps"]
    assert [entry["class_index"] for entry in entries] == expected


# --- attention

LAYERS = ["last", "all", "0", "1,0"]


def chosen(text: str, count: int) -> list[int]:
    if text == "all":
        return list(range(count))
    return [count - 1] if text == "last" else [int(part) for part in text.split(",")]


@pytest.mark.parametrize("rows", ["all", "pool", "0", "3,1"])
@pytest.mark.parametrize("heads", ["mean", "all", "1", "1,0"])
@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_attention_is_the_slice_asked_for_of_the_nets_own_weights(
    service: TestClient, references: dict[str, tuple[Bundle, Eager]], name: str, heads: str, rows: str
) -> None:
    """Layers, heads and rows by name: softmax weights within 1e-5, one entry a layer, shape as said."""
    bundle, reference = references[name]
    for layers in LAYERS:
        entries = ask(service, model=name, attention=layers, heads=heads, rows=rows, maps="none", decimals=9)[
            "attention"
        ]
        assert [entry["layer"] for entry in entries] == chosen(layers, len(reference.attention))
        for entry in entries:
            weights = reference.attention[entry["layer"]].astype(np.float64)
            count, tokens = weights.shape[:2]
            if rows == "pool":
                weights = np.einsum("n,hnm->hm", pooled_row(bundle, reference), weights)[:, None]
            else:
                weights = weights[:, chosen(rows, tokens)]
            picked = chosen(heads, count) if heads != "mean" else []
            weights = weights[picked] if picked else weights.mean(0, keepdims=True)
            assert entry["shape"] == list(weights.shape) == list(np.shape(entry["weights"]))
            np.testing.assert_allclose(entry["weights"], weights, atol=1e-5)
            assert entry["heads"] == (picked or "mean")
            assert entry["rows"] == (rows if rows in ("all", "pool") else chosen(rows, tokens))
            special = bundle.manifest.attention[entry["layer"]].special_tokens
            assert entry["special_tokens"] == {"count": special.count, "place": special.place}
            assert np.prod(entry["grid"]) + special.count == tokens == entry["shape"][2]


def test_the_bundles_cover_learned_class_token_and_mean_pooling(references: dict[str, tuple[Bundle, Eager]]) -> None:
    """rows=pool above was held for each of the three; and a grid that is not square, with a special token."""
    poolings = [references[name][0].manifest.pooling for name in WITH_ATTENTION]
    assert [pooling.kind for pooling in poolings if pooling] == ["learned", "class_token", "mean"]
    layer = references["tiny-vit"][0].manifest.attention[0]
    assert layer.grid == (4, 6)
    assert layer.special_tokens.count == 1


def test_attention_none_is_null(service: TestClient) -> None:
    """null, not an empty list: nothing was asked for."""
    assert ask(service, attention="none")["attention"] is None


# --- geometry


@pytest.fixture(scope="module")
def cropping(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-vit (16 x 24) that crops the middle of a picture whose shorter side was made 30."""
    folder = tmp_path_factory.mktemp("cropping")
    fields = open_bundle(models / "tiny-vit" / "1").manifest.preprocessing.model_dump()
    copy_bundle(models, "tiny-vit", folder, preprocessing={**fields, "fit": "crop", "shortest_edge": 30})
    return folder


@pytest.mark.parametrize(
    ("width", "height", "region"),
    [
        # 120 x 60 -> 60 x 30; the middle 24 x 16 starts at (18, 7); the scale is 2
        (120, 60, {"left": 36, "top": 14, "width": 48, "height": 32}),
        # 60 x 120 -> 30 x 60; starts at (3, 22)
        (60, 120, {"left": 6, "top": 44, "width": 48, "height": 32}),
        (30, 30, {"left": 3, "top": 7, "width": 24, "height": 16}),
    ],
)
def test_the_region_is_what_the_model_saw_of_landscape_and_portrait(
    cropping: Path, serve: Any, width: int, height: int, region: dict[str, int]
) -> None:
    """Draw the grid over `region` of your picture and it lies where the model looked."""
    geometry = ask(serve(models=cropping, default_model=None), png(0, width, height))["geometry"]
    assert geometry == {"image": {"width": width, "height": height}, "region": region}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_region_counts_in_pixels_of_the_upright_original(cropping: Path, serve: Any, orientation: int) -> None:
    """A telephone's portrait is stored lying; sizes and region are those of the picture as one sees it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    geometry = ask(serve(models=cropping, default_model=None), encoded(picture(120, 60), "PNG", exif=exif))["geometry"]
    if orientation >= 5:
        assert geometry["image"] == {"width": 60, "height": 120}
        assert geometry["region"] == {"left": 6, "top": 44, "width": 48, "height": 32}
    else:
        assert geometry["image"] == {"width": 120, "height": 60}
        assert geometry["region"] == {"left": 36, "top": 14, "width": 48, "height": 32}


def test_stretching_sees_the_whole_picture(service: TestClient) -> None:
    """The digits models stretch: nothing is cropped."""
    geometry = ask(service, png(0, 33, 77))["geometry"]
    assert geometry["region"] == {"left": 0, "top": 0, "width": 33, "height": 77}


def test_a_turned_picture_is_answered_like_the_upright_one(service: TestClient) -> None:
    """EXIF orientation is honoured in the pixels too."""
    upright = picture(50, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    assert ask(service, encoded(stored, "PNG", exif=exif))["labels"] == ask(service, encoded(upright))["labels"]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_pictures_of_every_ordinary_mode_just_work(service: TestClient, mode: str) -> None:
    """Greyscale, CMYK, 16-bit and palette pictures are ordinary input."""
    image = picture()
    if mode == "I;16":
        image = Image.fromarray(np.arange(40 * 30, dtype=np.uint16).reshape(30, 40) * 50)
    else:
        image = image.convert(mode)
    assert len(ask(service, encoded(image, "TIFF" if mode == "CMYK" else "PNG"))["labels"]) == 5


# --- alone equals in a batch


def test_a_picture_is_answered_the_same_alone_and_among_others(server: Server, models: Path) -> None:
    """Whoever the neighbours are, and whatever they asked for: 1e-5 on every score."""
    others = [
        {"model": model, **more}
        for model in NAMES
        for more in ({}, {"attention": "none"}, {"maps": "none"}, {"top_k": "1"})
    ][:15]
    mine = {"model": "tiny-cct", "top_k": "10", "attention": "last", "decimals": "9"}
    limits = httpx.Limits(max_connections=16)
    with httpx.Client(base_url=server.url, timeout=30, limits=limits) as client:

        def post(query: dict[str, str], seed: int) -> dict[str, Any]:
            response = client.post("/v1/classify", params=query, content=png(seed))
            assert response.status_code == 200, response.text
            answer: dict[str, Any] = response.json()
            return answer

        alone = post(mine, 0)
        assert alone["timing"]["batch_size"] == 1
        scores = {label["index"]: label["score"] for label in alone["labels"]}
        with ThreadPoolExecutor(16) as threads:
            for turn in range(4):
                neighbours = [threads.submit(post, query, turn * 16 + i + 1) for i, query in enumerate(others)]
                seen = threads.submit(post, mine, 0).result()
                for neighbour in neighbours:
                    neighbour.result()
                for label in seen["labels"]:
                    assert label["score"] == pytest.approx(scores[label["index"]], abs=1e-5)
                np.testing.assert_allclose(seen["attention"][0]["weights"], alone["attention"][0]["weights"], atol=1e-5)


def neighbours(name: str) -> list[tuple[bytes, dict[str, Any]]]:
    """Fifteen requests of every format, size and wish that the model can meet."""
    wishes: list[dict[str, Any]] = [{"maps": "none"}, {"maps": "none", "top_k": 1}, {"decimals": 0}]
    if name in WITH_ATTENTION:
        wishes += [{"attention": "all", "heads": "all"}, {"attention": "0", "rows": "pool"}, {"maps": "rollout"}]
    if name in WITH_CLASS_MAP:
        wishes += [{"maps": "class", "classes": "topk", "top_k": 10}, {"maps": "class", "classes": "0,7"}]
    kinds = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
    sizes = ((40, 30), (17, 90), (200, 120), (8, 8), (301, 299))
    return [
        (encoded(picture(*sizes[index % 5], seed=index + 1), kinds[index % 6]), wishes[index % len(wishes)])
        for index in range(15)
    ]


@pytest.mark.parametrize(
    ("name", "place"), [("tiny-cct", 0), ("tiny-vit", 8), ("tiny-vit-mean", 15), ("tiny-resnet", 5)]
)
def test_a_picture_is_answered_the_same_alone_and_in_one_batch_with_fifteen_others(
    models: Path, references: dict[str, tuple[Bundle, Eager]], name: str, place: int
) -> None:
    """Through the whole service: scores, maps of the forward pass and attention within 1e-5, whoever the neighbours are
    and whatever they want; and all of it is what the net itself says of the picture.
    """
    bundle, reference = references[name]
    available = offered(bundle.manifest, "off")
    mine: dict[str, Any] = {"top_k": 10, "decimals": 9, "maps": ",".join(available)}
    if name in WITH_CLASS_MAP:
        mine |= {"classes": "0,1,2,3,4,5,6,7,8,9"}
    if name in WITH_ATTENTION:
        mine |= {"attention": "all", "heads": "all"}
    runner = Real(bundle)
    # company is waited for until the batch is full; who comes alone is asked of a service that waits for none
    scene, lonely = (Scene(models, runner, model=name, max_batch=16, max_wait_ms=wait) for wait in (60_000, 0))
    try:
        alone = lonely.post(**mine).json()
        requests = neighbours(name)
        requests.insert(place, (PNG, mine))
        with ThreadPoolExecutor(16) as threads:
            asked = []
            for count, (body, query) in enumerate(requests, 1):
                asked.append(threads.submit(scene.post, body, **query))
                if count < 16:
                    scene.until("saccade_queue_images", count)  # so that the batch is in this order
            answers = [one.result() for one in asked]
        assert [answer.status_code for answer in answers] == [200] * 16
        assert runner.sizes == [1, 16]
    finally:
        scene.stop()
        lonely.stop()
    together = answers[place].json()
    assert (alone["timing"]["batch_size"], together["timing"]["batch_size"]) == (1, 16)
    scores = softmax(reference.logits)
    for answer in (alone, together):
        assert len(answer["labels"]) == len(scores)
        for label in answer["labels"]:
            assert label["score"] == pytest.approx(scores[label["index"]], abs=1e-5)
        for entry in answer["maps"]:
            if entry["name"] == "rollout":
                expected = patches(bundle, rollout(bundle, reference))
            elif entry["name"] == "pooling":
                assert reference.pooling is not None
                expected = patches(bundle, reference.pooling)
            else:
                assert reference.tokens is not None
                expected = (reference.tokens @ reference.weight[entry["class_index"]]).reshape(entry["grid"])
            atol = 1e-4 if entry["name"] == "class" else 1e-5  # a class map is a part of a logit
            np.testing.assert_allclose(entry["values"], expected, atol=atol)
        for entry in answer["attention"] or ():
            np.testing.assert_allclose(entry["weights"], reference.attention[entry["layer"]], atol=1e-5)
    assert len(together["maps"]) == len(alone["maps"]) == len(available) + (9 if name in WITH_CLASS_MAP else 0)
    assert len(together["attention"] or ()) == len(reference.attention)
    by_index = [{label["index"]: label["score"] for label in answer["labels"]} for answer in (alone, together)]
    assert by_index[0] == pytest.approx(by_index[1], abs=1e-5)
    for one, other in zip(alone["maps"], together["maps"], strict=True):
        assert (one["name"], one["class_index"]) == (other["name"], other["class_index"])
        np.testing.assert_allclose(one["values"], other["values"], atol=1e-5)
    for one, other in zip(alone["attention"] or (), together["attention"] or (), strict=True):
        np.testing.assert_allclose(one["weights"], other["weights"], atol=1e-5)
    for (_, query), answer in zip(requests, answers, strict=True):  # and each neighbour got what it asked for
        seen = answer.json()
        assert (seen["attention"] is not None) == ("attention" in query)
        assert (seen["maps"] == []) == (query.get("maps") == "none")


def test_a_gif_is_answered_by_its_first_frame(service: TestClient) -> None:
    """An animation is judged by what it shows first."""
    buffer = io.BytesIO()
    frames = [picture(seed=seed).quantize(64) for seed in (0, 1)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    first = ask(service, encoded(frames[0], "GIF"))
    assert ask(service, buffer.getvalue())["labels"] == first["labels"]


def test_only_a_large_answer_keeps_its_place_until_it_is_taken() -> None:
    """Whoever asks for labels and does not read them keeps nobody out; megabytes that wait are bounded."""
    settings = Settings(queue_images=1, instances=1, decode_threads=0)
    plan = make_plan(settings, find_cpus(), "CPUExecutionProvider")
    workers = Workers(plan.decode_threads)
    classifier = Classifier(open_bundle(ROOT / "models/cifar10-cct/1"), settings, plan, workers, Metrics())

    async def receive() -> bytes:
        return PNG

    def places(query: dict[str, str]) -> tuple[bool, int]:
        """Of an answer whether it is over 64 KiB, and how many places are taken while it is."""
        seen = []

        async def deliver(answer: bytes) -> None:
            seen.append((len(answer) > 2**16, classifier.batcher.admitted))

        options = ClassifyOptions.from_query([*query.items()])
        loop.run(classifier.classify(receive, deliver, options, "id", time.monotonic()))
        return seen[0]

    with asyncio.Runner() as loop:
        assert places({}) == (False, 0)
        assert places({"attention": "all", "heads": "all"}) == (True, 1)
    classifier.close()
    workers.close()

"""Maps of the gradient through the whole service, against float64 autograd through the net in eager PyTorch."""

import asyncio
import io
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from export.reference import rebuild
from saccade.api import Answer
from saccade.bundle import GOLDEN, RELEVANCE, Bundle, open_bundle, update_bundle
from saccade.decode import decode
from saccade.errors import BundleError, RelevanceFailed, SettingsError
from saccade.preprocess import preprocess
from service.plan import find_cpus, make_plan
from service.relevance import Relevance
from service.session import load_head
from service.settings import Settings
from tests.conftest import CLASS_MAP_ONLY, NETS, Server
from tests.export.explain.test_relevance import WITH_RELEVANCE, WITHOUT_ATTENTION, by_autograd
from tests.service.reference import BLACK, PNG, ask, copy_bundle, hanging_bundle, png

CPU = ("CPUExecutionProvider",)
Start = Callable[..., TestClient]
OPENED = "answers maps of the gradient: relevance.onnx is open"


def expected(bundle: Bundle, data: bytes, label: int) -> dict[str, NDArray[np.float64]]:
    """(patches,) of each map, by autograd in float64."""
    spec = bundle.manifest.preprocessing
    pixels = preprocess(decode(data, spec.background), spec)
    return {name: values[0] for name, values in by_autograd(rebuild(bundle), bundle, pixels[None], label).items()}


def same_map(entry: dict[str, Any], values: NDArray[np.float64]) -> None:
    """To 1e-4 of the map's greatest value, and what nine digits round."""
    assert tuple(np.shape(entry["values"])) == tuple(entry["grid"])
    np.testing.assert_allclose(np.ravel(entry["values"]), values, atol=1.01e-4 * np.abs(values).max())


@pytest.mark.parametrize("name", WITH_RELEVANCE)
def test_a_map_is_that_of_float64_autograd_for_each_class_asked_for(
    service: TestClient, models: Path, name: str
) -> None:
    """By label, by number, by rank; the entries stand in the order of maps, then of classes, as they were asked."""
    bundle = open_bundle(models / name / "1")
    labels = bundle.manifest.labels
    full = ask(service, model=name, top_k=10)
    order = [one["index"] for one in full["labels"]]
    for classes, top_k, chosen in ((f"8,{labels[2]}", 5, [8, 2]), ("top1", 5, order[:1]), ("topk", 3, order[:3])):
        answer = ask(service, model=name, maps="grad_attention,relevance", classes=classes, top_k=top_k, decimals=9)
        assert [one["index"] for one in answer["labels"]] == order[:top_k]
        asked = [(map_, label) for map_ in ("grad_attention", "relevance") for label in chosen]
        assert [(entry["name"], entry["class_index"]) for entry in answer["maps"]] == asked
        for entry in answer["maps"]:
            assert set(entry) == {"name", "class_index", "grid", "values"}
            same_map(entry, expected(bundle, PNG, entry["class_index"])[entry["name"]])
        Answer.model_validate(answer, strict=False)


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_grad_cam_is_the_positive_part_of_the_exact_class_map(service: TestClient, models: Path, name: str) -> None:
    """Where the head stands behind a mean: of the same answer, up to a scale, beside each other."""
    answer = ask(service, model=name, maps="class,grad_cam", classes="3,7", decimals=9)
    exact, seen = answer["maps"][:2], answer["maps"][2:]
    assert [entry["name"] for entry in answer["maps"]] == ["class", "class", "grad_cam", "grad_cam"]
    for one, other in zip(exact, seen, strict=True):
        assert one["class_index"] == other["class_index"]
        positive = np.maximum(np.array(one["values"]), 0)
        np.testing.assert_allclose(np.array(other["values"]), positive, atol=1e-4 * np.abs(one["values"]).max())


@pytest.mark.parametrize("name", WITH_RELEVANCE)
def test_one_run_answers_labels_other_maps_attention_and_relevance(service: TestClient, name: str) -> None:
    """What stands beside relevance in an answer is what it is without."""
    other = "class" if name in CLASS_MAP_ONLY else "rollout"
    asked = {"model": name, "attention": "last", "decimals": 6}
    with_, without = ask(service, **asked, maps=f"{other},relevance"), ask(service, **asked, maps=other)
    for one, other_one in zip(with_["labels"], without["labels"], strict=True):
        assert one["index"] == other_one["index"]
        assert one["score"] == pytest.approx(other_one["score"], abs=1e-5)
    for part in ("maps", "attention"):
        key = "values" if part == "maps" else "weights"
        np.testing.assert_allclose(with_[part][0][key], without[part][0][key], atol=3e-6)


@pytest.mark.parametrize("decimals", [0, 2, 6])
def test_decimals_count_from_the_largest_value_of_a_map_of_the_gradient(service: TestClient, decimals: int) -> None:
    """Its scale is the model's own: of values of millionths, digits after the point would leave nothing."""
    (exact,) = ask(service, model="tiny-vit-mean", maps="grad_attention", decimals=9)["maps"]
    (seen,) = ask(service, model="tiny-vit-mean", maps="grad_attention", decimals=decimals)["maps"]
    largest = np.max(exact["values"])
    scale = 10.0 ** -np.floor(np.log10(largest) + 1) if largest < 0.1 else 1.0
    difference = np.abs(np.array(seen["values"]) - np.array(exact["values"])) * scale
    assert difference.max() <= 0.5 * 10.0**-decimals + 1e-7


def test_alone_is_as_in_a_batch_and_each_gets_the_classes_that_he_asked_for(
    models: Path, tmp_path: Path, serve: Start
) -> None:
    """Three pictures with two classes each, other ones each, in one run: what each gets by himself."""
    asked = [(png(seed), classes) for seed, classes in enumerate(("1,2", "9,0", "4,cat"))]
    labels = list(open_bundle(models / "tiny-cct" / "1").manifest.labels)
    labels[3] = "cat"
    copy_bundle(models, "tiny-cct", tmp_path, labels=labels)
    by_himself = serve(models=tmp_path)
    alone = [ask(by_himself, body, maps="relevance", classes=classes) for body, classes in asked]
    client = serve(models=tmp_path, instances=1, max_batch=6, max_wait_ms=10_000)
    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(ask, client, body, maps="relevance", classes=one) for body, one in asked]
        together = [one.result() for one in running]
    for one, other in zip(alone, together, strict=True):
        assert other["timing"]["batch_size"] == 3
        for left, right in zip(one["maps"], other["maps"], strict=True):
            assert left["class_index"] == right["class_index"]
            np.testing.assert_allclose(left["values"], right["values"], atol=1e-4 * np.abs(left["values"]).max())
    assert [[entry["class_index"] for entry in one["maps"]] for one in together] == [[1, 2], [9, 0], [4, 3]]


def test_metrics_tell_runs_with_maps_of_the_gradient_apart(serve: Start) -> None:
    """They take longer, and an operator asks how much longer."""
    client = serve()
    for maps in ("none", "relevance", "relevance", "rollout"):
        ask(client, maps=maps)
    text = client.get("/metrics").text
    for graph in ("model", "relevance"):
        assert f'saccade_run_seconds_count{{graph="{graph}",model="tiny-cct@1"}} 2.0' in text
        assert f'saccade_batch_images_sum{{graph="{graph}",model="tiny-cct@1"}} 2.0' in text


# --- what is refused


def refusal(client: Any, status: int, code: str, body: bytes = PNG, /, **query: Any) -> str:
    response = client.post("/v1/classify", params=query, content=body)
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    sentence: str = response.json()["error"]
    return sentence


def test_more_classes_than_max_classes_are_refused_with_bound_and_number(serve: Start) -> None:
    """Each costs a backward pass. The class map costs nothing, and is not bounded by it; who repeats asks for one."""
    client = serve(max_classes=3)
    for seen, query in (
        (4, {"classes": "0,1,2,3"}),
        (4, {"classes": "topk", "top_k": 4}),
        (10, {"classes": "topk", "top_k": 100_000}),
        (10, {"classes": "9,8,7,6,5,4,3,2,1,0,1"}),
    ):
        words = f"classes: {seen} are asked for; the limit is 3 for the map 'relevance'"
        assert refusal(client, 422, "too_many_classes", maps="class,relevance", **query) == words
        assert len(ask(client, maps="class", **query)["maps"]) == seen
    assert len(ask(client, maps="relevance", classes="0,1,0,2")["maps"]) == 3


@pytest.mark.parametrize(
    ("query", "status", "code", "words"),
    [
        ({"model": "tiny-cct", "maps": "grad_cam"}, 422, "unsupported_map", "'grad_cam': it is for models without att"),
        ({"model": "tiny-resnet", "maps": "relevance"}, 422, "unsupported_map", "attention"),
        ({"model": "tiny-cct", "maps": "relevance", "classes": "10"}, 400, "invalid_parameter", "outside of 0 to 9"),
        ({"model": "tiny-cct", "maps": "relevance", "classes": "-1"}, 400, "invalid_parameter", "no label '-1'"),
        ({"model": "tiny-cct", "maps": "relevance", "classes": "zebra"}, 400, "invalid_parameter", "no label 'zebra'"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    service: TestClient, query: dict[str, str], status: int, code: str, words: str
) -> None:
    """Before anything runs."""
    assert words in refusal(service, status, code, **query)


def listed(client: TestClient) -> list[str]:
    """The maps of the one model, of which both routes say the same."""
    (model,) = client.get("/v1/models").json()["models"]
    maps: list[str] = model["maps"]
    assert client.get(f"/v1/models/{model['name']}").json()["maps"] == maps
    return maps


@pytest.fixture
def plain(models: Path, tmp_path: Path) -> Path:
    """A folder with one model made without relevance.onnx."""
    bundle = copy_bundle(models, "tiny-cct", tmp_path)
    maps = {**bundle.manifest.maps.model_dump(), "gradients": None}
    files = {name: entry for name, entry in bundle.manifest.files.items() if name != RELEVANCE}
    bare = Bundle(bundle.folder, bundle.manifest.model_copy(update={"files": files}))
    (bundle.folder / "manifest.json").write_text(bare.manifest.model_dump_json())
    bundle.relevance.unlink()
    update_bundle(bare, {"maps": maps})
    return tmp_path


def test_a_bundle_without_relevance_says_how_to_get_it(serve: Start, plain: Path) -> None:
    """It answers all else; the sentence names the command."""
    client = serve(models=plain, relevance="start")
    words = refusal(client, 422, "unsupported_map", maps="relevance")
    assert "no map 'relevance': it was made without relevance.onnx (`saccade relevance tiny-cct` adds it)" in words
    assert ask(client)["labels"]
    assert listed(client) == ["pooling", "rollout", "class"]


# --- when it is opened


def times_opened(caplog: pytest.LogCaptureFixture) -> int:
    return sum(OPENED in record.message for record in caplog.records)


def test_at_first_use_it_is_opened_once_however_many_ask(serve: Start, caplog: pytest.LogCaptureFixture) -> None:
    """And not before: who asks for labels has none of it."""
    caplog.set_level(logging.INFO)
    client = serve()
    ask(client)
    assert times_opened(caplog) == 0
    with ThreadPoolExecutor(8) as threads:
        answers = [one.result() for one in [threads.submit(ask, client, maps="relevance") for _ in range(8)]]
    assert times_opened(caplog) == 1
    assert all(answer["maps"][0]["values"] == answers[0]["maps"][0]["values"] for answer in answers)


def test_it_may_be_opened_at_the_start(serve: Start, caplog: pytest.LogCaptureFixture) -> None:
    """The first who asks waits no longer than the others."""
    caplog.set_level(logging.INFO)
    client = serve(relevance="start")
    assert times_opened(caplog) == len(NETS)
    ask(client, maps="relevance")
    assert times_opened(caplog) == len(NETS)


def test_it_may_be_off(serve: Start) -> None:
    """Refused with the name of the setting, and not listed."""
    client = serve(relevance="off")
    words = "tiny-cct@1 has no map 'relevance': SACCADE_RELEVANCE is off; it has pooling, rollout, class"
    assert refusal(client, 422, "unsupported_map", maps="rollout,relevance") == words
    other = refusal(client, 422, "unsupported_map", maps="grad_cam")  # which it could not have with it either
    assert other.startswith("tiny-cct@1 has no map 'grad_cam': it is for models without att")
    assert other.endswith("; it has pooling, rollout, class")
    for one in client.get("/v1/models").json()["models"]:
        assert not {"relevance", "grad_attention", "legrad", "grad_cam"} & set(one["maps"])
        assert client.get(f"/v1/models/{one['name']}").json()["maps"] == one["maps"]


def test_models_list_the_maps_of_the_gradient(service: TestClient) -> None:
    """The list, and each model's own page."""
    listed = {one["name"]: one["maps"] for one in service.get("/v1/models").json()["models"]}
    for name, maps in listed.items():
        assert ("relevance" in maps) == (name in WITH_RELEVANCE)
        assert ("grad_cam" in maps) == (name in WITHOUT_ATTENTION)
        assert service.get(f"/v1/models/{name}").json()["maps"] == maps


def no_graph(bundle: Bundle) -> str:
    update_bundle(bundle, {}, {RELEVANCE: b"this is no graph"})
    return r"ONNX Runtime does not load .*relevance\.onnx"


def labels_only(bundle: Bundle) -> str:
    update_bundle(bundle, {}, {RELEVANCE: bundle.graph.read_bytes()})
    return r"the graph takes pixel_values .*; the manifest says .*class_index tensor\(int64\) \[batch, k\]"


def other_maps(bundle: Bundle) -> str:
    maps = bundle.manifest.maps.model_dump()
    update_bundle(
        bundle,
        {"maps": {**maps, "gradients": {**maps["gradients"], "names": [*maps["gradients"]["names"], "grad_cam"]}}},
    )
    return r"the graph has no output grad_cam; it has logits"


def other_grid(bundle: Bundle) -> str:
    maps = bundle.manifest.maps.model_dump()
    update_bundle(bundle, {"maps": {**maps, "gradients": {**maps["gradients"], "grid": (4, 8)}}})
    return r"output relevance is \['k', 64\]; the manifest says \[None, 32\]"


def other_golden(bundle: Bundle) -> str:
    with np.load(bundle.golden) as file:
        arrays = dict(file)
    arrays["relevance"] = arrays["relevance"] + np.float32(0.5)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    update_bundle(bundle, {}, {GOLDEN: buffer.getvalue()})
    return r"tiny-cct@1 on CPUExecutionProvider: output relevance of relevance.onnx is 0\.5 away from its golden values"


@pytest.mark.parametrize("damage", [no_graph, labels_only, other_maps, other_grid, other_golden])
def test_what_cannot_be_opened_is_said_to_who_asks_and_costs_nobody_else_anything(
    serve: Start, models: Path, tmp_path: Path, damage: Callable[[Bundle], str], caplog: pytest.LogCaptureFixture
) -> None:
    """500 each time, with the reason in the log, once: it is not tried again, nor listed. At the start it stops
    the start.
    """
    bundle = copy_bundle(models, "tiny-cct", tmp_path)
    reason = damage(bundle)
    client = serve(models=tmp_path)
    assert "relevance" in listed(client)
    for _ in range(2):
        words = refusal(client, 500, "relevance_failed", maps="relevance")
        assert words == "relevance.onnx of tiny-cct@1 could not be opened: the service's log says why"
        assert ask(client)["labels"]
        assert listed(client) == ["pooling", "rollout", "class"]
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.message.startswith("tiny-cct@1 answers no maps of the gradient: ")
    with pytest.raises(BundleError, match=reason) as caught:
        serve(models=tmp_path, relevance="start")
    assert str(caught.value) in record.message


@pytest.mark.parametrize("maps", ["grad_cam", "grad_cam,relevance", "relevance,grad_cam"])
def test_what_could_not_be_opened_is_not_named_to_who_asks_for_another_map(
    serve: Start, models: Path, tmp_path: Path, maps: str
) -> None:
    """A refusal lists what can be asked for instead: the maps of the gradient until then, and not from then on."""
    no_graph(copy_bundle(models, "tiny-cct", tmp_path))
    client = serve(models=tmp_path)
    before = refusal(client, 422, "unsupported_map", maps=maps)
    assert before.startswith("tiny-cct@1 has no map 'grad_cam': it is for models without att")
    assert before.endswith("; it has pooling, rollout, class, relevance, grad_attention, legrad")
    refusal(client, 500, "relevance_failed", maps="relevance")
    assert refusal(client, 422, "unsupported_map", maps=maps) == before.removesuffix(
        ", relevance, grad_attention, legrad"
    )


def test_a_limit_of_memory_is_kept(models: Path) -> None:
    """The sentence names the model, the limit, the need and the setting that does without."""
    bundle = open_bundle(models / "tiny-cct" / "1")
    settings = Settings(models=models)
    plan = make_plan(settings, find_cpus(), CPU[0], memory_limit=60 * 2**20)
    gradients = bundle.manifest.maps.gradients
    assert gradients is not None
    relevance = Relevance(bundle, gradients, CPU, plan, load_head(bundle))
    with pytest.raises(
        SettingsError,
        match=r"^the memory limit is 60 MiB, and with relevance.onnx of tiny-cct@1 the service takes \d+ MiB at least: "
        r"raise the limit, or set SACCADE_RELEVANCE=off$",
    ):
        relevance.open()


def test_a_limit_of_memory_is_held_to_what_attention_takes(models: Path) -> None:
    """Of 4096 tokens it is most of all: 4 bytes a weight and as many of its gradient, of each image of a batch."""
    bundle = open_bundle(models / "tiny-cct" / "1")
    layers = tuple(layer.model_copy(update={"grid": (64, 64), "heads": 3}) for layer in bundle.manifest.attention)
    large = Bundle(bundle.folder, bundle.manifest.model_copy(update={"attention": layers}))
    least = (4 + 4) * 3 * (64 * 64) ** 2 * len(layers) * 8 // 2**20
    plan = make_plan(Settings(models=models, max_batch=8), find_cpus(), CPU[0], memory_limit=least * 2**20)
    assert large.manifest.maps.gradients is not None
    relevance = Relevance(large, large.manifest.maps.gradients, CPU, plan, load_head(large))
    with pytest.raises(SettingsError, match=r"the service takes \d+ MiB at least: raise the limit") as caught:
        relevance.open()
    assert least < int(str(caught.value).split(" takes ")[1].split(" MiB")[0]) < least + 2000


# --- runs that hang


@pytest.fixture
def nothing_stays() -> Iterator[None]:
    """Every thread that a test started ends with it."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


def test_while_it_is_opened_labels_are_answered_and_who_waits_has_a_deadline(
    nothing_stays: None, serve: Start, models: Path, tmp_path: Path
) -> None:
    """Here it never opens: its golden run goes on for ever, and ends with the service."""
    hanging_bundle(models, tmp_path, RELEVANCE, always=True)
    client = serve(models=tmp_path, default_model=None)
    for _ in range(2):
        words = refusal(client, 504, "deadline_exceeded", maps="grad_cam", timeout_ms=200)
        assert words == "no answer within the deadline of 200 ms"
        assert ask(client)["labels"]
    assert 'saccade_dropped_images_total{model="tiny-resnet@1",reason="late"} 2.0' in client.get("/metrics").text


def test_closing_while_it_is_opened_is_no_error(
    nothing_stays: None, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The golden run, which would go on for ever here, is ended; the log calls nothing a fault."""
    caplog.set_level(logging.INFO)
    bundle = hanging_bundle(models, tmp_path, RELEVANCE, always=True)
    gradients = bundle.manifest.maps.gradients
    assert gradients is not None
    plan = make_plan(Settings(models=tmp_path), find_cpus(), CPU[0])
    relevance = Relevance(bundle, gradients, CPU, plan, load_head(bundle))

    async def scene() -> None:
        opening = asyncio.create_task(relevance.opened())
        await asyncio.sleep(0)
        relevance.close()
        with pytest.raises(RelevanceFailed):
            await opening

    asyncio.run(scene())
    (record,) = [record for record in caplog.records if record.name == "saccade.relevance"]
    assert record.levelname == "INFO"


def test_a_run_that_hangs_is_ended_and_the_labels_session_goes_on(models: Path, tmp_path: Path) -> None:
    """Its caller gets 500; no session is opened anew, since only the run was at fault."""
    hanging_bundle(models, tmp_path, RELEVANCE)
    with Server(models=tmp_path, port=0, drain_grace_s=0, run_timeout_s=1, instances=1) as server:

        def post(body: bytes, **query: str) -> httpx.Response:
            return httpx.post(f"{server.url}/v1/classify", content=body, params=query, timeout=60)

        assert post(BLACK).status_code == 200
        assert post(PNG, maps="grad_cam").status_code == 200
        hung = post(BLACK, maps="grad_cam")
        assert (hung.status_code, hung.json()["code"]) == (500, "inference_failed")
        assert "a run of 1 took longer than 1 s" in hung.json()["error"]
        assert post(PNG, maps="grad_cam").status_code == 200
        assert post(BLACK).status_code == 200
        assert server.stop() == 0

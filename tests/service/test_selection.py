"""What a request asks, resolved; and the bounds on its size, held against real answers."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from saccade.api import ClassifyOptions
from saccade.bundle import open_bundle
from saccade.errors import InvalidParameter, RequestError, ResponseTooLarge
from service.selection import _LEAST_BYTES, _most_bytes, _numbers, select, too_large
from tests.service.reference import NAMES, PNG, WITH_ATTENTION

UNBOUNDED = 2**40


def combinations(name: str) -> list[dict[str, Any]]:
    """Many ways to ask a model, the largest among them."""
    attention = [{}] if name not in WITH_ATTENTION else [
        {"attention": layers, "heads": heads, "rows": rows}
        for layers, heads, rows in itertools.product(("last", "all"), ("mean", "all", "1,0"), ("all", "pool", "0,3"))
    ]  # fmt: skip
    maps = {
        "tiny-cct": ["none", "pooling,rollout,class"], "tiny-vit": ["none", "rollout,relevance"],
        "tiny-vit-mean": ["class,grad_attention", "rollout"], "tiny-resnet": ["none", "class,grad_cam"],
    }[name]  # fmt: skip
    return [
        {**one, "maps": map_, "classes": classes, "decimals": decimals, "top_k": top_k}
        for one, map_, (classes, top_k), decimals in itertools.product(
            attention, maps, (("top1", 1), ("topk", 10), ("3,4", 5)), (0, 6, 9)
        )
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_real_answer_lies_between_the_two_bounds_on_its_size(service: TestClient, models: Path, name: str) -> None:
    """So a suggested request really fits, and no request is refused early that would have fitted."""
    manifest = open_bundle(models / name / "1").manifest
    for query in combinations(name):
        options = ClassifyOptions.from_query([(key, str(value)) for key, value in query.items()])
        selection = select(manifest, options, UNBOUNDED)
        response = service.post("/v1/classify", params={"model": name, **query}, content=PNG)
        assert response.status_code == 200, response.text
        least = _numbers(manifest, selection) * _LEAST_BYTES
        assert least <= len(response.content) <= _most_bytes(manifest, selection), query


@pytest.mark.parametrize("name", NAMES)
def test_the_arrays_hold_as_many_numbers_as_was_counted_before(service: TestClient, models: Path, name: str) -> None:
    """The early refusal counts exactly."""
    manifest = open_bundle(models / name / "1").manifest
    for query in combinations(name):
        options = ClassifyOptions.from_query([(key, str(value)) for key, value in query.items()])
        answer = service.post("/v1/classify", params={"model": name, **query}, content=PNG).json()
        count = sum(len(row) for entry in answer["maps"] for row in entry["values"])
        count += sum(len(row) for entry in answer["attention"] or () for head in entry["weights"] for row in head)
        assert count == _numbers(manifest, select(manifest, options, UNBOUNDED)), query


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", [2500, 5000, 20_000, 100_000])
def test_every_suggestion_is_a_request_for_this_model_and_within_the_limit(models: Path, name: str, limit: int) -> None:
    """Whatever was asked, what is named instead can be asked of the same model."""
    manifest = open_bundle(models / name / "1").manifest
    for query in combinations(name):
        options = ClassifyOptions.from_query([(key, str(value)) for key, value in query.items()])
        sentence = str(too_large(manifest, options, limit, "12345"))
        assert f"12345 bytes; the limit is {limit}; with " in sentence
        asked = sentence.split("with ")[1].split(" ", maxsplit=1)[0]
        changed = {**query, **dict(pair.split("=") for pair in asked.split("&"))}
        smaller = ClassifyOptions.from_query([(key, str(value)) for key, value in changed.items()])
        assert smaller != options
        assert _most_bytes(manifest, select(manifest, smaller, limit)) <= limit


def test_a_suggestion_skips_what_another_layer_cannot_give(models: Path) -> None:
    """Head 3 exists in the first layer only: attention=last with it is no request to suggest."""
    manifest = open_bundle(models / "tiny-cct" / "1").manifest
    first, last = manifest.attention
    wider = first.model_copy(update={"heads": 4})
    uneven = manifest.model_copy(update={"attention": (wider, last)})
    options = ClassifyOptions(attention="0", heads="3,2")
    assert isinstance(too_large(uneven, options, 2500, "1"), ResponseTooLarge)


@pytest.mark.parametrize(
    ("query", "outputs"),
    [
        ({"maps": "none"}, ("logits",)),
        ({"maps": "rollout"}, ("logits", "rollout")),
        ({"maps": "pooling"}, ("logits", "pooling")),
        ({"maps": "class"}, ("logits", "class_tokens")),
        ({"maps": "none", "attention": "last"}, ("logits", "attention_01")),
        ({"maps": "none", "attention": "all", "rows": "pool"}, ("logits", "attention_00", "attention_01", "pooling")),
        ({"maps": "none", "attention": "0", "rows": "3"}, ("logits", "attention_00")),
    ],
)
def test_only_the_outputs_that_the_answer_needs_are_fetched(
    models: Path, query: dict[str, str], outputs: tuple[str, ...]
) -> None:
    """Labels alone cost labels alone."""
    manifest = open_bundle(models / "tiny-cct" / "1").manifest
    assert select(manifest, ClassifyOptions(**query), UNBOUNDED).outputs == outputs


@pytest.mark.parametrize(
    ("query", "class_index"),
    [
        ({"maps": "relevance"}, (-1,)),
        ({"maps": "class,grad_attention", "classes": "topk", "top_k": "3"}, (-1, -2, -3)),
        ({"maps": "relevance", "classes": "topk", "top_k": "100"}, tuple(range(-1, -11, -1))),
        ({"maps": "relevance,class", "classes": "7,0,7"}, (7, 0)),
        ({"maps": "class", "classes": "7,0"}, ()),
        ({"maps": "rollout"}, ()),
        ({}, ()),
    ],
)
def test_classes_are_asked_of_the_graph_where_a_map_of_the_gradient_is(
    models: Path, query: dict[str, str], class_index: tuple[int, ...]
) -> None:
    """By rank where they are only known once the graph has run; none where labels and other maps are all."""
    manifest = open_bundle(models / "tiny-cct" / "1").manifest
    selection = select(manifest, ClassifyOptions.from_query(query.items()), UNBOUNDED)
    assert selection.class_index == class_index
    assert {"relevance", "grad_attention"} & {*selection.outputs} == {*query.get("maps", "").split(",")} - {
        "class", "rollout", "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("top1,cat",), "classes: top1 stands alone, without other classes"),
        (("topk,topk",), "classes: topk stands alone, without other classes"),
        (("cat", "topk"), "classes: topk stands alone, without other classes"),
        (("cat,,dog",), "classes: one is missing in 'cat,,dog'; one comma stands between two classes"),
        ((",",), "classes: one is missing in ','; one comma stands between two classes"),
        (("cat, ",), "classes: one is missing in 'cat, '; one comma stands between two classes"),
    ],
)
def test_what_is_wrong_in_a_list_of_classes_is_said(models: Path, classes: tuple[str, ...], words: str) -> None:
    """And not that no label has such a name."""
    manifest = open_bundle(models / "tiny-cct" / "1").manifest
    animals = manifest.model_copy(update={"labels": ("cat", "dog", *manifest.labels[2:])})
    with pytest.raises(InvalidParameter, match=f"^{re.escape(words)}$"):
        select(animals, ClassifyOptions(maps="relevance", classes=classes), UNBOUNDED)


@pytest.mark.parametrize(
    ("classes", "class_index"),
    [((" cat ",), (0,)), ((" cat , dog",), (1, 2)), ((" cat",), (1,)), ((" cat ", "cat", "a, b "), (0, 1, 3))],
)
def test_a_label_with_blanks_at_its_ends_is_found_by_its_name(
    models: Path, classes: tuple[str, ...], class_index: tuple[int, ...]
) -> None:
    """Blanks beside a comma between classes are no part of a name."""
    manifest = open_bundle(models / "tiny-cct" / "1").manifest
    animals = manifest.model_copy(update={"labels": (" cat ", "cat", "dog", "a, b ", *manifest.labels[4:])})
    options = ClassifyOptions(maps="relevance", classes=classes)
    assert select(animals, options, UNBOUNDED).class_index == class_index


def test_the_same_layer_head_or_row_given_twice_comes_once(models: Path) -> None:
    """Repeats cannot be used to get round a limit."""
    manifest = open_bundle(models / "tiny-cct" / "1").manifest
    options = ClassifyOptions(attention="1,1,0", heads="0,0", rows="5,5,5")
    layers = select(manifest, options, UNBOUNDED).attention
    assert layers is not None
    assert [layer.number for layer in layers] == [1, 0]
    assert {layer.shape for layer in layers} == {(1, 1, 64)}


def test_pool_is_refused_for_a_layer_whose_tokens_are_not_those_pooled(models: Path) -> None:
    """The pooled row weighs the last layer's tokens: over others it would mean nothing."""
    manifest = open_bundle(models / "tiny-cct" / "1").manifest
    first, last = manifest.attention
    uneven = manifest.model_copy(update={"attention": (first.model_copy(update={"grid": (4, 4)}), last)})
    with pytest.raises(RequestError, match=r"layer 0 has 4 x 4 \+ 0 tokens; .* the last layer, 8 x 8 \+ 0 tokens"):
        select(uneven, ClassifyOptions(attention="all", rows="pool"), UNBOUNDED)

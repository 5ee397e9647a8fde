"""The query of a request: what it may say, and the sentence for everything else."""

from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from pydantic import ValidationError

from saccade.api import Answer, ClassifyOptions, Error, indices
from saccade.errors import InvalidParameter

ANSWER: dict[str, Any] = {
    "request_id": "x",
    "model": {"name": "made", "version": 1},
    "labels": [{"label": "cat", "index": 0, "score": 0.5}],
    "maps": [{"name": "rollout", "class_index": None, "grid": [1, 2], "values": [[0.5, 0.5]]}],
    "attention": None,
    "geometry": {
        "image": {"width": 2, "height": 1},
        "region": {"left": 0.0, "top": 0.0, "width": 2.0, "height": 1.0},
    },
    "timing": {"decode_ms": 1, "queue_ms": 1, "run_ms": 1, "total_ms": 1, "batch_size": 1},
}


def test_an_empty_query_means_the_documented_defaults() -> None:
    """As the table of the API says."""
    assert ClassifyOptions.from_query([]).model_dump() == {
        "model": None,
        "top_k": 5,
        "min_score": 0.0,
        "maps": None,
        "classes": ("top1",),
        "attention": "none",
        "heads": "mean",
        "rows": "all",
        "windows": "all",
        "decimals": 6,
        "timeout_ms": None,
    }
    assert ClassifyOptions().to_query() == []


@pytest.mark.parametrize(
    "query",
    [
        "",
        "model=cifar10-cct%401&top_k=1",
        "min_score=0.25&maps=none",
        "maps=pooling,rollout,class&classes=topk",
        "classes=tench%2C+Tinca+tinca&classes=3",
        "attention=last&heads=all&rows=pool",
        "attention=0,2&heads=1,0&rows=0,16,3",
        "attention=last&windows=0,3",
        "decimals=0&timeout_ms=3600000&top_k=100000&min_score=1.0",
        "decimals=9&timeout_ms=1&attention=all",
    ],
)
def test_a_query_survives_its_way_through_the_client(query: str) -> None:
    """What was asked is what is sent, through the encoding of URLs, defaults left out."""
    asked = ClassifyOptions.from_query(parse_qsl(query))
    again = parse_qsl(urlencode(asked.to_query()))
    assert ClassifyOptions.from_query(again) == asked
    assert urlencode(sorted(again)) == urlencode(sorted(parse_qsl(query)))


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("top_k=0", "top_k must be at least 1, not '0'"),
        ("top_k=-3", "top_k must be at least 1, not '-3'"),
        ("top_k=100001", "top_k must be at most 100000, not '100001'"),
        ("top_k=x", "top_k must be a whole number, not 'x'"),
        ("top_k=1.5", "top_k must be a whole number, not '1.5'"),
        ("top_k=", "top_k must be a whole number, not ''"),
        ("top_k=nan", "top_k must be a whole number, not 'nan'"),
        ("min_score=2", "min_score must be at most 1.0, not '2'"),
        ("min_score=-0.1", "min_score must be at least 0.0, not '-0.1'"),
        ("min_score=nan", "min_score must be a number, not 'nan'"),
        ("min_score=inf", "min_score must be a number, not 'inf'"),
        ("min_score=high", "min_score must be a number, not 'high'"),
        (
            "maps=foo",
            "maps must be none, or of pooling, rollout, class, relevance, grad_attention, legrad, grad_cam, "
            "with commas, not 'foo'",
        ),
        (
            "maps=",
            "maps must be none, or of pooling, rollout, class, relevance, grad_attention, legrad, grad_cam, "
            "with commas, not ''",
        ),
        (
            "maps=none,class",
            "maps must be none, or of pooling, rollout, class, relevance, grad_attention, legrad, grad_cam, "
            "with commas, not 'none,class'",
        ),
        (
            "maps=class,",
            "maps must be none, or of pooling, rollout, class, relevance, grad_attention, legrad, grad_cam, "
            "with commas, not 'class,'",
        ),
        ("attention=-1", "attention must be none, last, all, or layer indices with commas, not '-1'"),
        ("attention=first", "attention must be none, last, all, or layer indices with commas, not 'first'"),
        ("attention=1,,2", "attention must be none, last, all, or layer indices with commas, not '1,,2'"),
        ("attention=1%0A", "attention must be none, last, all, or layer indices with commas, not '1\\n'"),
        ("heads=", "heads must be mean, all, or head indices with commas, not ''"),
        ("heads=1.0", "heads must be mean, all, or head indices with commas, not '1.0'"),
        ("rows=a", "rows must be all, pool, or token indices with commas, not 'a'"),
        ("rows=9999999999", "rows must be all, pool, or token indices with commas, not '9999999999'"),
        ("decimals=12", "decimals must be at most 9, not '12'"),
        ("decimals=-1", "decimals must be at least 0, not '-1'"),
        ("timeout_ms=0", "timeout_ms must be at least 1, not '0'"),
        ("timeout_ms=3600001", "timeout_ms must be at most 3600000, not '3600001'"),
        ("top_k=3&top_k=4", "parameter top_k is given twice: '3' and '4'"),
        ("model=a&model=a", "parameter model is given twice: 'a' and 'a'"),
    ],
)
def test_a_wrong_value_is_named_with_its_bound(query: str, sentence: str) -> None:
    """The parameter, the limit and the value seen."""
    with pytest.raises(InvalidParameter) as refusal:
        ClassifyOptions.from_query(parse_qsl(query, keep_blank_values=True))
    assert str(refusal.value) == sentence


def test_a_misspelt_parameter_is_told_which_there_are() -> None:
    """topk=3 is not silently top_k=5."""
    with pytest.raises(InvalidParameter, match=r"unknown parameter 'topk'; there are model, top_k, min_score, maps,"):
        ClassifyOptions.from_query([("topk", "3")])


@pytest.mark.parametrize(
    ("given", "means"), [("cat", ("cat",)), (3, ("3",)), ((3, "dog"), ("3", "dog")), ([4], ("4",))]
)
def test_classes_are_taken_as_python_has_them(given: object, means: tuple[str, ...]) -> None:
    """One alone, and indices as the numbers that an answer's labels have."""
    assert ClassifyOptions.checked({"classes": given}).classes == means


@pytest.mark.parametrize("given", [(), None, (True,), (1.5,)])
def test_what_is_no_class_is_refused_in_our_own_words(given: object) -> None:
    with pytest.raises(InvalidParameter, match=r"^classes must be top1, topk, or indices or labels of at most 1000"):
        ClassifyOptions.checked({"classes": given})


@pytest.mark.parametrize("classes", [[""], ["x" * 1001], ["cat"] * 1001])
def test_classes_are_bounded(classes: list[str]) -> None:
    with pytest.raises(InvalidParameter, match="classes") as refusal:
        ClassifyOptions.from_query([("classes", name) for name in classes])
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("value", ["9" * 30, "9" * 6000])
def test_a_number_of_any_length_is_only_too_large(value: str) -> None:
    """No limit of the language leaks out, and the sentence does not repeat six thousand digits."""
    with pytest.raises(InvalidParameter, match="top_k") as refusal:
        ClassifyOptions.from_query([("top_k", value)])
    assert len(str(refusal.value)) < 300


def test_options_given_by_name_are_held_to_the_same_bounds() -> None:
    """The client refuses before it sends."""
    assert ClassifyOptions.checked({"top_k": 3}) == ClassifyOptions(top_k=3)
    with pytest.raises(InvalidParameter, match="top_k must be at least 1, not 0"):
        ClassifyOptions.checked({"top_k": 0})
    with pytest.raises(InvalidParameter, match="unknown parameter 'topk'"):
        ClassifyOptions.checked({"topk": 1})


def test_options_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ClassifyOptions().top_k = 3  # type: ignore[misc]


@pytest.mark.parametrize(("text", "expected"), [("0", (0,)), ("0,2", (0, 2)), ("7,3,3", (7, 3, 3))])
def test_indices_are_read(text: str, expected: tuple[int, ...]) -> None:
    assert indices(text) == expected


def test_a_client_reads_the_answers_of_a_later_service() -> None:
    """New keys are kept, old ones mean what they meant."""
    later = {**ANSWER, "warnings": ["new"], "timing": {**ANSWER["timing"], "upload_ms": 3}}
    answer = Answer.model_validate(later)
    assert answer.labels[0].label == "cat"
    assert answer.model_dump()["warnings"] == ["new"]


@pytest.mark.parametrize("key", ["labels", "model", "geometry", "timing", "maps", "attention"])
def test_an_answer_that_lacks_a_promised_key_is_none(key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        Answer.model_validate({name: value for name, value in ANSWER.items() if name != key})


def test_an_error_has_three_keys() -> None:
    assert list(Error.model_fields) == ["error", "code", "request_id"]

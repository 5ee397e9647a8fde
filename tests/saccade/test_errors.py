"""What pydantic finds wrong becomes part of a sentence."""

from typing import Any

import pytest
from pydantic import ValidationError

from saccade.errors import first_problem
from saccade.manifest import Preprocessing

SQUARE = {"height": 32, "width": 32, "fit": "stretch", "mean": (0.5,) * 3, "std": (0.5,) * 3}


def problem(model: type[Any], fields: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as refusal:
        model.model_validate(fields)
    return first_problem(refusal.value)


def test_a_field_has_its_place_and_its_value() -> None:
    said = problem(Preprocessing, {**SQUARE, "mean": (0.5, "wide", 0.5)})
    assert said.startswith("mean.1: Input should be a valid number")
    assert said.endswith("; the value is 'wide'")


def test_fields_that_do_not_fit_each_other_are_said_without_all_the_others() -> None:
    """No empty place, no words of pydantic's, no dictionary."""
    assert problem(Preprocessing, {**SQUARE, "std": (0.0, 1.0, 1.0)}) == "std must be positive, not (0.0, 1.0, 1.0)"

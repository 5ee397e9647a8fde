"""docs/explanations.md: what is measured again is what stands there, and all of it is within what is allowed."""

import re

import pytest

from saccade.bundle import Bundle
from tests.conftest import ROOT
from tests.export import explanations
from tests.export.explain import family_rows, more_families, proofs, shipped_rows, timm_families

PAGE = (ROOT / "docs/explanations.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"\d(?:\.\d+)?e[+-]\d+")


def rows(head: str) -> dict[str, list[str]]:
    """Of the table with that head, by the first cell."""
    (table,) = re.findall(rf"^{re.escape(head)}\n[|-]+\n((?:\|.*\n)+)", PAGE, flags=re.M)
    return {row[0]: row for row in map(cells, table.splitlines())}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


FAMILIES, TIMM = rows(explanations.FAMILIES_HEAD), rows(explanations.TIMM_HEAD)


def holds(cell: str, limit: float) -> bool:
    """Whether errors that are said, each with that of float32 autograd behind it, are within what is allowed."""
    found = [float(number) for number in NUMBER.findall(cell)]
    pairs = zip(found[::2], found[1::2], strict=True)
    # the page rounds to one digit
    return all(ours <= 1.5 * max(limit, proofs.TIMES * autograd) for ours, autograd in pairs)


def test_the_page_is_as_it_is_written() -> None:
    """Its words and its costs are the generator's, and every family has a row or a reason."""
    shown = PAGE.splitlines()
    for line in explanations.page([], [], []).splitlines():
        assert line in shown
    reasons = " ".join(line for line in PAGE.splitlines() if line.startswith("- "))
    for names, measured in ((more_families.NAMES, FAMILIES), (timm_families.NAMES, TIMM)):
        assert [name for name in names if name not in measured and name not in reasons] == []


def test_all_that_stands_there_is_within_what_is_allowed() -> None:
    """1e-5 of a gradient, 1e-4 of a map, or 5 times float32 autograd's error where that is larger."""
    assert len(FAMILIES) > 25
    assert len(TIMM) > 60
    for *_, gradient, maps in (*FAMILIES.values(), *TIMM.values()):
        assert holds(gradient, proofs.GRADIENT), (gradient, maps)
        assert holds(maps, proofs.OF_MAPS), (gradient, maps)
    for row in rows(explanations.SHIPPED_HEAD).values():
        assert holds(row[1], proofs.GRADIENT), row
        assert holds(" ".join(row[2:]), proofs.OF_MAPS), row


@pytest.mark.parametrize("name", ["DeiT", "PVT V2", "RegNet"])
def test_a_family_is_as_its_row_says(name: str) -> None:
    """Measured again: the same maps of the same layers, and errors within what is allowed."""
    measured = family_rows.measure(family_rows.of_transformers(name))
    assert family_rows.failing(measured) == []
    given = cells(explanations.line(family_rows.cells(measured)))
    assert [NUMBER.sub("", cell) for cell in FAMILIES[name]] == [NUMBER.sub("", cell) for cell in given]


@pytest.fixture(scope="module", params=shipped_rows.NAMES)
def shipped(request: pytest.FixtureRequest) -> Bundle:
    return shipped_rows.opened(request.param)


def test_a_shipped_model_is_as_its_row_says(shipped: Bundle) -> None:
    """On 4 pictures, every class: the same maps, and errors within what is allowed."""
    measured = shipped_rows.measure(shipped, 4)
    assert measured.failing() == []
    shown = rows(explanations.SHIPPED_HEAD)[f"`{shipped.manifest.name}`"]
    given = cells(explanations.line(measured.cells()))
    assert [bool(cell) for cell in shown] == [bool(cell) for cell in given]


def test_the_checks_of_a_shipped_model_are_as_the_page_says() -> None:
    """Every one of them has its row; random weights change each map, and nothing is not finite."""
    for row in rows(explanations.CHECKS_HEAD).values():
        assert float(row[1]) < 0.8
        assert float(row[2].split(", ")[-1].split()[-1]) < 0.5
        assert row[5] == "finite"
    assert set(rows(explanations.CHECKS_HEAD)) == {f"`{name}`" for name in shipped_rows.NAMES}

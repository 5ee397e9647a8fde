"""A run of the benchmarks: what is kept when it is interrupted, and that all take the same turns."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.contestants import CONTESTANTS, OURS
from benchmarks.entrants import Figures, Limit
from benchmarks.rounds import closed_rounds, memory_growth
from benchmarks.run import Book, plan_of
from service.plan import find_cpus, make_plan
from service.settings import Settings

RUN = {"machine": {"cpu": "here", "commit": "a"}, "effort": {"rounds": 9, "seconds": {"cct": 2}}}


def never() -> Any:
    raise AssertionError("it was measured before")


def test_a_run_that_was_interrupted_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """A part that was measured is not measured again; it is on disk as soon as it is there."""
    book = Book(tmp_path / "a.json", RUN)
    assert book.part("one", lambda: {"figure": 1}) == {"figure": 1}
    with pytest.raises(ZeroDivisionError):
        book.part("two", lambda: 1 / 0)
    again = Book(tmp_path / "a.json", RUN)
    assert again.part("one", never) == {"figure": 1}
    assert again.part("two", lambda: 2) == 2
    assert list(Book(tmp_path / "a.json", RUN).parts) == ["machine", "effort", "one", "two"]


@pytest.mark.parametrize(
    "other",
    [
        {**RUN, "machine": {"cpu": "elsewhere", "commit": "a"}},
        {**RUN, "machine": {"cpu": "here", "commit": "b"}},
        {**RUN, "effort": {"rounds": 3, "seconds": {"cct": 2}}},
    ],
)
def test_figures_of_another_machine_commit_or_effort_are_not_taken_over(tmp_path: Path, other: dict[str, Any]) -> None:
    """One run is one machine and one state of the code."""
    Book(tmp_path / "a.json", RUN).part("one", lambda: 1)
    book = Book(tmp_path / "a.json", other)
    assert book.part("one", lambda: 2) == 2


class Turn:
    """Takes part, and writes down when."""

    pid = 0

    def __init__(self, name: str, turns: list[str]) -> None:
        self.name = name
        self.turns = turns

    def measure(self, callers: int, seconds: float) -> Figures:
        self.turns.append(self.name)
        return Figures(float(len(self.turns)), None, None, 0.0, 0, 0, 0.0)

    def stop(self) -> None:
        pass


def test_in_each_round_everybody_is_measured_once_and_the_first_is_another_each_time() -> None:
    """Whoever comes first would have the cooler machine."""
    turns: list[str] = []
    found = closed_rounds({name: Turn(name, turns) for name in "abc"}, 16, 1, 4)
    assert "".join(turns) == "abcbcacababc"
    assert [run["throughput"] for run in found["a"]] == [1, 6, 8, 10]  # in the order of the rounds
    assert {len(runs) for runs in found.values()} == {4}
    assert all("p50_s" not in run for runs in found.values() for run in runs)  # what was not measured is left out


def test_memory_is_read_after_as_many_images_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 images a second and two seconds a measurement: one for 150, six for 1,000."""
    turns: list[str] = []

    class Steady(Turn):
        def measure(self, callers: int, seconds: float) -> Figures:
            super().measure(callers, seconds)
            return Figures(100.0, None, None, 0.0, 0, 0, 0.0)

    monkeypatch.setattr("benchmarks.rounds.peak_memory", lambda _: len(turns))
    assert memory_growth(Steady("a", turns), (150, 1000), 16) == {"150": 1, "1000": 5}


def test_every_entrant_is_searched_over_what_the_issue_of_tuning_is_about() -> None:
    """Each server may have more or fewer workers, threads of a session, spinning or not; batches where it has them."""
    spaces = {name: each.space(4) for name, each in CONTESTANTS.items()}
    assert {"instances", "intra_op_threads", "max_batch", "max_wait_ms", "spinning"} <= set(spaces["ours"])
    assert {"workers", "intra_op", "spin"} <= set(spaces["fastapi_pool"])
    assert {"processes", "intra_op", "spin"} <= set(spaces["fastapi_handler"])
    assert {"workers_per_device", "max_batch_size", "batch_timeout", "intra_op", "spin"} <= set(
        spaces["litserve_batch"]
    )
    assert set(spaces["ours"]["max_batch"]) == set(spaces["litserve_batch"]["max_batch_size"])
    assert set(Limit().space(4)["batch"]) == set(spaces["ours"]["max_batch"])
    for name, each in CONTESTANTS.items():
        for setting, value in each.defaults(4).items():
            assert value in spaces[name][setting], (name, setting)  # the search can come back to where it began


def test_the_plan_in_the_page_is_the_services_own() -> None:
    """The bound of the queue is worked out of it."""
    assert plan_of({"max_batch": 3}) == make_plan(Settings(max_batch=3), find_cpus(), "CPUExecutionProvider")
    assert plan_of(OURS.defaults(2)).queue_images == Settings().queue_images

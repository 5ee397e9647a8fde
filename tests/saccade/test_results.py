"""The file of results survives whatever stops the command: no picture is lost, none is there twice."""

import fcntl
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from saccade.errors import DataError, InvalidImage
from saccade.results import Results, answer_line, error_line

PATHS = ["a.jpg", "b\n\"'.jpg", os.fsdecode(b"\xff.png"), "ä.webp"]
LINES = [
    answer_line(PATHS[0], b'{"labels":[]}'),
    error_line(PATHS[1], InvalidImage("it is cut short\nor so")),
    answer_line(PATHS[2], b'{"labels":[1]}'),
    answer_line(PATHS[3], b"{}"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def write(path: Path, lines: list[bytes]) -> None:
    with Results(path, resume=False) as results:
        for line in lines:
            results.write(line)


def test_lines_are_json_whatever_the_name_and_the_error(path: Path) -> None:
    """One line each; names that are no UTF-8 come back as the names that they are."""
    write(path, LINES)
    read = [json.loads(line) for line in path.read_bytes().decode().splitlines()]
    assert [one["path"] for one in read] == PATHS
    assert read[0]["answer"] == {"labels": []}
    assert (read[1]["error"], read[1]["code"]) == ("it is cut short\nor so", "invalid_image")


@pytest.mark.parametrize("cut", range(len(b"".join(LINES)) + 1))
def test_wherever_a_crash_cuts_the_file_it_goes_on_there(path: Path, cut: int) -> None:
    """At every byte: whole lines count, what is left of one is cut off, and the end is as without a crash."""
    path.write_bytes(b"".join(LINES)[:cut])
    whole = path.read_bytes().count(b"\n")
    rest = iter(PATHS)
    with Results(path, resume=True) as results:
        assert results.skip(rest) == (whole, int(whole > 1))
        for line in LINES[whole:]:
            results.write(line)
    assert path.read_bytes() == b"".join(LINES)
    assert list(rest) == PATHS[whole:]


def test_what_a_lost_disk_leaves_is_cut_off(path: Path) -> None:
    """Zeros at the end, where a file system knew of the length and not yet of the bytes."""
    path.write_bytes(LINES[0] + b"\0" * 5000)
    with Results(path, resume=True) as results:
        assert results.skip(iter(PATHS)) == (1, 0)
    assert path.read_bytes() == LINES[0]


def test_what_a_lost_disk_leaves_in_the_middle_is_done_again(path: Path) -> None:
    """Zeros, and whole lines behind them: what cannot be trusted is cut off."""
    path.write_bytes(LINES[0] + b"\0" * 100 + LINES[1][:5] + b"\n" + LINES[2])
    with Results(path, resume=True) as results:
        assert results.skip(iter(PATHS)) == (1, 0)
    assert path.read_bytes() == LINES[0]


def fail(path: Path, lines: list[bytes], *, resume: bool = False) -> None:
    """A run that fails after these lines."""
    with suppress(InvalidImage), Results(path, resume) as results:
        for line in lines:
            results.write(line)
        raise InvalidImage("it is not this one's matter")


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_fails_leaves_its_lines_and_no_empty_file(path: Path, resume: bool) -> None:
    """Nothing is half-written; and a run with nothing to do, which has not failed, leaves a whole file of no lines."""
    fail(path, [], resume=resume)
    assert not path.exists()
    fail(path, LINES[:2], resume=resume)
    assert path.read_bytes() == b"".join(LINES[:2])
    fail(path, [], resume=True)
    assert path.read_bytes() == b"".join(LINES[:2])
    path.unlink()
    write(path, [])
    assert path.read_bytes() == b""


def test_a_run_that_fails_takes_no_file_away_that_was_there(path: Path) -> None:
    """As of mktemp, which whoever made it counts on."""
    path.touch()
    fail(path, [])
    assert path.exists()


def test_lines_never_go_into_a_file_that_another_process_has_taken_away(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It failed between this one's opening of the file and its lock."""
    lock = fcntl.flock

    def late(file: int, operation: int) -> None:
        path.unlink()
        lock(file, operation)

    path.touch()
    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(DataError, match="was being written by another process, which has failed: try again"):
        Results(path, resume=True)


def test_an_empty_file_is_no_result(path: Path) -> None:
    """What was killed before its first line leaves one; the second run need not be told to resume."""
    path.touch()
    write(path, LINES)
    assert path.read_bytes() == b"".join(LINES)


@pytest.mark.parametrize("resume", [False, True])
def test_a_pipe_takes_results_too(tmp_path: Path, resume: bool) -> None:
    """And /dev/null: there is nothing to go on with, and nothing to bring to a disk."""
    with Results(Path("/dev/null"), resume) as results:
        assert results.skip(iter(PATHS)) == (0, 0)
        results.write(LINES[0])


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["b.jpg", *PATHS], "line 1 .* is about 'a.jpg', and the list of pictures has 'b.jpg' there"),
        ([PATHS[0], "x"], "line 2 .* has 'x' there: --resume needs the same list"),
        (PATHS[:1], "line 2 .* ends before"),
    ],
)
def test_another_list_of_pictures_is_refused(path: Path, paths: list[str], words: str) -> None:
    """And the file stays as it is."""
    write(path, LINES)
    with pytest.raises(DataError, match=words), Results(path, resume=True) as results:
        results.skip(iter(paths))
    assert path.read_bytes() == b"".join(LINES)


@pytest.mark.parametrize("line", [b"{}\n", b"[]\n", b"text\n", b'{"path": 1}\n', b"\n"])
def test_another_kind_of_file_is_refused(path: Path, line: bytes) -> None:
    path.write_bytes(LINES[0] + line)
    with pytest.raises(DataError, match=r"line 2 .* is not one of this command"), Results(path, resume=True) as results:
        results.skip(iter(PATHS))
    assert path.read_bytes() == LINES[0] + line


@pytest.mark.parametrize(
    "content",
    [b"\xff\xd8\xff\xe0\0\x10JFIF\0 a picture", b"my notes without an end", b"\0\0\x01\0 an icon\n"],
)
def test_a_file_of_somebody_else_is_not_cut_off(path: Path, content: bytes) -> None:
    """What has no end of a line is what a crash left of one of ours only if it begins like one."""
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"line 1 .* is not one of this command"), Results(path, resume=True) as results:
        results.skip(iter(PATHS))
    assert path.read_bytes() == content


def test_a_failed_run_leaves_no_file_behind_a_link(path: Path) -> None:
    """The link was there before, and led nowhere."""
    path.symlink_to(path.with_name("target.jsonl"))
    with pytest.raises(KeyboardInterrupt), Results(path, resume=False):
        raise KeyboardInterrupt
    assert path.is_symlink()
    assert not path.exists()
    write(path, LINES)
    assert path.with_name("target.jsonl").read_bytes() == b"".join(LINES)


def test_results_are_never_written_over(path: Path) -> None:
    """A command that is given twice by mistake costs nothing."""
    write(path, LINES)
    with pytest.raises(DataError, match="there already: --resume goes on with it"):
        Results(path, resume=False)
    assert path.read_bytes() == b"".join(LINES)


def test_two_processes_do_not_write_one_file(path: Path) -> None:
    code = f"from pathlib import Path; from saccade.results import Results; Results(Path({str(path)!r}), True)"
    path.touch()
    with Results(path, resume=False):
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "is being written by another process" in ran.stderr


@pytest.mark.parametrize("resume", [False, True])
def test_of_two_that_begin_at_once_the_first_to_have_a_line_writes(path: Path, resume: bool) -> None:
    """The file is there from then on: the other one is told, and adds nothing to what it never saw."""

    def slower() -> None:
        with Results(path, resume) as results:
            write(path, LINES[:2])
            results.write(LINES[2])

    with pytest.raises(DataError, match="was made by another process meanwhile"):
        slower()
    assert path.read_bytes() == b"".join(LINES[:2])


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"could not write .*absent/results.jsonl: No such file"):
        Results(tmp_path / "absent/results.jsonl", resume=True)


def test_a_full_disk_is_said_and_can_be_gone_on_from() -> None:
    """/dev/full takes nothing, as a full disk does."""
    with pytest.raises(DataError, match="No space left"):
        write_to_full()


@pytest.mark.parametrize("there", [0, 1])
def test_a_disk_that_had_no_room_for_a_moment_takes_no_line_behind_one_that_it_did_not(path: Path, there: int) -> None:
    """Whole lines, then half a one at the most; no file where there was none, rather than a part of its first lines."""
    if there:
        path.write_bytes(LINES[0])
    limit = sum(map(len, LINES[:there])) + 5
    code = f"""
import resource
from pathlib import Path
from saccade.errors import DataError
from saccade.results import Results
with Results(Path({str(path)!r}), resume=True) as results:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
    try:
        while True:
            results.write({LINES[1]!r})
    except DataError:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        raise
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "DataError: could not write" in ran.stderr
    if there:
        assert path.read_bytes() == LINES[0] + LINES[1][:5]
    assert path.exists() == bool(there)


def write_to_full() -> None:
    with Results(Path("/dev/full"), resume=True) as results:
        results.write(LINES[0])

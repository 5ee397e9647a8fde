"""Which pictures `saccade classify` means by its arguments, and in which order."""

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from saccade.errors import DataError
from saccade.paths import find_pictures


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a/2.PNG", "a/10.tiff", "a/1.webp", "a/notes.txt", "a/.hidden.png", ".git/x.png", "c.jpeg"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "set/loop").symlink_to(tmp_path / "set")
    (tmp_path / "set/d.png").symlink_to(tmp_path / "set/b.jpg")
    return tmp_path


ALL = ["set/a/1.webp", "set/a/10.tiff", "set/a/2.PNG", "set/b.jpg", "set/c.jpeg", "set/d.png"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["set"], ALL),
        (["set/c.jpeg", "set/b.jpg"], ["set/c.jpeg", "set/b.jpg"]),
        (["set/b.jpg", "set/b.jpg"], ["set/b.jpg", "set/b.jpg"]),
        (["set/a/*"], ["set/a/1.webp", "set/a/10.tiff", "set/a/2.PNG", "set/a/notes.txt"]),
        (["set/[bc].*"], ["set/b.jpg", "set/c.jpeg"]),
        (["absent.jpg"], ["absent.jpg"]),
        (["set/a", "set/b.jpg"], [*ALL[:3], "set/b.jpg"]),
    ],
)
def test_files_folders_and_globs_become_paths(folder: Path, arguments: Sequence[str], expected: list[str]) -> None:
    """A folder means the pictures below it, by name, hidden ones and links to folders left out; a file means itself."""
    assert list(find_pictures(arguments)) == expected


def test_two_stars_mean_every_depth(folder: Path) -> None:
    assert {*find_pictures(["set/**/*.png"])} >= {"set/d.png"}
    assert "set/a/1.webp" in list(find_pictures(["set/**/*.webp"]))


def test_a_file_whose_name_looks_like_a_glob_is_that_file(folder: Path) -> None:
    (folder / "b[1].jpg").write_bytes(b"")
    assert list(find_pictures(["b[1].jpg"])) == ["b[1].jpg"]


def test_a_glob_that_matches_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"nothing matches set/\*\.bmp"):
        list(find_pictures(["set/*.bmp"]))


def test_a_folder_that_cannot_be_read_is_named(folder: Path) -> None:
    """And not passed over: the pictures in it would be missed by nobody."""
    (folder / "set/a").chmod(0)
    nobody, self = 65534, os.geteuid()
    if self == 0:  # who may read every folder
        folder.chmod(0o755)
        os.seteuid(nobody)
    try:
        with pytest.raises(DataError, match=r"could not read the folder set.*: Permission denied"):
            list(find_pictures(["set"]))
    finally:
        os.seteuid(self)


def listed(text: bytes, separator: bytes) -> list[str]:
    """What a process of its own makes of such a stdin."""
    code = (
        f"from saccade.paths import find_pictures\nfor path in find_pictures(['-'], {separator!r}): print(ascii(path))"
    )
    ran = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, check=True)
    return [eval(line) for line in io.StringIO(ran.stdout.decode())]


@pytest.mark.parametrize(
    ("text", "separator", "expected"),
    [
        (b"a.jpg\nb c.jpg\n", b"\n", ["a.jpg", "b c.jpg"]),
        (b"a.jpg\r\n\r\nb.jpg", b"\n", ["a.jpg", "b.jpg"]),
        (b"a\nb.jpg\0c.jpg\0", b"\0", ["a\nb.jpg", "c.jpg"]),
        (b"", b"\n", []),
        (b"x" * 70_000 + b"\ny\n", b"\n", ["x" * 70_000, "y"]),
        ("ä.jpg\n".encode(), b"\n", ["ä.jpg"]),
        (b"\xff.jpg\n", b"\n", [os.fsdecode(b"\xff.jpg")]),
    ],
)
def test_a_list_comes_on_stdin(text: bytes, separator: bytes, expected: list[str]) -> None:
    """As `ls`, `find` and `find -print0` write it; a name that is no UTF-8 is still that file."""
    assert listed(text, separator) == expected


def test_what_cannot_be_looked_at_is_a_path_like_any_other(folder: Path) -> None:
    """It will be an error in its place: a link that leads nowhere, or in a circle, a name that is too long."""
    (folder / "set/circle.jpg").symlink_to("circle.jpg")
    (folder / "set/nowhere.png").symlink_to("absent.png")
    assert list(find_pictures(["set"])) == sorted([*ALL, "set/circle.jpg", "set/nowhere.png"])
    assert list(find_pictures(["x" * 300, "set/circle.jpg"])) == ["x" * 300, "set/circle.jpg"]


def test_a_folder_may_be_left_out(folder: Path) -> None:
    """That of the results, wherever it lies and however it is written."""
    assert list(find_pictures(["set"], leave_out=Path("set/../set/a"))) == ALL[3:]

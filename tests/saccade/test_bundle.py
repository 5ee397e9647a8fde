"""A bundle is written whole or not at all, and opened only if every file is what the manifest says."""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from saccade.bundle import (
    Bundle,
    check_place,
    find_bundles,
    next_version,
    open_bundle,
    resolve_bundle,
    update_bundle,
    write_bundle,
)
from saccade.errors import BundleError

CONTENT = {"model.onnx": b"graph", "weights.safetensors": b"weights" * 100, "golden.npz": b"golden"}
FIELDS: dict[str, Any] = {
    "labels": ["cat", "dog"],
    "preprocessing": {"height": 4, "width": 4, "fit": "stretch", "mean": [0, 0, 0], "std": [1, 1, 1]},
    "maps": {"default": []},
    "tolerance": {"CPUExecutionProvider": {"logits": 1e-4}},
    "provenance": {"recipe": {}, "data": "none", "held_out": "none", "seed": 1, "commit": None, "versions": {}},
    "card": {"summary": "made", "license": "CC0-1.0", "parameters": 6},
}


def build(folder: Path) -> Mapping[str, Any]:
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return FIELDS


def everything_under(folder: Path) -> dict[str, bytes | None]:
    """Relative path -> content, hidden files too."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def made(tmp_path: Path) -> Bundle:
    """models/made/1 in the test's folder."""
    return write_bundle(tmp_path / "models", "made", 1, build)


def test_what_is_written_can_be_opened(tmp_path: Path) -> None:
    """Each file with the size and sha256 that it has, and nothing else in the folder."""
    write_bundle(tmp_path, "made", 3, build)
    opened = open_bundle(tmp_path / "made" / "3")
    assert (opened.manifest.name, opened.manifest.version, opened.manifest.labels) == ("made", 3, ("cat", "dog"))
    entries = {name: (entry.sha256, entry.bytes) for name, entry in opened.manifest.files.items()}
    assert entries == {name: (hashlib.sha256(data).hexdigest(), len(data)) for name, data in CONTENT.items()}
    assert sorted(path.name for path in (tmp_path / "made").rglob("*")) == sorted(["3", "manifest.json", *CONTENT])
    assert opened.graph.read_bytes() == CONTENT["model.onnx"]
    assert opened.weights.read_bytes() == CONTENT["weights.safetensors"]
    assert opened.golden.read_bytes() == CONTENT["golden.npz"]


def test_a_bundle_can_be_read_by_other_users(tmp_path: Path) -> None:
    """The exporter is often not the user that serves; safetensors writes files that only their owner may read."""

    def build_privately(folder: Path) -> Mapping[str, Any]:
        fields = build(folder)
        (folder / "weights.safetensors").chmod(0o600)
        return fields

    folder = write_bundle(tmp_path, "made", 1, build_privately).folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def build_and_raise(error: BaseException) -> Callable[[Path], Mapping[str, Any]]:
    def fail(folder: Path) -> Mapping[str, Any]:
        build(folder)
        raise error

    return fail


def build_but(without: str) -> Callable[[Path], Mapping[str, Any]]:
    def part(folder: Path) -> Mapping[str, Any]:
        build(folder)
        (folder / without).unlink()
        return FIELDS

    return part


FAILURES: list[tuple[Callable[[Path], Mapping[str, Any]], type[BaseException], str]] = [
    (build_and_raise(OSError(errno.ENOSPC, "No space left on device")), BundleError, "No space left"),
    (build_and_raise(RuntimeError("the graph cannot be made")), RuntimeError, "cannot be made"),
    (build_and_raise(KeyboardInterrupt("Ctrl-C")), KeyboardInterrupt, "Ctrl-C"),
    (build_and_raise(BundleError("parity fails")), BundleError, "parity fails"),
    (lambda folder: {**build(folder), "labels": []}, BundleError, "labels"),
    (lambda folder: {**build(folder), "colour": "red"}, BundleError, "colour"),
    (build_but("golden.npz"), BundleError, r"no golden\.npz was made"),
    (build_but("model.onnx"), BundleError, r"no model\.onnx was made"),
]


@pytest.mark.parametrize(("fails", "kind", "words"), FAILURES)
@pytest.mark.parametrize("models_exists", [True, False])
def test_a_build_that_fails_leaves_nothing(
    fails: Callable[[Path], Mapping[str, Any]],
    kind: type[BaseException],
    words: str,
    models_exists: bool,
    tmp_path: Path,
) -> None:
    """Not a folder, not a hidden one, whatever went wrong and wherever."""
    models = tmp_path / "models"
    if models_exists:
        models.mkdir()
    with pytest.raises(kind, match=words) as failure:
        write_bundle(models, "made", 1, fails)
    assert "\n" not in str(failure.value)
    assert everything_under(tmp_path) == ({"models": None} if models_exists else {})


@pytest.mark.parametrize("call", ["fsync", "rename", "chmod"])
def test_a_full_disk_leaves_nothing(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the disk is full only at the end."""
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(BundleError, match="No space left on device"):
        write_bundle(tmp_path, "made", 1, build)
    assert everything_under(tmp_path) == {}


@pytest.mark.parametrize(("fails", "kind", "words"), FAILURES[:1])
def test_a_failure_leaves_the_other_versions_alone(
    fails: Callable[[Path], Mapping[str, Any]], kind: type[BaseException], words: str, made: Bundle
) -> None:
    """A bad new version never harms a good old one."""
    models = made.folder.parent.parent
    before = everything_under(models)
    with pytest.raises(kind, match=words):
        write_bundle(models, "made", 2, fails)
    assert everything_under(models) == before
    open_bundle(made.folder)


def test_a_bundle_that_somebody_else_wrote_meanwhile_survives(tmp_path: Path) -> None:
    """Two exports at once: the one that fails takes nothing with it."""

    def while_another_writes(_: Path) -> Mapping[str, Any]:
        write_bundle(tmp_path, "made", 2, build)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(BundleError, match="Input/output error"):
        write_bundle(tmp_path, "made", 1, while_another_writes)
    assert [folder.name for folder in find_bundles(tmp_path)] == ["2"]
    open_bundle(tmp_path / "made" / "2")


def test_two_exports_of_one_version_do_not_mix(tmp_path: Path) -> None:
    """The second finds the place taken, says so, and the first stays as it was."""

    def while_another_is_first(folder: Path) -> Mapping[str, Any]:
        write_bundle(tmp_path, "made", 1, build)
        return {**build(folder), "labels": ["other"]}

    with pytest.raises(BundleError, match=r"^made@1 was written meanwhile by another command; run this again$"):
        write_bundle(tmp_path, "made", 1, while_another_is_first)
    assert open_bundle(tmp_path / "made" / "1").manifest.labels == ("cat", "dog")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["1"]


def test_a_version_is_never_written_twice(made: Bundle) -> None:
    before = everything_under(made.folder)
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(made.folder.parent.parent, "made", 1, build)
    assert everything_under(made.folder) == before


@pytest.mark.parametrize("name", ["", "Made", "my model", "../made", "a/b", ".made", "a" * 64, "made\n"])
def test_a_name_that_cannot_be_one_is_refused_before_anything_is_built(name: str, tmp_path: Path) -> None:
    """Not after an hour of exporting, and never as a path that leads elsewhere."""
    with pytest.raises(BundleError, match="is no name for a model") as refusal:
        write_bundle(tmp_path / "models", name, 1, build_and_raise(AssertionError("it was built")))
    assert "\n" not in str(refusal.value)
    assert everything_under(tmp_path) == {}


def test_a_models_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    with pytest.raises(BundleError, match=f"could not write to {tmp_path / 'models'}"):
        write_bundle(tmp_path / "models", "made", 1, build)


@pytest.mark.parametrize("there", [True, False])
def test_a_place_is_tried_without_leaving_anything(there: bool, tmp_path: Path) -> None:
    """Whether the folder of models is there or has to be made."""
    models = tmp_path / "models"
    if there:
        models.mkdir()
    check_place(models, "made")
    assert everything_under(tmp_path) == ({"models": None} if there else {})


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle.folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def damage(bundle: Bundle) -> None:
    bundle.weights.write_bytes(b"WEIGHTS" * 100)


DAMAGES: list[tuple[Callable[[Bundle], object], tuple[str, ...]]] = [
    (damage, (sha256(b"WEIGHTS" * 100), sha256(b"weights" * 100), "weights.safetensors")),
    (lambda it: it.graph.write_bytes(b"graph and more"), ("has 14 bytes", "says 5", "model.onnx")),
    (lambda it: it.golden.unlink(), ("golden.npz", "No such file")),
    (lambda it: edit(it, lambda m: m.update(name="other")), ("'other' version 1", "other/1", "made/1")),
    (lambda it: edit(it, lambda m: m.update(version=7)), ("'made' version 7", "made/7", "made/1")),
    (lambda it: edit(it, lambda m: m.update(schema_version=2)), ("schema_version", "should be 1", "is 2")),
    (lambda it: edit(it, lambda m: m.update(colour="red")), ("colour", "'red'")),
    (lambda it: edit(it, lambda m: m["preprocessing"].update(std=[1, 0, 1])), ("preprocessing", "(1.0, 0.0, 1.0)")),
    (lambda it: edit(it, lambda m: m["preprocessing"].update(mean=[float("nan")] * 3)), ("mean", "nan")),
    (lambda it: edit(it, lambda m: m.pop("labels")), ("labels", "required")),
    (lambda it: edit(it, lambda m: m["files"].pop("golden.npz")), ("lists no golden.npz",)),
    (lambda it: edit(it, lambda m: m["files"]["model.onnx"].update(sha256="0")), ("files.model.onnx.sha256", "'0'")),
    *(
        (
            lambda it, name=name: edit(it, lambda m: m["files"].update({name: {"sha256": "0" * 64, "bytes": 0}})),
            ("lists", name, "no part of a bundle"),
        )
        for name in ("../x", "/etc/passwd", "a/b", "./model.onnx", "../1/model.onnx")
    ),
    *(
        (lambda it, name=name: edit(it, lambda m: m["files"].update({name: {"sha256": "0" * 64, "bytes": 0}})), (name,))
        for name in ("..", "", "absent.bin", "manifest.json")
    ),
    (
        lambda it: edit(it, lambda m: m["files"].update({"a\0b": {"sha256": "0" * 64, "bytes": 0}})),
        ("no part of a bundle",),
    ),
    (
        lambda it: (
            (it.folder / "more.bin").touch(),
            edit(it, lambda m: m["files"].update({"more.bin": {"sha256": sha256(b""), "bytes": 0}})),
        ),
        ("lists 'more.bin', which is no part of a bundle",),
    ),
    (lambda it: (it.folder / "extra.bin").write_bytes(b"weights from elsewhere"), ("does not list", "extra.bin")),
    (lambda it: ((it.folder / "sub").mkdir(), (it.folder / "sub/w.bin").write_bytes(b"w")), ("does not list", "sub")),
    (lambda it: (it.golden.unlink(), os.mkfifo(it.golden)), ("golden.npz is not a regular file",)),
    (lambda it: (it.golden.unlink(), it.golden.symlink_to("/dev/zero")), ("golden.npz is not a regular file",)),
    (lambda it: (it.folder / "manifest.json").write_text("[" * 100_000), ("manifest.json", "not JSON")),
    (lambda it: (it.folder / "manifest.json").write_text("{"), ("manifest.json", "not JSON")),
    (lambda it: (it.folder / "manifest.json").write_bytes(b"\xff\xfe\x00"), ("manifest.json", "not JSON")),
    (lambda it: (it.folder / "manifest.json").write_text("[]"), ("manifest.json", "[]")),
    (lambda it: (it.folder / "manifest.json").write_text(""), ("manifest.json", "not JSON")),
    (lambda it: (it.folder / "manifest.json").unlink(), ("manifest.json", "No such file")),
]  # fmt: skip


@pytest.mark.parametrize(("harm", "words"), DAMAGES)
def test_a_bundle_that_is_not_what_it_says_is_refused(
    harm: Callable[[Bundle], object], words: tuple[str, ...], made: Bundle
) -> None:
    """In one line that names the file and the two values."""
    harm(made)
    with pytest.raises(BundleError) as refusal:
        open_bundle(made.folder)
    assert "\n" not in str(refusal.value)
    assert [word for word in words if word not in str(refusal.value)] == []


def test_a_renamed_folder_is_refused(made: Bundle) -> None:
    """An answer would name a model that nobody exported."""
    moved = made.folder.parent.with_name("better")
    made.folder.parent.rename(moved)
    with pytest.raises(BundleError, match="'made' version 1; the folder must be called made/1"):
        open_bundle(moved / "1")


def test_an_update_changes_fields_and_files_together(made: Bundle) -> None:
    """New golden values come with their checksum; the rest is untouched."""
    updated = update_bundle(made, {"labels": ("dog", "cat")}, {"golden.npz": b"new"})
    opened = open_bundle(made.folder)
    assert opened.manifest == updated.manifest
    assert opened.manifest.labels == ("dog", "cat")
    assert {path.name: path.read_bytes() for path in made.folder.iterdir() if path.name in CONTENT} == {
        **CONTENT,
        "golden.npz": b"new",
    }
    assert not list(made.folder.glob(".*"))


def test_an_update_loses_nothing_that_was_written_meanwhile(made: Bundle) -> None:
    """Of two commands that opened the same bundle the second is refused, and what the first wrote stays."""
    other = open_bundle(made.folder)
    update_bundle(made, {"labels": ("dog", "cat")}, {"golden.npz": b"new"})
    before = everything_under(made.folder)
    with pytest.raises(BundleError, match=r"was changed by another command meanwhile: run this again"):
        update_bundle(other, {"scores": "sigmoid"})
    assert everything_under(made.folder) == before
    update_bundle(open_bundle(made.folder), {"scores": "sigmoid"})


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_update_that_cannot_be_written_changes_nothing(
    call: str, made: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything_under(made.folder)
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(BundleError, match="No space left on device"):
        update_bundle(made, {"labels": ("dog", "cat")}, {"golden.npz": b"new"})
    monkeypatch.undo()
    assert everything_under(made.folder) == before
    open_bundle(made.folder)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Versions 1, 2, 9 and 10 of `a`, 3 of `b`, and what is no bundle."""
    for name, version in (("a", 1), ("a", 10), ("a", 9), ("a", 2), ("b", 3)):
        write_bundle(tmp_path, name, version, build)
    (tmp_path / "a" / "notes").mkdir()
    (tmp_path / "a" / "notes" / "manifest.json").write_text("{}")
    (tmp_path / "a" / "²").mkdir()
    (tmp_path / "a" / "²" / "manifest.json").write_text("{}")
    (tmp_path / "a" / "11").mkdir()
    (tmp_path / "a" / ".12.part-x").mkdir()
    (tmp_path / "a" / ".12.part-x" / "manifest.json").write_text("{}")
    (tmp_path / "README").write_text("")
    return tmp_path


def test_bundles_are_found_by_name_and_rising_version(many: Path) -> None:
    """Ten comes after nine; half-written and foreign folders are no bundles."""
    found = [(folder.parent.name, folder.name) for folder in find_bundles(many)]
    assert found == [("a", "1"), ("a", "2"), ("a", "9"), ("a", "10"), ("b", "3")]


@pytest.mark.parametrize(
    ("model", "folder"), [("a", "a/10"), ("a@9", "a/9"), ("a@1", "a/1"), ("b", "b/3"), ("b@3", "b/3")]
)
def test_a_model_is_named_with_or_without_its_version(model: str, folder: str, many: Path) -> None:
    """Without: the highest, as a number."""
    assert resolve_bundle(many, model) == many / folder


def test_a_model_is_named_by_its_folder(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From wherever one stands."""
    assert resolve_bundle(Path("nowhere"), str(many / "a" / "2")) == many / "a" / "2"
    monkeypatch.chdir(many / "a")
    open_bundle(resolve_bundle(Path("nowhere"), "2"))


@pytest.mark.parametrize("model", ["c", "a@3", "b@03", "../a", ""])
def test_an_unknown_model_is_told_what_there_is(model: str, many: Path) -> None:
    with pytest.raises(BundleError, match=r"there are: a@1, a@2, a@9, a@10, b@3$") as refusal:
        resolve_bundle(many, model)
    assert repr(model) in str(refusal.value)


def test_a_missing_models_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"no folder of models at {tmp_path / 'absent'}"):
        find_bundles(tmp_path / "absent")
    with pytest.raises(BundleError, match=f"no folder of models at {tmp_path / 'absent'}"):
        resolve_bundle(tmp_path / "absent", "a")


def test_an_empty_models_folder_has_none(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there are: none"):
        resolve_bundle(tmp_path, "a")


def test_the_next_version_is_one_more_than_the_highest(many: Path) -> None:
    """Also more than one that holds no manifest yet: a number is never used twice."""
    assert [next_version(many, name) for name in ("a", "b", "new")] == [12, 4, 1]


def test_a_real_bundle_moves_with_its_folder(bundle: Bundle, tmp_path: Path) -> None:
    """Copied elsewhere, it is the same bundle: nothing in it knows where it was made."""
    target = tmp_path / bundle.manifest.name / str(bundle.manifest.version)
    shutil.copytree(bundle.folder, target)
    assert open_bundle(target).manifest == bundle.manifest


def test_an_update_that_was_killed_before_it_renamed_leaves_the_old_bundle(made: Bundle) -> None:
    """What it had begun to write is not in the way of opening, nor of the next update."""
    (made.folder / ".manifest.json.part").write_text("{")
    again = update_bundle(open_bundle(made.folder), {"labels": ["one", "two"]})
    assert open_bundle(again.folder).manifest.labels == ("one", "two")
    assert [path.name for path in made.folder.iterdir() if path.name.startswith(".")] == []

"""A bundle on disk: models/<name>/<version>/. The only code that knows its file names.

A bundle is written whole or not at all, and opened only if every file is what the manifest says.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from saccade.errors import BundleError, first_problem
from saccade.frozen import NAME
from saccade.manifest import SCHEMA_VERSION, FileEntry, Manifest

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.npz"
RELEVANCE = "relevance.onnx"
FILES = (GRAPH, WEIGHTS, GOLDEN)
"""Of every bundle; one whose manifest has maps of the gradient has RELEVANCE too."""


class Bundle:
    """An opened bundle: its folder and its manifest."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @property
    def graph(self) -> Path:
        return self.folder / GRAPH

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    @property
    def relevance(self) -> Path:
        """Only where the manifest has `maps.gradients`."""
        return self.folder / RELEVANCE

    @property
    def golden(self) -> Path:
        return self.folder / GOLDEN


def open_bundle(folder: Path) -> Bundle:
    """Reads the manifest and checks name, version, sizes and checksums. Raises BundleError naming the two values."""
    manifest = _read_manifest(folder / MANIFEST)
    if (folder.parent.name, folder.name) != (manifest.name, str(manifest.version)):
        raise BundleError(
            f"{folder} holds {manifest.name!r} version {manifest.version}; the folder must be called "
            f"{manifest.name}/{manifest.version}"
        )
    files = files_of(manifest)
    missing = [name for name in files if name not in manifest.files]
    if missing:
        raise BundleError(f"{folder / MANIFEST} lists no {', '.join(missing)}")
    strange = sorted(repr(name) for name in manifest.files if name not in files)
    if strange:
        raise BundleError(f"{folder / MANIFEST} lists {', '.join(strange)}, which is no part of a bundle like this")
    listed = {MANIFEST, *files}
    unlisted = {path.name for path in folder.iterdir()} - listed - {_part(name) for name in listed}
    if unlisted:  # a graph could read them, and nobody would have checked them
        raise BundleError(f"{folder} holds files that its manifest does not list: {', '.join(sorted(unlisted))}")
    for name, entry in manifest.files.items():
        _check_file(folder / name, entry)
    return Bundle(folder, manifest)


def files_of(manifest: Manifest) -> tuple[str, ...]:
    """Names of the files that belong to such a bundle, beside the manifest."""
    return FILES if manifest.maps.gradients is None else (*FILES, RELEVANCE)


def find_bundles(models: Path) -> list[Path]:
    """Folders models/<name>/<version>/ that hold a manifest, by name and rising version."""
    if not models.is_dir():
        raise BundleError(f"no folder of models at {models}")
    found = [path.parent for path in models.glob(f"*/*/{MANIFEST}") if path.parent.name.isdecimal()]
    return sorted(found, key=lambda folder: (folder.parent.name, int(folder.name)))


def resolve_bundle(models: Path, model: str) -> Path:
    """The folder of `name` (its highest version) or `name@version`, or a path of a bundle. Raises BundleError."""
    if (Path(model) / MANIFEST).is_file():
        return Path(model).resolve()
    name, _, version = model.partition("@")
    matching = [
        folder for folder in find_bundles(models) if folder.parent.name == name and version in ("", folder.name)
    ]
    if not matching:
        known = ", ".join(f"{folder.parent.name}@{folder.name}" for folder in find_bundles(models)) or "none"
        raise BundleError(f"no model {model!r} in {models}; there are: {known}")
    return matching[-1]


def next_version(models: Path, name: str) -> int:
    """One more than the highest version of `name`; 1 for a new name."""
    taken = [int(folder.name) for folder in (models / name).glob("*") if folder.name.isdecimal()]
    return max(taken, default=0) + 1


def check_place(models: Path, name: str) -> None:
    """Raises BundleError where no bundle `name` could be written into `models`. For before anything long is begun."""
    _check_name(name)
    folder = models / name
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder):
            pass
    except OSError as error:
        raise BundleError(f"could not write to {models}: {error}") from error


def write_bundle(models: Path, name: str, version: int, build: Callable[[Path], Mapping[str, Any]]) -> Bundle:
    """Creates models/<name>/<version>/ in one step.

    `build` gets an empty folder, writes what `files_of` names into it, and returns the manifest's fields but for
    schema_version, name, version and files. If anything fails, a full disk included, nothing is left behind. Raises
    BundleError.
    """
    _check_name(name)
    target = models / name / str(version)
    if target.exists():
        raise BundleError(f"{target} exists already; a version is never written twice")
    new_folders = [folder for folder in (target.parent, models) if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{version}.part-", dir=target.parent))
    except OSError as error:
        _remove_empty(new_folders)
        raise BundleError(f"could not write to {models}: {error}") from error
    try:
        fields = build(scratch)
        identity = {"schema_version": SCHEMA_VERSION, "name": name, "version": version}
        manifest = Manifest.model_validate({**identity, **fields, "files": _entries(scratch)})
        missing = [file for file in files_of(manifest) if file not in manifest.files]
        if missing:
            raise BundleError(f"could not write {target}: no {', '.join(missing)} was made")
        _write_synced(scratch / MANIFEST, _to_json(manifest))
        for file in scratch.iterdir():
            file.chmod(0o644)  # safetensors and mkdtemp keep others out; a bundle is there to be read
        scratch.chmod(0o755)
        scratch.rename(target)
    except ValidationError as error:
        raise BundleError(f"could not write {target}: {first_problem(error)}") from error
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # of the rename
            raise BundleError(f"{name}@{version} was written meanwhile by another command; run this again") from error
        raise BundleError(f"could not write {target}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if not target.exists():
            _remove_empty(new_folders)
    return Bundle(target, manifest)


def update_bundle(bundle: Bundle, fields: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> Bundle:
    """Replaces fields of the manifest, and with it files that differ. All is on disk before the first name changes.

    A crash between two renames leaves a checksum that does not fit, which `open_bundle` tells; running it again mends.
    Raises BundleError where the manifest is no longer the one of `bundle`: what another command wrote would be lost.
    """
    if _to_json(_read_manifest(bundle.folder / MANIFEST)) != _to_json(bundle.manifest):
        raise BundleError(f"{bundle.folder} was changed by another command meanwhile: run this again")
    written = bundle.manifest.files
    entries = {**written, **{name: _entry(content) for name, content in (files or {}).items()}}
    changed = {name: content for name, content in (files or {}).items() if entries[name] != written.get(name)}
    manifest = Manifest.model_validate({**bundle.manifest.model_dump(), **fields, "files": entries})
    contents = {**changed, MANIFEST: _to_json(manifest)}
    parts = {name: bundle.folder / _part(name) for name in contents}
    try:
        for name, content in contents.items():
            _write_synced(parts[name], content)
        for name, part in parts.items():
            os.replace(part, bundle.folder / name)
    except OSError as error:
        raise BundleError(f"could not write to {bundle.folder}: {error}") from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return Bundle(bundle.folder, manifest)


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME, name):  # before it becomes a path
        raise BundleError(f"{name!r} is no name for a model: it must match {NAME}")


def _part(name: str) -> str:
    """What `update_bundle` writes before it renames; a killed update leaves it, and the next one writes it anew."""
    return f".{name}.part"


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise BundleError(f"could not read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise BundleError(f"{path}: {first_problem(error)}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}") from error


def _check_file(path: Path, entry: FileEntry) -> None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path} is not a regular file")
        if status.st_size != entry.bytes:
            raise BundleError(f"{path} has {status.st_size} bytes; the manifest says {entry.bytes}")
        with path.open("rb") as file:
            seen = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"could not read {path}: {error.strerror}") from error
    if seen != entry.sha256:
        raise BundleError(f"{path} has sha256 {seen}; the manifest says {entry.sha256}")


def _entries(folder: Path) -> dict[str, FileEntry]:
    return {path.name: _entry(path.read_bytes()) for path in sorted(folder.iterdir())}


def _entry(content: bytes) -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _to_json(manifest: Manifest) -> bytes:
    return (json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n").encode()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return  # it was never made, or somebody else's bundle is in it by now

"""Files and promises -> a bundle, verified before anybody can see it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from export.reference import Reference
from export.verify import prove
from saccade.bundle import GOLDEN, Bundle, next_version, write_bundle
from saccade.errors import BundleError, first_problem
from saccade.manifest import SCHEMA_VERSION, Manifest


def assemble(
    models: Path,
    name: str,
    fields: Mapping[str, Any],
    write: Callable[[Path], None],
    reference: Callable[[Bundle], Reference],
    data: Path | None = None,
) -> Bundle:
    """Writes the next version of `name`: what `write` puts into its folder, held to `reference`, or nothing at all.

    `fields` are those of the manifest but for identity, parity and files. Raises BundleError, and ValidationError where
    they make no manifest (see `gives_manifest`).
    """
    version = next_version(models, name)
    draft = draft_manifest(name, version, fields)

    def build(folder: Path) -> Mapping[str, Any]:
        write(folder)
        bundle = Bundle(folder, draft)
        proof = prove(bundle, reference(bundle), data)
        (folder / GOLDEN).write_bytes(proof.golden)
        return {**fields, "parity": proof.parity, "tolerance": proof.tolerance}

    return write_bundle(models, name, version, build)


@contextmanager
def gives_manifest(source: object) -> Iterator[None]:
    """A BundleError that names the source in place of pydantic's."""
    try:
        yield
    except ValidationError as error:
        raise BundleError(f"{source} gives no manifest: {first_problem(error)}") from error


def draft_manifest(name: str, version: int, fields: Mapping[str, Any]) -> Manifest:
    """A manifest before its files are hashed."""
    identity = {"schema_version": SCHEMA_VERSION, "name": name, "version": version, "files": {}}
    return Manifest.model_validate({**identity, **fields})

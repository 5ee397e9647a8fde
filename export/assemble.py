"""Files and promises -> a bundle, verified before anybody can see it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from export.explain.build import explained, unexplained
from export.explain.prove import MapsError
from export.reference import Reference
from export.verify import prove
from saccade.bundle import GOLDEN, RELEVANCE, Bundle, next_version, write_bundle
from saccade.errors import BundleError, first_problem
from saccade.manifest import SCHEMA_VERSION, Manifest


def assemble(
    models: Path,
    name: str,
    fields: Mapping[str, Any],
    write: Callable[[Path], None],
    reference: Callable[[Bundle], Reference],
    data: Path | None = None,
    *,
    relevance: bool = True,
) -> Bundle:
    """Writes the next version of `name`: what `write` puts into its folder, held to `reference`, or nothing at all.

    With `relevance` also relevance.onnx, and where the model can have none that holds, the reason. `fields` are those
    of the manifest but for identity, parity and files. Raises BundleError, and ValidationError where they make no
    manifest (see `gives_manifest`).
    """
    version = next_version(models, name)
    draft = draft_manifest(name, version, fields)

    def build(folder: Path) -> Mapping[str, Any]:
        write(folder)
        bundle = Bundle(folder, draft)
        if relevance:
            bundle = explained(bundle, folder)
        try:
            proof = prove(bundle, reference(bundle), data)
        except MapsError as error:
            (folder / RELEVANCE).unlink()
            bundle = unexplained(bundle, str(error))
            proof = prove(bundle, reference(bundle), data)
        (folder / GOLDEN).write_bytes(proof.golden)
        return {**fields, "maps": bundle.manifest.maps, "parity": proof.parity, "tolerance": proof.tolerance}

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

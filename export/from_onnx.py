"""`saccade export --from-onnx`: a classifier in an ONNX file -> a bundle, with the attention found in its graph."""

import argparse
import hashlib
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir
from pydantic import BaseModel

from export import adopt as adoption
from export.graph.decompose import check_operators
from export.graph.expose import Exposed, expose
from export.graph.opset import check_opset
from export.graph.prepare import logits_of, prepare
from export.graph.read import external_files, read_model
from export.onnx_file import OnnxFile, OnnxGraph
from export.preparation import distinct, from_metadata, labels_of, preprocessing_of
from export.reference import Reference
from export.table import lines
from saccade.bundle import Bundle
from saccade.card import Card
from saccade.errors import DataError
from saccade.manifest import Origin


class _Asked(BaseModel):
    """What the user said of the graph, kept in the manifest to find the same again."""

    output: str | None = None
    grid: tuple[int, int] | None = None


class _File(NamedTuple):
    """A file whose graph was exposed."""

    model: ir.Model
    exposed: Exposed
    logits: str
    """Their name in the file."""
    by_itself: bool
    size: tuple[int, int]
    parameters: int
    said: list[str]

    def reference(self, path: Path, bundle: Bundle) -> OnnxFile:
        layers = zip(self.exposed.layers, self.exposed.sources, strict=True)
        return OnnxFile(bundle, path, self.logits, {layer.output: source for layer, source in layers})


def adopt(options: argparse.Namespace) -> tuple[Bundle, list[str]]:
    """The bundle, and what is said of it (see `export.table`). Raises DataError, BundleError and writes nothing."""
    path: Path = options.from_onnx
    model = read_model(path)
    labels = labels_of(options.labels) if options.labels is not None else from_metadata(model.metadata_props)
    if labels is None:
        raise DataError(f"{path} names no labels: give --labels, a file with one a line")
    labels, said = distinct(labels)
    file = _exposed(model, options.output, options.size, options.grid, labels)
    preprocessing, assumed = preprocessing_of(options, file.size)
    facts = adoption.Facts(
        labels=labels,
        preprocessing=preprocessing,
        scores=options.scores or ("sigmoid" if file.by_itself else "softmax"),
        origin=Origin(
            kind="onnx", name=path.name, files=_checksums(path),
            configuration=_Asked(output=options.output, grid=options.grid).model_dump(mode="json"),
        ),
        card=Card(
            summary=f"Taken from {path.name}; not trained and not evaluated here.",
            license="that of the source", parameters=file.parameters,
        ),
        relevance=options.relevance,
    )  # fmt: skip
    bundle = adoption.adopt(
        file.model, file.exposed, facts, lambda written: file.reference(path, written), options.models, options.name
    )
    return bundle, lines(file.exposed, facts, [*said, *file.said], assumed)


def reference_of(bundle: Bundle) -> OnnxGraph:
    """Without the file: the bundle alone."""
    graph = OnnxGraph(bundle)
    graph.said += "; --from-onnx FILE holds it to the file that it was taken from"
    return graph


def file_of(bundle: Bundle, file: Path) -> Reference:
    """The file that the bundle was taken from. Raises DataError for another."""
    model, manifest = read_model(file), bundle.manifest
    origin = manifest.provenance.origin
    assert origin is not None
    seen = _checksums(file, origin.name)
    other = [name for name, expected in origin.files.items() if seen.get(name) != expected]
    if other:
        raise DataError(f"{file} is not what {manifest.id} was taken from: {other[0]} has sha256 {seen.get(other[0])}; "
                        f"the manifest says {origin.files[other[0]]}")  # fmt: skip
    asked = _Asked.model_validate(origin.configuration)
    size = (manifest.preprocessing.height, manifest.preprocessing.width)
    return _exposed(model, asked.output, size, asked.grid, manifest.labels).reference(file, bundle)


def _exposed(
    model: ir.Model,
    output: str | None,
    size: tuple[int, int] | None,
    grid: tuple[int, int] | None,
    labels: tuple[str, ...],
) -> _File:
    """Changes the model. Raises DataError."""
    check_opset(model)
    check_operators(model)
    said: list[str] = []
    logits = logits_of(model, output, said)
    name, shape = logits.value.name or "", logits.value.shape
    if shape is not None and len(shape) == 2 and isinstance(shape[1], int):
        adoption.check_labels(labels, shape[1])
    parameters = adoption.parameter_count(model)
    model, size, done = prepare(model, size)
    exposed = expose(model, size, logits=_value(model, name), over=logits.over, grid=grid)
    return _File(model, exposed, name, logits.by_itself, size, parameters, [*said, *done])


def _value(model: ir.Model, name: str) -> ir.Value:
    for node in model.graph:
        for value in node.outputs:
            if value.name == name:
                return value
    raise DataError(f"the logits {name} are gone after the graph was taken apart")


def _checksums(path: Path, name: str | None = None) -> dict[str, str]:
    """Of the file, under this name or its own, and of those beside it that hold its tensors."""
    sums = {}
    for file, called in ((path, name or path.name), *((one, one.name) for one in external_files(path))):
        with file.open("rb") as content:
            sums[called] = hashlib.file_digest(content, "sha256").hexdigest()
    return sums

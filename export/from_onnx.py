"""`saccade export --from-onnx`: a classifier in an ONNX file -> a bundle, with the attention found in its graph."""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from export import adopt as adoption
from export.graph.decompose import check_operators
from export.graph.evaluate import run_whole
from export.graph.expose import expose
from export.graph.opset import check_opset
from export.graph.prepare import logits_of, prepare
from export.graph.read import external_files, read_model
from export.names import LOGITS
from export.preparation import from_metadata, labels_of, preprocessing_of
from export.reference import Limits, Outputs
from export.runtime import PROVIDER, Answer, open_graph
from export.table import lines
from saccade.bundle import Bundle
from saccade.errors import DataError
from saccade.manifest import Card, Origin

PICTURES = 16
"""An evaluator in Python takes seconds for one."""


def adopt(options: argparse.Namespace) -> tuple[Bundle, list[str]]:
    """The bundle, and what is said of it (see `export.table`). Raises DataError, BundleError and writes nothing."""
    path: Path = options.from_onnx
    model = read_model(path)
    labels = labels_of(options.labels) if options.labels is not None else from_metadata(model.metadata_props)
    if labels is None:
        raise DataError(f"{path} names no labels: give --labels, a file with one a line")
    check_opset(model)
    check_operators(model)
    said: list[str] = []
    logits, by_itself = logits_of(model, options.output, said)
    name = logits.name or ""
    source = _source(path, name, last=_channels_last(model))
    parameters = adoption.parameter_count(model)
    model, size, done = prepare(model, options.size)
    exposed = expose(model, size, logits=_value(model, name), grid=options.grid)
    preprocessing, assumed = preprocessing_of(options, size)
    facts = adoption.Facts(
        labels=labels,
        preprocessing=preprocessing,
        scores=options.scores or ("sigmoid" if by_itself else "softmax"),
        origin=Origin(kind="onnx", name=path.name, files=_checksums([path, *external_files(path)])),
        card=Card(
            summary=f"Taken from {path.name}; not trained and not evaluated here.",
            license="that of the source", parameters=parameters,
        ),
    )  # fmt: skip
    bundle = adoption.adopt(
        model, exposed, facts, lambda written: OnnxFile(written, source), options.models, options.name
    )
    return bundle, lines(exposed, facts, [*said, *done], assumed)


class OnnxGraph:
    """The bundle's graph by onnx's own evaluator, which shares no code with ONNX Runtime."""

    said = "onnx's own evaluator on the bundle's graph"
    pictures = PICTURES

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def arrays(self, pixels: NDArray[np.float32]) -> Outputs:
        return run_whole(self._bundle.graph, pixels, self._bundle.manifest.outputs)

    def limits(self, pixels: NDArray[np.float32]) -> Limits:  # noqa: ARG002 - there is no float64 to compare with
        """As wide as the bundle's tolerance, which its source model had to allow."""
        usual, promised = Limits(), self._bundle.manifest.tolerance.get(PROVIDER, {})
        return Limits(*(max(getattr(usual, kind), promised.get(kind, 0.0)) for kind in usual._fields))


class OnnxFile(OnnxGraph):
    """The same, but for the logits, which come from the file that was given."""

    said = "the file's own graph through ONNX Runtime, nothing optimised (logits), and onnx's own evaluator (the rest)"

    def __init__(self, bundle: Bundle, source: Answer) -> None:
        super().__init__(bundle)
        self._source = source

    def arrays(self, pixels: NDArray[np.float32]) -> Outputs:
        return {**super().arrays(pixels), **self._source(pixels)}


def reference_of(bundle: Bundle) -> OnnxGraph:
    """Without the file: the bundle alone."""
    return OnnxGraph(bundle)


def _source(path: Path, logits: str, *, last: bool) -> Answer:
    """(n, 3, H, W) -> logits of the file as it is, picture by picture: its batch may be one."""
    proto = onnx.load(str(path), load_external_data=False)
    if logits not in [output.name for output in proto.graph.output]:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, None))
    answer = open_graph(proto.SerializeToString(), folder=path.parent, optimised=False, only=(logits,))

    def logits_alone(pixels: NDArray[np.float32]) -> Outputs:
        given = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) if last else pixels
        rows = [answer(given[index : index + 1])[logits] for index in range(len(given))]
        return {LOGITS: np.concatenate(rows)}

    return logits_alone


def _channels_last(model: ir.Model) -> bool:
    shape = model.graph.inputs[0].shape
    return shape is not None and len(shape) == 4 and shape[3] == 3 and shape[1] != 3


def _value(model: ir.Model, name: str) -> ir.Value:
    for node in model.graph:
        for value in node.outputs:
            if value.name == name:
                return value
    raise DataError(f"the logits {name} are gone after the graph was taken apart")


def _checksums(paths: list[Path]) -> dict[str, str]:
    sums = {}
    for path in paths:
        with path.open("rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums

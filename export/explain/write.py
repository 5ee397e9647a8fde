"""An ONNX file made of another one: held to what that gives, and there whole or not at all."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from export.explain.relevance import CLASS_INDEX, TOP
from export.graph.read import external_files
from export.runtime import PROVIDER
from saccade.errors import BundleError, DataError

_WITHIN = 2**31 - 2**26
"""Bytes of weights that a file of 2 GiB, which protobuf allows, has room for beside the graph."""
_APART = 1e-3
"""By so much, of the greatest number of an output, it may differ from the file's."""


class Written(NamedTuple):
    """What was written."""

    data: Path | None
    """The file of weights; None: they are within the graph."""
    apart: float
    """The largest difference from an output of the source, relative to the greatest number of that."""


def check_free(out: Path) -> None:
    """Raises DataError where there is something already."""
    for file in (out, _data(out)):
        if file.exists() or file.is_symlink():
            raise DataError(f"{file} exists already: remove it, or give another place by --out")


def write_beside(model: ir.Model, source: Path, out: Path, outputs: Sequence[str]) -> Written:
    """Writes the model to `out`; its weights within, or beside it where they are so in the source or are too many.

    `outputs` are those that it must give as the source does. Raises DataError, BundleError; then nothing is written.
    """
    model.ir_version = 10
    beside = bool(external_files(source)) or _bytes(model) > _WITHIN
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".relevance-", dir=out.parent))
    except OSError as error:
        raise DataError(f"could not write {out}: {error.strerror}") from error
    try:
        draft = scratch / out.name
        ir.save(model, draft, external_data=_data(out).name if beside else None)
        apart = _compared(source, draft, outputs)
        check_free(out)
        _move([*([_data(draft)] if beside else []), draft], out.parent)
    except OSError as error:
        raise DataError(f"could not write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Written(_data(out) if beside else None, apart)


def _data(out: Path) -> Path:
    return out.with_name(f"{out.name}.data")


def _bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def _move(files: Sequence[Path], folder: Path) -> None:
    """The graph last: with it there, all is there."""
    moved: list[Path] = []
    try:
        for file in files:
            file.chmod(0o644)
            moved.append(file.replace(folder / file.name))
    except OSError:
        for file in moved:
            file.unlink(missing_ok=True)
        raise


def _compared(source: Path, draft: Path, outputs: Sequence[str]) -> float:
    """Through ONNX Runtime, for a picture of noise. Raises BundleError where they differ."""
    of_source, session = _session(source), _session(draft)
    theirs, ours = of_source.get_inputs()[0], session.get_inputs()[0]
    pixels = np.random.default_rng(0).standard_normal((1, *ours.shape[1:])).astype(np.float32)
    last = theirs.shape[3] == 3 and theirs.shape[1] != 3
    expected = _run(of_source, source, outputs, {theirs.name: pixels.transpose(0, 2, 3, 1) if last else pixels})
    found = _run(session, draft, outputs, {ours.name: pixels, CLASS_INDEX: np.array([[TOP]])})
    worst = 0.0
    for name, one, other in zip(outputs, found, expected, strict=True):
        size = float(np.abs(other).max(initial=0)) or 1.0
        apart = float(np.abs(one - other).max(initial=0)) / size if one.shape == other.shape else np.inf
        if not apart <= _APART:
            raise BundleError(
                f"the output {name} differs by {apart:.1e} from that of {source}; {_APART:.0e} is allowed"
            )
        worst = max(worst, apart)
    return worst


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # of a file whose outputs have another shape than it says, it warns
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER], enable_fallback=0)
    except Exception as error:  # its exceptions share no base class with each other
        raise BundleError(f"ONNX Runtime does not load {path}: {error}") from error


def _run(
    session: onnxruntime.InferenceSession, path: Path, outputs: Sequence[str], given: Mapping[str, NDArray[Any]]
) -> list[NDArray[np.float64]]:
    try:
        return [np.asarray(one, np.float64) for one in session.run(outputs, given)]
    except Exception as error:  # as above
        raise BundleError(f"ONNX Runtime does not run {path}: {error}") from error

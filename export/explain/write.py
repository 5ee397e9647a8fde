"""An ONNX file made of another one: held to what that gives, and there whole or not at all."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from export.explain.relevance import TOP
from export.graph.read import external_files
from export.runtime import open_graph, open_relevance
from saccade.errors import BundleError, DataError

WITHIN = 2**31 - 2**26
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
    """Raises DataError where there is something already, or no folder for it. For before anything long is begun."""
    if not out.parent.is_dir():
        raise DataError(f"{out} cannot be written: there is no folder {out.parent}")
    for file in (out, _data(out)):
        if file.exists() or file.is_symlink():
            raise DataError(f"{file} exists already: remove it, or give another place by --out")


def write_beside(model: ir.Model, source: Path, out: Path, outputs: Sequence[str], *, within: int = WITHIN) -> Written:
    """Writes the model to `out`; its weights within, or beside it where they are so in the source or have more bytes
    than may be `within`.

    `outputs` are those that it must give as the source does. Raises DataError, BundleError; then nothing is written.
    """
    model.ir_version = 10
    beside = bool(external_files(source)) or _bytes(model) > within
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".relevance-", dir=out.parent))
    except OSError as error:
        raise DataError(f"could not write {out}: {error.strerror}") from error
    try:
        draft = scratch / out.name
        ir.save(model, draft, external_data=_data(out).name if beside else None)
        apart = _compared(source, draft, _noise(model), outputs)
        check_free(out)
        _move([*([_data(draft)] if beside else []), draft], out.parent)
    except OSError as error:
        raise DataError(f"could not write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Written(_data(out) if beside else None, apart)


def _noise(model: ir.Model) -> NDArray[np.float32]:
    """One picture, as the graph takes it."""
    shape = model.graph.inputs[0].shape
    assert shape is not None
    size = [length for length in shape[1:] if isinstance(length, int)]
    return np.random.default_rng(0).standard_normal((1, *size)).astype(np.float32)


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


def _compared(source: Path, draft: Path, pixels: NDArray[np.float32], outputs: Sequence[str]) -> float:
    """Through ONNX Runtime. Raises BundleError where they differ."""
    proto = onnx.load(str(source), load_external_data=False)
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")  # of one that is not the right one, ONNX Runtime warns
    own = {tensor.name for tensor in proto.graph.initializer}
    (taken,) = [one for one in proto.graph.input if one.name not in own]
    shape = [one.dim_value for one in taken.type.tensor_type.shape.dim]
    last = shape[3] == 3 and shape[1] != 3
    answer = open_graph(proto.SerializeToString(), only=tuple(outputs), folder=source.parent)
    expected = answer(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) if last else pixels)
    found = open_relevance(draft)(pixels, np.array([[TOP]]))
    worst = 0.0
    for name in outputs:
        theirs, ours = (np.asarray(one[name], np.float64) for one in (expected, found))
        if theirs.shape != ours.shape:
            raise BundleError(
                f"the output {name} is {list(ours.shape)} and not {list(theirs.shape)}, as {source} has it"
            )
        apart = float(np.abs(ours - theirs).max(initial=0) / (np.abs(theirs).max(initial=0) or 1))
        if not apart <= _APART:
            raise BundleError(
                f"the output {name} differs by {apart:.1e} from that of {source}; {_APART:.0e} is allowed"
            )
        worst = max(worst, apart)
    return worst

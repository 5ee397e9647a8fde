"""An ONNX file from anywhere, read with care: nothing outside of its folder is touched, nothing is unpickled."""

import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message

from saccade.errors import DataError


def read_model(path: Path) -> ir.Model:
    """The model, its external data checked and mapped. Raises DataError where the file is none, or reaches outside."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"could not read {path}: {error.strerror}") from error
    if content.startswith((b"PK\x03\x04", b"\x80")):
        raise DataError(f"{path} is a pickle, as torch.save writes them, and none is opened: give ONNX")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise DataError(f"{path} is no ONNX file, or it is cut off: {error}") from error
    if not proto.graph.node or not proto.graph.output:
        raise DataError(f"{path} is no ONNX model: it has {len(proto.graph.node)} nodes and no output")
    for message in _messages(proto):
        _check_text(path, message)
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(path, tensor)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # of a broken graph it warns; ONNX Runtime refuses it in words
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # of the reader; its exceptions share no base class
        raise DataError(f"{path} is no valid ONNX model: {error}") from error
    ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def external_files(path: Path) -> list[Path]:
    """The files beside `path` that hold its tensors."""
    proto = onnx.ModelProto.FromString(path.read_bytes())
    return sorted({path.parent / _location(tensor) for tensor in _tensors(proto)
                   if tensor.data_location == onnx.TensorProto.EXTERNAL})  # fmt: skip


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All of them, wherever they stand: initializers, attributes, branches, functions."""
    return (message for message in _messages(proto) if isinstance(message, onnx.TensorProto))


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if isinstance(value, Message) else value:
                yield from _messages(child)


def _check_text(path: Path, message: Message) -> None:
    """Protobuf gives a name that is no UTF-8 as bytes."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            broken = [one for one in ([value] if isinstance(value, str | bytes) else value) if isinstance(one, bytes)]
            if broken:
                raise DataError(f"{path} is no ONNX file, or it is broken: {broken[0]!r} in it is no text")


def _location(tensor: onnx.TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _check_external(path: Path, tensor: onnx.TensorProto) -> None:
    said = {entry.key: entry.value for entry in tensor.external_data}
    location = said.get("location", "")
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive
    file = path.parent / location
    link = DataError(f"{path}: the tensor {tensor.name!r} is in {location}, and it is a link: copy the file itself "
                     "beside the graph")  # fmt: skip
    if any(one.is_symlink() for one in (file, *file.parents) if path.parent in one.parents):
        raise link
    if not location or absolute or not file.resolve().is_relative_to(path.parent.resolve()):
        raise DataError(f"{path}: the tensor {tensor.name!r} is at {location!r}, which is out of the model's folder")
    if not file.is_file():
        raise DataError(f"{path}: the tensor {tensor.name!r} is in {location}, and there is no such file beside it")
    if file.stat().st_nlink > 1:  # as readers of ONNX have it: a second name may be out of the folder
        raise link
    try:
        offset, length = int(said.get("offset", 0)), int(said.get("length", 0))
    except ValueError as error:
        raise DataError(f"{path}: the tensor {tensor.name!r} says no place in {location}: {error}") from error
    size = file.stat().st_size
    if offset < 0 or length < 0 or offset + length > size:
        end = offset + length
        raise DataError(f"{path}: the tensor {tensor.name!r} ends at byte {end} of {location}, which has {size}")

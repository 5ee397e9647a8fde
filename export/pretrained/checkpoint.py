"""A folder of transformers' -> its configuration, labels and eager model. JSON and safetensors are read, nothing else.

transformers itself renames the tensors of published checkpoints to those of its own modules; it is given what was read
here, and never the folder, so no other file of it can come in.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from export.finite import check_finite
from export.pretrained.library import transformers
from export.pretrained.preprocessing import FILES as PROCESSOR_FILES
from saccade.errors import DataError

CONFIGURATION = "config.json"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

ARCHITECTURES = (
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "BeitForImageClassification",
    "Dinov2ForImageClassification",
    "Dinov2WithRegistersForImageClassification",
    "SwinForImageClassification",
    "Swinv2ForImageClassification",
    "ResNetForImageClassification",
    "ConvNextForImageClassification",
    "ConvNextV2ForImageClassification",
    "MobileViTForImageClassification",
)
"""Every one of these is held to the framework in tests/export/pretrained."""

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")

MOST_LABELS = 1_000_000
"""More are a damaged number, which would fill the memory with names."""

State = dict[str, Tensor]

_FLOATS = {"F16": "float16", "BF16": "bfloat16", "F64": "float64", "F8_E4M3": "float8", "F8_E5M2": "float8"}
"""As safetensors calls them, but for float32."""


class Checkpoint(NamedTuple):
    """What was read of a folder."""

    configuration: dict[str, Any]  # config.json
    processor: dict[str, Any]  # file name -> content, of those that are there
    weights: tuple[Path, ...]
    files: dict[str, str]  # name -> sha256 of everything read

    @property
    def architecture(self) -> str:
        return architecture_of(self.configuration)

    @property
    def model_type(self) -> str:
        return str(self.configuration.get("model_type", ""))

    def without_labels(self, count: int) -> dict[str, Any]:
        """The configuration as the manifest keeps it, which has `count` labels already: enough for `model_of`."""
        kept = {key: value for key, value in self.configuration.items() if key not in ("id2label", "label2id")}
        return {**kept, "num_labels": count}


def read_checkpoint(folder: Path) -> Checkpoint:
    """Raises DataError for what is missing, damaged, pickled, or an architecture that is not supported."""
    configuration = _read_json(folder / CONFIGURATION)
    architecture_of(configuration)
    processor = {name: _read_json(folder / name) for name in PROCESSOR_FILES if (folder / name).is_file()}
    weights = _weight_files(folder)
    read = [folder / CONFIGURATION, *(folder / name for name in processor), *weights]
    return Checkpoint(configuration, processor, weights, {path.name: sha256(path) for path in read})


def architecture_of(configuration: Mapping[str, Any]) -> str:
    """The class that the configuration names. Raises DataError unless it is one of ARCHITECTURES."""
    named = configuration.get("architectures")
    name = named[0] if isinstance(named, list) and named else "none"
    if name not in ARCHITECTURES:
        raise DataError(f"the checkpoint's architecture is {name}; supported are {', '.join(ARCHITECTURES)}")
    return str(name)


def labels_of(configuration: Mapping[str, Any]) -> tuple[str, ...]:
    """By number, from id2label; without one, of num_labels, as transformers names them. Raises DataError."""
    given = configuration.get("id2label")
    if not isinstance(given, dict) or not given:
        count = configuration.get("num_labels", 2)
        if type(count) is not int or not 1 <= count <= MOST_LABELS:
            raise DataError(
                f"num_labels of {CONFIGURATION} must be a whole number from 1 to {MOST_LABELS}, not {count!r}"
            )
        given = {number: f"LABEL_{number}" for number in range(count)}
    try:
        numbered = {int(number): str(label) for number, label in given.items()}
    except ValueError as error:
        raise DataError(f"id2label of {CONFIGURATION} must have whole numbers as keys: {error}") from error
    if sorted(numbered) != list(range(len(numbered))):
        raise DataError(f"id2label of {CONFIGURATION} must number its {len(numbered)} labels from 0, without gaps")
    return tuple(numbered[number] for number in range(len(numbered)))


def scores_of(configuration: Mapping[str, Any], count: int) -> Literal["softmax", "sigmoid"]:
    """What makes scores of the logits, from problem_type. Raises DataError for a regression."""
    problem = configuration.get("problem_type")
    if problem == "multi_label_classification":
        return "sigmoid"
    if problem == "regression" or count == 1:
        raise DataError(f"the checkpoint has {count} outputs and problem_type {problem}: it is no classifier")
    return "softmax"


def read_weights(paths: tuple[Path, ...]) -> State:
    """All tensors by the names in the files, as float32 where they are floating; none has NaN. Raises DataError."""
    state: State = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                given = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except OSError as error:
            raise DataError(f"could not read {path}: {error.strerror or error}") from error
        except SafetensorError as error:
            raise DataError(f"{path} is {_instead_of_safetensors(path)}: {error}") from error
        plain = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in given.items()}
        check_finite(path, ((name, tensor.numpy()) for name, tensor in plain.items()))
        state |= plain
    return state


def widened(paths: tuple[Path, ...]) -> list[str]:
    """A sentence about weights in other precisions than float32, which `read_weights` widens (or rounds, float64)."""
    kinds = set()
    for path in paths:
        with safe_open(path, framework="pt") as file:
            kinds |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
    others = sorted(_FLOATS[kind] for kind in kinds & _FLOATS.keys())
    return [f"weights that are stored as {', '.join(others)} are float32 in the bundle"] if others else []


def unlike(given: Tensor, own: Tensor) -> str | None:
    """Why a parameter cannot take a tensor of another kind of number; None: it can."""
    if given.is_floating_point() == own.is_floating_point() and given.is_complex() == own.is_complex():
        return None
    return f"{_kind(given)}, not {_kind(own)}"


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _instead_of_safetensors(path: Path) -> str:
    beginning = b""
    with suppress(OSError), path.open("rb") as file:
        beginning = file.read(2)
    if beginning == b"PK" or beginning[:1] == b"\x80":  # torch.save, since 1.6 and before
        return (
            "pickled, which can run code and is never read (where you trust it, "
            "safetensors.torch.save_file(torch.load(PATH, weights_only=True), NEW) writes safetensors)"
        )
    return "not a whole safetensors file"


def model_of(configuration: Mapping[str, Any], state: State) -> nn.Module:
    """The eager model in evaluation mode. Raises DataError naming what is missing or does not fit."""
    if "quantization_config" in configuration:
        raise DataError("the checkpoint is quantised (quantization_config): take the float one it was made from")
    model_class = getattr(transformers(), architecture_of(configuration))
    with _quiet():
        try:
            config = model_class.config_class.from_dict(_plain(configuration))
            model, seen = model_class.from_pretrained(
                None, config=config, state_dict=dict(state), dtype=torch.float32, attn_implementation="eager",
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
        except Exception as error:  # configurations and modules raise nearly everything
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise DataError(
                f"{CONFIGURATION} makes no {model_class.__name__}; what transformers met with it: {reason}"
            ) from error
    own = model.state_dict()
    mismatched = [f"{name} is {tuple(there)}, not {tuple(wanted)}" for name, there, wanted in seen["mismatched_keys"]]
    mismatched += [f"{key} is {kind}" for key in state if key in own and (kind := unlike(state[key], own[key]))]
    problems = mismatched + [f"{name} is missing" for name in sorted(seen["missing_keys"])]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise DataError(f"the weights are not those of a {model_class.__name__}: {shown}")
    return model.eval()


def _plain(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Without what would have code of the checkpoint's run, or another attention taken."""
    left_out = ("auto_map", "attn_implementation", "_attn_implementation", "torch_dtype", "dtype")
    return {key: value for key, value in configuration.items() if key not in left_out}


def _weight_files(folder: Path) -> tuple[Path, ...]:
    if (folder / WHOLE).is_file():
        return (folder / WHOLE,)
    if (folder / INDEX).is_file():
        mapping = _read_json(folder / INDEX).get("weight_map")
        named = list(mapping.values()) if isinstance(mapping, dict) else []
        there = {path.name for path in folder.iterdir() if path.is_file()}
        for name in named:
            if not isinstance(name, str) or name not in there:
                raise DataError(f"the weight_map of {folder / INDEX} names {name!r}, which is not in the folder")
        names = sorted(set(named))
        if names:
            return tuple(folder / name for name in names)
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise DataError(
            f"{folder} has {', '.join(pickled)} and no {WHOLE}: pickled weights can run code and are never read; "
            "where you trust them, AutoModelForImageClassification.from_pretrained(DIR).save_pretrained(DIR) writes one"
        )
    raise DataError(f"{folder} has no {WHOLE}, and no {INDEX} with its parts")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"could not read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports: what is wrong becomes an error here."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

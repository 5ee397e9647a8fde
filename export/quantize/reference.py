"""What a variant is held to: its own graph by another engine, and its parent."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from export.head import head_of
from export.names import INPUT, LOGITS
from export.quantize.agreement import BATCH, Batch, answers, compare
from export.quantize.choose import Bounds
from export.reference import Limits, Outputs
from export.runtime import open_graph
from saccade.bundle import WEIGHTS, Bundle, open_bundle
from saccade.errors import BundleError, DataError
from saccade.golden import SEED, made_pictures
from saccade.manifest import Measured, Parent, Precision
from saccade.preprocess import normalize

ROUNDING: dict[Precision, float] = {"int8": 1e-6, "float16": 2**-11}
"""Relative: sixteen roundings of float32, and one of float16."""
SEEDS = range(4)


class VariantOf:
    """The variant's graph by onnx's own evaluator, which shares no code with ONNX Runtime; float16 in float32."""

    pictures = 16

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, manifest = bundle, bundle.manifest
        widened = " in float32" if manifest.precision == "float16" else ""
        self.said = f"the variant's own graph by onnx's evaluator{widened}"
        self._evaluator = ReferenceEvaluator(_widened(onnx.load(str(bundle.graph))))

    def arrays(self, pixels: NDArray[np.float32]) -> Outputs:
        names = list(self._bundle.manifest.outputs)
        rows: list[Any] = [self._evaluator.run(names, {INPUT: pixels[at : at + 1]}) for at in range(len(pixels))]
        return {name: np.concatenate([row[at] for row in rows]) for at, name in enumerate(names)}

    def limits(self, pixels: NDArray[np.float32]) -> Limits:
        """Twice as far as the answers move when every constant of the graph is off by some roundings.

        An activation half-way between two codes falls to one side or the other by the last bit of what came before, and
        that bit is another on other processors. What a difference of a whole code does to the answers is measured.
        """
        manifest, usual = self._bundle.manifest, Limits()
        spec = manifest.preprocessing
        golden = normalize(made_pictures(4, spec.height, spec.width, SEED), spec)  # those too are held to the limits
        pixels = np.concatenate([pixels, golden])
        layers = [layer.output for layer in manifest.attention]
        exact = open_graph(self._bundle.graph, only=manifest.outputs)(pixels)
        moved: dict[str, float] = dict.fromkeys(usual._fields, 0.0)
        for seed in SEEDS:
            shaken = _shaken(self._bundle.graph, ROUNDING[manifest.precision], seed)
            near = open_graph(shaken, only=manifest.outputs)(pixels)
            apart = {name: float(np.abs(near[name] - exact[name]).max()) for name in near}
            moved["logits"] = max(moved["logits"], apart[LOGITS])
            moved["attention"] = max(moved["attention"], *(apart[name] for name in layers), 0.0)
            moved["pooling"] = max(moved["pooling"], apart.get(manifest.maps.pooling or "", 0.0))
        return usual._replace(**{kind: max(getattr(usual, kind), 2 * most) for kind, most in moved.items()})


def check_options(bundle: Bundle, **given: object) -> None:
    """Raises DataError where a variant is to be held to the source of its parent."""
    parent = bundle.manifest.parent
    assert parent is not None
    for option, value in given.items():
        if value is not None:
            raise DataError(
                f"--{option.replace('_', '-')} says nothing of {bundle.manifest.id}, a variant of {parent.id}: hold "
                f"{parent.id} to it"
            )


def parent_of(bundle: Bundle) -> Bundle | None:
    """The bundle that a variant was made of, where it lies in the same folder of models. Raises BundleError where that
    is another, or is damaged.
    """
    parent = bundle.manifest.parent
    assert parent is not None
    folder = bundle.folder.parent.parent / parent.name / str(parent.version)
    if not folder.is_dir():
        return None
    found = open_bundle(folder)
    seen = found.manifest.files[WEIGHTS].sha256
    if seen != parent.weights_sha256:
        raise BundleError(
            f"{bundle.manifest.id} was made of {parent.id} with weights of sha256 {parent.weights_sha256}; those of "
            f"{folder} have {seen}"
        )
    return found


def parent_checks(bundle: Bundle, pixels: NDArray[np.float32]) -> tuple[dict[str, Measured], str]:
    """(how far each map's rank correlation with the parent's is from 1, and what is said of the parent).

    Allowed is what the command allows; of a variant that was written all the same, twice what its card admits.
    """
    manifest, parent = bundle.manifest, parent_of(bundle)
    assert manifest.parent is not None
    if parent is None:
        return {}, f"its parent {manifest.parent.id} is not in this folder of models"
    count = np.zeros(len(pixels), np.int64)
    batches: list[Batch] = [(pixels[at : at + BATCH], count[at : at + BATCH]) for at in range(0, len(pixels), BATCH)]
    theirs = answers(open_graph(parent.graph, only=manifest.outputs), parent.manifest, head_of(parent), batches)
    found = compare(open_graph(bundle.graph, only=manifest.outputs), manifest, head_of(bundle), batches, theirs)
    card = manifest.card.variant
    admitted = {} if card is None else card.maps
    checks = {
        f"rank correlation with the parent's {name}, short of 1": Measured(
            largest=max(0.0, 1 - value), allowed=_allowed(admitted.get(name, 1.0))
        )
        for name, value in found.maps.items()
    }
    return checks, f"and against its parent {manifest.parent.id}"


def identity_of(bundle: Bundle) -> Parent:
    """As a variant's manifest names it."""
    manifest = bundle.manifest
    return Parent(name=manifest.name, version=manifest.version, weights_sha256=manifest.files[WEIGHTS].sha256)


def _allowed(admitted: float) -> float:
    least = Bounds().maps
    return 1 - least if admitted >= least else min(2.0, 2 * (1 - admitted))


def _widened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers, half precision read as float32: numpy multiplies float16 a number at a time."""
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for tensor in proto.graph.initializer:
        if tensor.data_type == half:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
            )
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                attribute.i = full
    return proto


def _shaken(graph: Path, size: float, seed: int) -> bytes:
    """The graph with every constant of floating point off by a random share of itself, `size` as standard deviation."""
    model, generator = ir.load(graph), np.random.default_rng(seed)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        values = np.array(value.const_value.numpy())
        if value.const_value.dtype.is_floating_point():
            noise = 1 + size * generator.standard_normal(values.shape)
            values = np.asarray(values * noise).astype(values.dtype)
        value.const_value = ir.Tensor(values, name=value.name)
    content: bytes = ir.to_proto(model).SerializeToString()
    return content

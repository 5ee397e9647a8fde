"""What a variant has of its parent, and how near it has to stay."""

from textwrap import shorten
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.head import head_of
from export.quantize.agreement import BATCH, Agreement, Batch, answer_of, answers, compare
from export.quantize.choose import Bounds
from export.quantize.float16 import to_float16
from export.quantize.float_graph import array, float_graph, weighted_nodes
from export.quantize.int8 import calibrated_values, to_int8
from export.quantize.ranges import Step
from saccade.bundle import WEIGHTS, Bundle, open_bundle
from saccade.errors import BundleError
from saccade.manifest import Maps, Measured, Parent

SAME = ("labels", "scores", "temperature", "preprocessing", "attention", "pooling", "provenance")
"""Of the manifest; its maps too, see `_of_model`."""
SAME_ON_CARD = ("license", "limits", "parameters", "macs", "training")
APART = 0.8
"""Of the logits (see `Agreement.logits`), whatever the card admits. Made pictures are unlike those that it was
calibrated on; logits that have nothing to do with the parent's are 1 away, or more."""
OTHER_LABELS = 0.3
"""Share of so few pictures, for the same reason: some lie on the line between two labels."""


def identity_of(bundle: Bundle) -> Parent:
    """As a variant's manifest names it."""
    manifest = bundle.manifest
    return Parent(name=manifest.name, version=manifest.version, weights_sha256=manifest.files[WEIGHTS].sha256)


def parent_of(bundle: Bundle) -> Bundle | None:
    """The bundle that a variant was made of, where it lies in the same folder of models. Raises BundleError where that
    is another, is damaged, or is a variant itself.
    """
    parent = bundle.manifest.parent
    assert parent is not None
    folder = bundle.folder.parent.parent / parent.name / str(parent.version)
    if not folder.is_dir():
        return None
    found = open_bundle(folder)
    if found.manifest.parent is not None:
        raise BundleError(f"{bundle.manifest.id} names {parent.id} as its parent, which is a variant itself")
    seen = found.manifest.files[WEIGHTS].sha256
    if seen != parent.weights_sha256:
        raise BundleError(
            f"{bundle.manifest.id} was made of {parent.id} with weights of sha256 {parent.weights_sha256}; those of "
            f"{folder} have {seen}"
        )
    return found


def parent_checks(bundle: Bundle, pixels: NDArray[np.float32]) -> tuple[dict[str, Measured], str]:
    """(how far labels, logits and each map's order are from the parent's, and what is said of the parent).

    Allowed is what the command allows, or twice what the card admits, whichever is more; of a variant that was written
    whatever it loses, nothing of that is asked. Raises BundleError where the manifest, or a number of the graph, is not
    what quantising the parent gives.
    """
    manifest, parent = bundle.manifest, parent_of(bundle)
    assert manifest.parent is not None
    if parent is None:
        return {}, f"its parent {manifest.parent.id} is not in this folder of models"
    _check_manifest(bundle, parent)
    _check_graph(bundle, parent)
    said, card = f"and against its parent {manifest.parent.id}", manifest.card.variant
    if card is None:
        raise BundleError(f"{manifest.id} has a parent and no card of what it lost against it")
    if card.anyway:
        return {}, f"{said}, whose labels and maps it may miss: it was written whatever it loses"
    found = agreement_with(parent, bundle, pixels)
    if min(card.maps.values(), default=1.0) < Bounds().maps:
        raise BundleError(f"{manifest.id} has a card that admits more than is ever written but with --anyway")
    if found.lacking:
        raise BundleError(
            f"{manifest.id} gives no numbers in {', '.join(found.lacking)}, which {parent.manifest.id} does"
        )
    short = {
        f"rank correlation with the parent's {name}": (value, card.maps.get(name, 1.0))
        for name, value in found.maps.items()
    }
    checks = {
        f"{name}, short of 1": Measured(largest=max(0.0, 1 - value), allowed=allowed(admitted))
        for name, (value, admitted) in short.items()
    }
    checks["same label as the parent, short of 1"] = Measured(largest=1 - found.same_label, allowed=OTHER_LABELS)
    checks["distance of logits from the parent's, relative"] = Measured(largest=found.logits, allowed=APART)
    return checks, said


def agreement_with(parent: Bundle, bundle: Bundle, pixels: NDArray[np.float32]) -> Agreement:
    """On pictures (n, 3, H, W) of no known label: those figures say nothing."""
    labels = np.zeros(len(pixels), np.int64)
    batches: list[Batch] = [(pixels[at : at + BATCH], labels[at : at + BATCH]) for at in range(0, len(pixels), BATCH)]
    theirs = answers(answer_of(parent), parent.manifest, head_of(parent), batches)
    return compare(answer_of(bundle), bundle.manifest, head_of(bundle), batches, theirs)


def allowed(admitted: float) -> float:
    """Of a figure that is 1 at best: how far from 1 it may be where the card has `admitted`."""
    return max(1 - Bounds().maps, 2 * (1 - admitted))


def _check_manifest(bundle: Bundle, parent: Bundle) -> None:
    ours, theirs = bundle.manifest, parent.manifest
    fields = [(name, getattr(ours, name), getattr(theirs, name)) for name in SAME]
    fields.append(("maps", _of_model(ours.maps), _of_model(theirs.maps)))
    fields += [(f"card.{name}", getattr(ours.card, name), getattr(theirs.card, name)) for name in SAME_ON_CARD]
    for name, seen, expected in fields:
        if seen != expected:
            values = [shorten(str(value), 200, placeholder=" …") for value in (seen, expected)]
            raise BundleError(f"{ours.id} has {name} {values[0]}; its parent {theirs.id} has {values[1]}")


def _of_model(maps: Maps) -> Maps:
    """Without those of relevance.onnx, which either may be without and whose own check it is what can be had."""
    return maps.model_copy(update={"gradients": None, "why_not": {}})


def _check_graph(bundle: Bundle, parent: Bundle) -> None:
    """The parent, quantised again with the variant's steps of activations, gives its every number to the last bit, and
    its nodes, whatever the values between them are called.
    """
    graph = ir.load(bundle.graph).graph
    ours = {name: array(value) for name, value in graph.initializers.items()}
    again = _again(bundle, parent, ours)
    expected = {name: array(value) for name, value in again.graph.initializers.items()}
    changed = sorted(name for name in ours.keys() | expected.keys()
                     if name not in ours or name not in expected or not _equal(ours[name], expected[name]))  # fmt: skip
    if not changed:
        for seen, whole in zip(head_of(bundle) or (), head_of(parent) or (), strict=True):
            if not np.array_equal(seen, whole):  # the class map takes them from the file, not from the graph
                changed = ["the head"]
    if changed:
        raise BundleError(
            f"{bundle.manifest.id} has other numbers in {shorten(', '.join(changed), 300, placeholder=' …')} than its "
            f"parent {parent.manifest.id} in {bundle.manifest.precision}"
        )
    if _shape(graph) != _shape(again.graph):
        raise BundleError(
            f"{bundle.manifest.id} has other nodes than its parent {parent.manifest.id} in {bundle.manifest.precision}"
        )


def _shape(graph: ir.Graph) -> list[object]:
    """Operators with their attributes and what they take, then the outputs; values between them by their place."""
    names: dict[ir.Value | None, object] = {None: None}
    names |= {value: value.name for value in (*graph.inputs, *graph.initializers.values())}
    described: list[object] = []
    for place, node in enumerate(graph):
        names |= {value: (place, index) for index, value in enumerate(node.outputs)}
        attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
        described.append((node.domain, node.op_type, [names.get(value) for value in node.inputs], attributes))
    return [*described, [(value.name, names.get(value)) for value in graph.outputs]]


def _again(bundle: Bundle, parent: Bundle, ours: dict[str, NDArray[Any]]) -> ir.Model:
    model = float_graph(parent)
    if bundle.manifest.precision == "float16":
        to_float16(model)
        return model
    nodes = weighted_nodes(model)
    kept = {one.name for one in nodes if one.name in ours and ours[one.name].dtype == np.float32}
    card = bundle.manifest.card.variant
    if card is not None and set(card.in_float) != kept:
        raise BundleError(
            f"{bundle.manifest.id} left {', '.join(sorted(kept)) or 'nothing'} in float32; its card says "
            f"{', '.join(card.in_float) or 'nothing'}"
        )
    steps = {}
    for name in calibrated_values([one for one in nodes if one.name not in kept]):
        scale, zero = (ours.get(f"{name}.{what}") for what in ("scale", "zero_point"))
        if scale is None or zero is None or scale.shape or zero.shape:
            raise BundleError(f"{bundle.manifest.id} in int8 has no step for {name}, which {parent.manifest.id} needs")
        steps[name] = Step(np.float32(scale), np.uint8(zero))
    to_int8(model, steps, kept)
    return model


def _equal(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    return ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f")

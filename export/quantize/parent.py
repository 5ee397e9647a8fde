"""What a variant has of its parent, and how near it has to stay."""

from textwrap import shorten

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.head import head_of
from export.quantize.agreement import BATCH, Agreement, Batch, answers, compare
from export.quantize.choose import Bounds
from export.quantize.float_graph import array, float_graph
from export.runtime import open_graph
from saccade.bundle import WEIGHTS, Bundle, open_bundle
from saccade.errors import BundleError
from saccade.manifest import Measured, Parent

SAME = ("labels", "scores", "temperature", "preprocessing", "attention", "pooling", "maps")
"""Of the manifest."""
APART = 0.8
"""Of the logits (see `Agreement.logits`). Made pictures are unlike those that it was calibrated on; logits that have
nothing to do with the parent's are 1 away, or more."""
OTHER_LABELS = 0.3
"""Share of so few pictures, for the same reason: some lie on the line between two labels."""


def identity_of(bundle: Bundle) -> Parent:
    """As a variant's manifest names it."""
    manifest = bundle.manifest
    return Parent(name=manifest.name, version=manifest.version, weights_sha256=manifest.files[WEIGHTS].sha256)


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
    """(how far labels, logits and each map's order are from the parent's, and what is said of the parent).

    Allowed is what the command allows, or twice what the card admits, whichever is more; of a variant that was written
    whatever it loses, nothing is asked. Raises BundleError where the manifest, or a number that stayed in float32, is
    not the parent's.
    """
    manifest, parent = bundle.manifest, parent_of(bundle)
    assert manifest.parent is not None
    if parent is None:
        return {}, f"its parent {manifest.parent.id} is not in this folder of models"
    _check_manifest(bundle, parent)
    _check_numbers(bundle, parent)
    said, card = f"and against its parent {manifest.parent.id}", manifest.card.variant
    if card is not None and card.anyway:
        return {}, f"{said}, whose labels and maps it may miss: it was written whatever it loses"
    found = agreement_with(parent, bundle, pixels)
    if found.lacking:
        raise BundleError(
            f"{manifest.id} gives no numbers in {', '.join(found.lacking)}, which {parent.manifest.id} does"
        )
    maps, same_label, apart = ({}, 1.0, 0.0) if card is None else (card.maps, card.same_label, card.logits)
    short = {
        f"rank correlation with the parent's {name}": (value, maps.get(name, 1.0)) for name, value in found.maps.items()
    }
    checks = {
        f"{name}, short of 1": Measured(largest=max(0.0, 1 - value), allowed=allowed(admitted))
        for name, (value, admitted) in short.items()
    }
    checks["same label as the parent, short of 1"] = Measured(
        largest=1 - found.same_label, allowed=max(allowed(same_label), OTHER_LABELS)
    )
    checks["distance of logits from the parent's, relative"] = Measured(
        largest=found.logits, allowed=max(APART, 2 * apart)
    )
    return checks, said


def agreement_with(parent: Bundle, bundle: Bundle, pixels: NDArray[np.float32]) -> Agreement:
    """On pictures (n, 3, H, W) of no known label: those figures say nothing."""
    outputs, labels = bundle.manifest.outputs, np.zeros(len(pixels), np.int64)
    batches: list[Batch] = [(pixels[at : at + BATCH], labels[at : at + BATCH]) for at in range(0, len(pixels), BATCH)]
    theirs = answers(open_graph(parent.graph, only=outputs), parent.manifest, head_of(parent), batches)
    return compare(open_graph(bundle.graph, only=outputs), bundle.manifest, head_of(bundle), batches, theirs)


def allowed(admitted: float) -> float:
    """Of a figure that is 1 at best: how far from 1 it may be where the card has `admitted`."""
    return max(1 - Bounds().maps, 2 * (1 - admitted))


def _check_manifest(bundle: Bundle, parent: Bundle) -> None:
    for field in SAME:
        ours, theirs = getattr(bundle.manifest, field), getattr(parent.manifest, field)
        if ours != theirs:
            values = [shorten(str(value), 200, placeholder=" …") for value in (ours, theirs)]
            raise BundleError(
                f"{bundle.manifest.id} has {field} {values[0]}; its parent {parent.manifest.id} has {values[1]}"
            )


def _check_numbers(bundle: Bundle, parent: Bundle) -> None:
    """Whatever is float32 in both: the head, norms, positions, layers that were left as they are."""
    theirs = float_graph(parent).graph.initializers
    changed = []
    for name, value in ir.load(bundle.graph).graph.initializers.items():
        assert value.const_value is not None
        both = name in theirs and value.const_value.dtype == ir.DataType.FLOAT
        if both and not np.array_equal(array(value), array(theirs[name])):
            changed.append(name)
    if not changed:
        for ours, whole in zip(head_of(bundle) or (), head_of(parent) or (), strict=True):
            if not np.array_equal(ours, whole):  # the class map takes them from the file, not from the graph
                changed = ["the head"]
    if changed:
        raise BundleError(
            f"{bundle.manifest.id} has other numbers in {', '.join(changed)} than its parent {parent.manifest.id}; "
            "what stays in float32 is the parent's to the last bit"
        )

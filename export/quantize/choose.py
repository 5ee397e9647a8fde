"""Which nodes stay in float: found by what each of them, quantised alone, does to labels and maps."""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from export.head import Head
from export.quantize.agreement import BATCH, Agreement, Batch, answer_by, answer_of, answers, compare
from export.quantize.float_graph import weighted_nodes
from export.quantize.int8 import to_int8
from export.quantize.ranges import Step
from saccade.bundle import Bundle

RANKING = 256 // BATCH
"""Batches that put the nodes in order: errors, unlike labels, are told by few pictures, and there are many nodes."""


class Bounds(NamedTuple):
    """What a variant may lose."""

    top1: float = 0.005
    """Share of the pictures that its parent is right on."""
    maps: float = 0.95
    """The least rank correlation with the parent's, of each map."""

    def hold(self, found: Agreement) -> bool:
        return not found.lacking and found.lost <= self.top1 and found.worst_map >= self.maps

    def halved(self, pictures: int) -> "Bounds":
        """For choosing by so many: others judge, and may be less kind. One label more or less says nothing."""
        return Bounds(max(self.top1 / 2, 1.5 / pictures), (1 + self.maps) / 2)


def in_float(
    bundle: Bundle,
    head: Head | None,
    graph: Callable[[], ir.Model],
    steps: Mapping[str, Step],
    batches: Sequence[Batch],
    bounds: Bounds,
) -> tuple[str, ...]:
    """The fewest nodes, most sensitive first and each time twice as many, that have to stay for the bounds, halved.

    `graph` makes the parent's float graph anew. Where no number of them is enough, all but the least sensitive.
    """
    manifest = bundle.manifest
    names = list(dict.fromkeys(one.name for one in weighted_nodes(graph())))
    parent = list(answers(answer_of(bundle), manifest, head, batches))

    def without(kept: Collection[str], count: int | None = None) -> Agreement:
        model = graph()
        to_int8(model, steps, kept)
        return compare(answer_by(model, manifest), manifest, head, batches[:count], parent[:count])

    strict = bounds.halved(sum(len(labels) for _, labels in batches))
    if strict.hold(without(())):
        return ()
    errors = {}
    for done, name in enumerate(names, 1):
        errors[name] = _error(without([other for other in names if other != name], RANKING))
        print(f"\r{done}/{len(names)} nodes measured  ", end="", file=sys.stderr)
    print(file=sys.stderr)
    ranked = sorted(names, key=errors.__getitem__, reverse=True)
    count = 1
    while count < len(ranked) - 1 and not strict.hold(without(ranked[:count])):
        count *= 2
    return tuple(ranked[: min(count, len(ranked) - 1)])


def _error(found: Agreement) -> float:
    return np.inf if found.lacking else found.logits + 1 - found.worst_map

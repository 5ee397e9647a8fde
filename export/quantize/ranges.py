"""Calibration: the range of numbers that an activation takes on pictures, so that 8 bits are spread over just that."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.runtime import Answer, open_graph
from saccade.manifest import Preprocessing


class Step(NamedTuple):
    """The code q, uint8, stands for (q - zero) * scale; 0 has a code of its own."""

    scale: np.float32
    zero: np.uint8


def measured_steps(model: ir.Model, names: Sequence[str], batches: Iterable[NDArray[np.float32]]) -> dict[str, Step]:
    """Of the values named, from the least to the greatest number seen on batches (n, 3, H, W)."""
    answer = _observing(model, names)
    low, high = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for batch in batches:
        for name, values in answer(batch).items():
            low[name], high[name] = min(low[name], float(values.min())), max(high[name], float(values.max()))
    return {name: step_between(low[name], high[name]) for name in names}


def step_between(low: float, high: float) -> Step:
    """`low` is 0 or below, `high` 0 or above."""
    scale = np.float32(max((high - low) / 255, float(np.finfo(np.float32).tiny)))
    return Step(scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255)))


def picture_step(spec: Preprocessing) -> Step:
    """Of the graph's input: from black to white, whatever the pictures that were seen."""
    ends = [(value - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True) for value in (0.0, 1.0)]
    return step_between(min(0.0, *ends), max(0.0, *ends))


def _observing(model: ir.Model, names: Sequence[str]) -> Answer:
    """(n, 3, H, W) -> the values named, which need be no outputs of the model."""
    proto = ir.to_proto(model)
    present = {output.name for output in proto.graph.output}
    proto.graph.output.extend(type(proto.graph.output[0])(name=name) for name in names if name not in present)
    return open_graph(proto.SerializeToString(), only=tuple(names))

"""What a bundle that was taken from an ONNX file is held to: that file, or, where it is not at hand, its own graph."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from export.graph.attention import Found
from export.graph.evaluate import run_whole
from export.names import LOGITS
from export.reference import Limits, Outputs
from export.runtime import PROVIDER, Answer, open_graph
from saccade.bundle import Bundle

PICTURES = 16
"""An evaluator in Python takes seconds for one."""


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
        logits = max(usual.logits, promised.get("logits", 0.0))
        attention = max(usual.attention, promised.get("attention", 0.0))
        return Limits(logits, attention, sums=logits, batch=attention)


class OnnxFile:
    """The file's own graph: logits by ONNX Runtime, attention by onnx's own evaluator where the file has it as a value.

    The rest by that evaluator on the bundle's graph. Picture by picture, for the file's batch may be one.
    """

    pictures = PICTURES

    def __init__(self, bundle: Bundle, path: Path, logits: str, attention: Mapping[str, tuple[str, Found]]) -> None:
        """`attention`: output of the bundle -> name of the value of the file that it is made of, and how."""
        manifest = bundle.manifest
        self._bundle, self._name = bundle, logits
        proto = onnx.load(str(path))
        (self._input,) = [
            one for one in proto.graph.input if one.name not in {it.name for it in proto.graph.initializer}
        ]
        self._logits = _through_runtime(path, logits)
        self._evaluator, self._attention = ReferenceEvaluator(proto), _held(proto, attention)
        try:
            self._weights(np.zeros((1, 3, manifest.preprocessing.height, manifest.preprocessing.width), np.float32))
        except Exception:  # of the evaluator, which has not all operators; its exceptions share no base class
            self._attention = {}
        layers = [layer.output for layer in manifest.attention]
        learned = [manifest.maps.pooling] if manifest.maps.pooling else []
        self._rest = [name for name in (*layers, *learned) if name not in self._attention]
        self.said = self._sentence(len(layers))

    def arrays(self, pixels: NDArray[np.float32]) -> Outputs:
        rows = [self._logits(self._given(pixels[index : index + 1]))[self._name] for index in range(len(pixels))]
        logits = {LOGITS: np.concatenate(rows).reshape(len(pixels), -1)}
        rest = run_whole(self._bundle.graph, pixels, self._rest) if self._rest else {}
        return {**logits, **self._weights(pixels), **rest}

    def limits(self, pixels: NDArray[np.float32]) -> Limits:  # noqa: ARG002 - as above
        return Limits()

    def _weights(self, pixels: NDArray[np.float32]) -> Outputs:
        names = [name for name, _ in self._attention.values()]
        parts: dict[str, list[NDArray[np.float32]]] = {output: [] for output in self._attention}
        for index in range(len(pixels) if names else 0):
            values = self._evaluator.run(names, {self._input.name: self._given(pixels[index : index + 1])})
            for (output, (_, found)), value in zip(self._attention.items(), values, strict=True):
                parts[output].append(found.unfolded(value))
        return {output: np.concatenate(part) for output, part in parts.items()}

    def _given(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Channels last where the file wants them so."""
        shape = [one.dim_value for one in self._input.type.tensor_type.shape.dim]
        last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) if last else pixels

    def _sentence(self, layers: int) -> str:
        held = len(self._attention)
        what = "attention" if held == layers else f"attention of {held} of {layers} layers"
        return " and ".join(
            ["the file's own graph through ONNX Runtime, nothing optimised (logits)"]
            + ([f"through onnx's own evaluator ({what})"] if held else [])
            + (["onnx's own evaluator on the bundle's graph (the rest)"] if self._rest else [])
        )


def _held(proto: onnx.ModelProto, attention: Mapping[str, tuple[str, Found]]) -> dict[str, tuple[str, Found]]:
    """Those whose value the file has."""
    made = {name for node in proto.graph.node for name in node.output}
    return {output: source for output, source in attention.items() if source[0] in made}


def _through_runtime(path: Path, logits: str) -> Answer:
    """The logits of the file as it is, nothing optimised."""
    proto = onnx.load(str(path), load_external_data=False)
    if logits not in [output.name for output in proto.graph.output]:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, None))
    return open_graph(proto.SerializeToString(), folder=path.parent, optimised=False, only=(logits,))

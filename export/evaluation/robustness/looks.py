"""A bundle's graph, asked what it sees and where it looked, one map a picture."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from export.finite import check_logits
from export.names import LOGITS
from export.runtime import open_graph
from saccade.bundle import Bundle

Floats = NDArray[np.float32]


class Look(NamedTuple):
    logits: Floats
    """(n, labels)"""
    salience: Floats | None
    """(n, patches)"""


class Looks:
    """Can be asked by several threads at once; each run takes one CPU. Raises BundleError for logits that are not
    finite.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._id = bundle.manifest.id
        self.maps = bundle.manifest.maps
        self.class_map = self.maps.class_map
        self._attention = bundle.manifest.attention
        wanted = (LOGITS, self.maps.rollout, self.class_map and self.class_map.tokens)
        self._graph = open_graph(bundle.graph, threads=1, only=tuple(name for name in wanted if name))
        if self.class_map:
            self._weight = load_file(bundle.weights)[self.class_map.weight].astype(np.float32)

    @property
    def salience(self) -> str | None:
        """What says which patches are salient: rollout, else the class map of the label given; None without a map."""
        return "rollout" if self.maps.rollout else "class map of the label given" if self.class_map else None

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches: of that map, else of the last attention layer that sees the whole picture."""
        if self.maps.rollout:
            return self._attention[-1].grid
        if self.class_map:
            return self.class_map.grid
        return next((layer.grid for layer in reversed(self._attention) if layer.windows is None), None)

    def _answer(self, inputs: Floats) -> dict[str, Floats]:
        outputs = self._graph(inputs)
        check_logits(self._id, outputs[LOGITS])
        return outputs

    def logits(self, inputs: Floats) -> Floats:
        """(n, 3, H, W) -> (n, labels)."""
        return self._answer(inputs)[LOGITS]

    def look(self, inputs: Floats) -> Look:
        """(n, 3, H, W) -> labels, and the map that says which patches are salient."""
        outputs = self._answer(inputs)
        if self.maps.rollout:
            return Look(outputs[LOGITS], outputs[self.maps.rollout])
        if self.class_map is None:
            return Look(outputs[LOGITS], None)
        of_label = self._weight[outputs[LOGITS].argmax(-1)]
        return Look(outputs[LOGITS], np.einsum("npw,nw->np", outputs[self.class_map.tokens], of_label))

    def class_maps(self, inputs: Floats) -> tuple[Floats, Floats]:
        """(n, 3, H, W) -> logits, and M[i, c] of every patch and label: (n, patches, labels)."""
        assert self.class_map is not None
        outputs = self._answer(inputs)
        return outputs[LOGITS], outputs[self.class_map.tokens] @ self._weight.T

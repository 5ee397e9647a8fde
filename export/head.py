"""The last linear layer, whose rows the class map multiplies by."""

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from saccade.bundle import Bundle
from saccade.errors import BundleError

Head = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Weight (classes, width) and bias (classes,)."""


def head_of(bundle: Bundle) -> Head | None:
    """Of the exact class map; a head without a bias has zeros. None where there is no such map. Raises BundleError."""
    class_map = bundle.manifest.maps.class_map
    if class_map is None:
        return None
    tensors = load_file(bundle.weights)
    missing = [name for name in (class_map.weight, class_map.bias) if name is not None and name not in tensors]
    if missing:
        raise BundleError(f"{bundle.weights} has no {', '.join(missing)}; the manifest's class map names it")
    weight = tensors[class_map.weight].astype(np.float64)
    bias = np.zeros(len(weight)) if class_map.bias is None else tensors[class_map.bias].astype(np.float64)
    return weight, bias

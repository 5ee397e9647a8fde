"""How near gradients and maps are to float64 autograd through the source: what docs/explanations.md says in numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from export.eager import logits_of
from export.explain.differentiate import differentiate
from export.explain.relevance import GRAD_ATTENTION, RELEVANCE
from export.explain.source import laid_out, last_features, source_of
from export.graph.adder import Adder
from export.names import INPUT, LOGITS, POOLING
from export.nets import Net
from export.runtime import PROVIDER, open_graph, open_relevance
from saccade.bundle import Bundle
from saccade.manifest import Manifest
from saccade.pooling import pooled_row
from tests.export.explain.autograd import Blocks, Probabilities, by_autograd, gradients, matching, windows_first

Array = NDArray[Any]
GRADIENT, OF_MAPS = 1e-5, 1e-4
"""What is allowed: of a gradient's maximum, and of a map's. Where float32 autograd is rougher, TIMES its error."""
TIMES = 5


class Autograd(NamedTuple):
    """What a source computes, by the outputs of its bundle."""

    values: dict[str, Array]
    """Attention (B, *shape of the layer), pooling (B, tokens), of several heads (B, heads, tokens)."""
    gradients: dict[str, Array]
    """Of every logit by those, (k, B, …)."""


Ask = Callable[[torch.dtype, Array], Autograd]
"""A source, made anew in a type: pixels (B, 3, H, W) -> what it computes."""


class Error(NamedTuple):
    """The largest over pictures, classes and layers, relative to the largest absolute value of each."""

    ours: float
    autograd: float
    """That of autograd in float32."""

    def holds(self, limit: float) -> bool:
        return self.ours <= max(limit, TIMES * self.autograd)


def of_net(rebuild: Callable[[], Net]) -> Ask:
    """One of our nets."""

    def ask(kind: torch.dtype, pixels: Array) -> Autograd:
        net = rebuild().to(kind).eval()
        found = net.explain(torch.from_numpy(pixels).to(kind))
        values = {f"attention_{index:02}": one for index, one in enumerate(found.attention)}
        if found.pooling is not None:
            values[POOLING] = found.pooling
        rows = [
            torch.autograd.grad(found.logits[:, label].sum(), list(values.values()), retain_graph=True)
            for label in range(found.logits.shape[1])
        ]
        stacked = [torch.stack(one).numpy() for one in zip(*rows, strict=True)]
        return Autograd(
            {name: one.detach().numpy() for name, one in values.items()}, dict(zip(values, stacked, strict=True))
        )

    return ask


def of_module(make: Callable[[], nn.Module], bundle: Bundle) -> Ask:
    """A module of a framework; its softmaxes are known by what they are in the bundle's graph."""
    classes, names = len(bundle.manifest.labels), [layer.output for layer in bundle.manifest.attention]
    learned = [POOLING] if bundle.manifest.maps.pooling else []
    graph = open_graph(bundle.graph, only=(*names, *learned))

    def ask(kind: torch.dtype, pixels: Array) -> Autograd:
        if not names:
            return Autograd({}, {})
        seed = torch.eye(classes, dtype=kind)[:, None].expand(classes, len(pixels), classes)
        seen, found = gradients(make().to(kind), torch.from_numpy(pixels).to(kind), seed)
        values = graph(pixels)
        places = dict(zip(names, matching([values[name] for name in names], seen), strict=True))
        pairs = {name: tuple(windows_first(values[name], seen[at], one) for one in (seen[at].detach(), found[at]))
                 for name, at in places.items()}  # fmt: skip
        shapes = {name: values[name].shape for name in names}
        for name in learned:
            at, shapes[name] = _pooling(values[name], seen)
            pairs[name] = seen[at].detach(), found[at]
        return Autograd(
            {name: value.reshape(shapes[name]).numpy() for name, (value, _) in pairs.items()},
            {name: by.reshape(classes, *shapes[name]).numpy() for name, (_, by) in pairs.items()},
        )

    return ask


def _pooling(value: Array, seen: Sequence[Tensor]) -> tuple[int, tuple[int, ...]]:
    """Which softmax the weights of learned pooling (B, tokens) are the mean of, and its shape (B, heads, tokens)."""
    for place, one in enumerate(seen):
        if one.ndim == 4 and one.shape[2:] == (1, value.shape[1]):
            mean = one.detach().squeeze(2).mean(1).numpy()
            if np.allclose(mean, value, atol=1e-3):
                return place, (len(one), one.shape[1], one.shape[3])
    raise AssertionError("no softmax pools as the graph says")


def published(manifest: Manifest, found: Autograd) -> dict[str, Array]:
    """(k, B, P) each, in float64: the product of matrices of Chefer et al. 2021, (I + E_L) … (I + E_1), as it stands
    there, its pooled row without what that puts on the patches itself; and the row of the last E.
    """
    assert manifest.maps.gradients is not None
    last = manifest.attention[-1]

    def evidence(name: str) -> Array:
        return np.maximum(found.gradients[name].astype(np.float64) * found.values[name], 0)

    whole = np.eye(last.tokens)
    of_last = np.zeros(0)
    for name in manifest.maps.gradients.layers:
        of_last = evidence(name).mean(2)
        whole = whole + of_last @ whole
    assert manifest.pooling is not None
    learned = manifest.maps.pooling is not None
    row = evidence(POOLING) if learned else np.broadcast_to(pooled_row(manifest.pooling, last), of_last.shape[:3])
    row = row.mean(2) if row.ndim > 3 else row
    relevance = np.einsum("kbi,kbij->kbj", row, whole) - (0 if learned else row)
    patches = last.patch_slice
    return {
        RELEVANCE: relevance[..., patches],
        GRAD_ATTENTION: np.einsum("kbi,kbij->kbj", row, of_last)[..., patches],
    }


BlocksOf = Callable[[nn.Module], tuple[Sequence[nn.Module], str, tuple[int, ...]]]
"""A source's blocks, the last ones one a layer of the maps, their method that runs, and the axes of the tokens that it
gives.
"""


def legrad(
    make: Callable[[], nn.Module], blocks_of: BlocksOf, bundle: Bundle, pixels: Array, kind: torch.dtype
) -> Array:
    """(k, B, P): the classifier asked behind each block in turn. `make`: a module that gives logits."""
    manifest = bundle.manifest
    assert manifest.maps.gradients is not None
    assert manifest.pooling is not None
    module, count = make().to(kind).eval(), len(manifest.maps.gradients.layers)
    listed, method, axes = blocks_of(module)
    blocks = Blocks(listed[-count:], method, axes)
    names = [layer.output for layer in manifest.attention]
    values = [*open_graph(bundle.graph, only=tuple(names))(pixels).values()]

    def run() -> tuple[Tensor, list[Tensor]]:
        with Probabilities() as mode:
            logits = logits_of(module(torch.from_numpy(pixels).to(kind)))
        return logits, [mode.seen[place] for place in matching(values, mode.seen)[-count:]]

    class_token = manifest.pooling.kind in ("class_token", "class_and_distillation")
    found = by_autograd(run, blocks, range(count), class_token=class_token)
    return found[..., manifest.attention[-1].patch_slice]


def grad_cam(make: Callable[[], nn.Module], bundle: Bundle, pixels: Array, kind: torch.dtype) -> Array:
    """(k, B, P): of the tensor that holds what the graph's last features are, found among all that the module makes."""
    model = _open(bundle)
    features = last_features(model, _output(model, LOGITS))
    _expose(model, {"features": features})
    (expected,) = _session(model).run(["features"], {INPUT: pixels})
    with _Maps() as made:
        logits = logits_of(make().to(kind)(torch.from_numpy(pixels).to(kind)))
    alike = [one for one in made.seen if one.shape == expected.shape
             and np.allclose(one.detach().numpy(), expected, atol=1e-3 * np.abs(expected).max())]  # fmt: skip
    rows = [torch.autograd.grad(one.sum(), alike, retain_graph=True, allow_unused=True) for one in logits.T]
    place = next(index for index, one in enumerate(rows[0]) if one is not None)
    slopes = torch.stack([row[place] for row in rows]).double().mean((3, 4), keepdim=True)
    summed = (slopes * alike[place].detach().double()).sum(2)
    return torch.relu(summed).flatten(2).numpy()


class _Maps(TorchFunctionMode):
    """All results of the shape (B, C, rows, columns) that have a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.ndim == 4 and result.requires_grad:
            self.seen.append(result)
        return result


def gradient_error(bundle: Bundle, ask: Ask, pixels: Array, *, chunk: int = 25) -> Error | None:
    """Of the gradients of every logit by all attention that the bundle gives; None where it gives none."""
    if not bundle.manifest.attention:
        return None
    explain = graph_gradients(bundle)
    worst = Error(0, 0)
    for part in _parts(pixels, chunk):
        found, exact, rough = explain(part), ask(torch.float64, part), ask(torch.float32, part)
        for name, ours in found.items():
            right, other = (one.gradients[name] for one in (exact, rough))
            if right.ndim > ours.ndim:  # of learned pooling by several heads the graph's is their mean
                right, other = right.mean(2), other.mean(2)
            worst = _worse(worst, Error(_relative(ours - right, right), _relative(other - right, right)))
    return worst


def map_errors(
    bundle: Bundle, maps: Callable[[torch.dtype, Array], Mapping[str, Array]], pixels: Array, *, chunk: int = 25
) -> dict[str, Error]:
    """Of those maps of relevance.onnx that `maps` has, of every class: by autograd in a type, (k, B, P)."""
    gradients_, explain = bundle.manifest.maps.gradients, open_relevance(bundle.relevance, threads=1)
    assert gradients_ is not None
    worst: dict[str, Error] = {}
    classes = np.arange(len(bundle.manifest.labels))
    for part in _parts(pixels, chunk):
        seen = explain(part, np.tile(classes, (len(part), 1)))
        exact, rough = maps(torch.float64, part), maps(torch.float32, part)
        for name, right in exact.items():
            ours = seen[name].transpose(1, 0, 2)
            error = Error(_relative(ours - right, right), _relative(rough[name] - right, right))
            worst[name] = _worse(worst.get(name, error), error)
    return worst


def _relative(difference: Array, right: Array) -> float:
    """Of (k, B, …): the largest over classes and pictures. Where all is 0, so must be what is compared with it."""
    flat, size = (np.abs(one).reshape(*right.shape[:2], -1).max(2) for one in (difference, right))
    return float((flat / np.maximum(size, np.finfo(np.float32).tiny)).max())


def _worse(one: Error, other: Error) -> Error:
    return Error(max(one.ours, other.ours), max(one.autograd, other.autograd))


def _parts(pixels: Array, chunk: int) -> Iterator[Array]:
    for start in range(0, len(pixels), chunk):
        yield pixels[start : start + chunk]


def graph_gradients(bundle: Bundle) -> Callable[[Array], dict[str, Array]]:
    """A function: pixels -> the graph's own gradients of every logit by attention and learned pooling, (k, B, *shape of
    the output), by its name. Where the graph computes some rows of a layer only, those of the others are 0.
    """
    model = _open(bundle)
    logits, classes = _output(model, LOGITS), len(bundle.manifest.labels)
    seed = ir.Value(name="seed", shape=ir.Shape(["k", "batch", classes]), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(seed)
    names = [layer.output for layer in bundle.manifest.attention]
    names += [POOLING] if bundle.manifest.maps.pooling else []
    sources = {name: source_of(model, _output(model, name), logits) for name in names}
    found = differentiate(model, {logits: seed}, [one.value for one in sources.values()])
    add = Adder(model)
    given = {f"by {name}": laid_out(add, found[one.value], one.layout) for name, one in sources.items()}
    _expose(model, given)
    session = _session(model)
    places = [one.rows for one in sources.values()]

    def explain(pixels: Array) -> dict[str, Array]:
        one_hot = np.broadcast_to(np.eye(classes, dtype=np.float32)[:, None], (classes, len(pixels), classes))
        results = session.run(list(given), {INPUT: pixels, "seed": one_hot})
        return {name: _all_rows(one, rows) for name, one, rows in zip(names, results, places, strict=True)}

    return explain


def _all_rows(array: Array, rows: slice | None) -> Array:
    if rows is None:
        return array
    whole = np.zeros((*array.shape[:-2], array.shape[-1], array.shape[-1]), array.dtype)
    whole[..., rows, :] = array
    return whole


def _open(bundle: Bundle) -> ir.Model:
    """model.onnx with its weights within."""
    model = ir.load(bundle.graph)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
    return model


def _output(model: ir.Model, name: str) -> ir.Value:
    return next(value for value in model.graph.outputs if value.name == name)


def _expose(model: ir.Model, values: Mapping[str, ir.Value]) -> None:
    for name, value in values.items():
        named = ir.node("Identity", [value], name=f"as {name}")
        model.graph.append(named)
        named.outputs[0].name, named.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(named.outputs[0])


def _session(model: ir.Model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=[PROVIDER])

"""Graphs of one or a few operators, as text, and the same in PyTorch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


class Case(NamedTuple):
    """`nodes` take the inputs, whose batch is `n`, and give `y`."""

    nodes: str
    inputs: dict[str, tuple[Any, ...]]
    function: Callable[..., Tensor]
    constants: dict[str, Any] = {}  # noqa: RUF012 - never changed
    positive: bool = False
    """Numbers above 0 only."""


def weight(*shape: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def double(array: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(array).double()


X = {"x": ("n", 3, 4)}
PICTURE = {"x": ("n", 4, 7, 6)}
W, B, SCALE = weight(4, 5), weight(5, seed=2), np.abs(weight(4, seed=3)) + 0.5
ROWS = weight(5, 4)
MEAN, VARIANCE = weight(4, seed=4), np.abs(weight(4, seed=5)) + 0.5
KERNEL, DEPTH, GROUPS = weight(6, 4, 3, 2), weight(4, 1, 3, 3), weight(6, 2, 3, 3)
TURNED = weight(4, 6, 3, 2)
LINE = weight(6, 4, 3)
MASK = np.array([[True, False, True, True], [False, False, False, False], [True, True, False, True]])
STEP = np.float32(0.01)
CODES = np.random.default_rng(6).integers(-63, 64, (4, 5)).astype(np.int8)
STEPS = np.abs(weight(5, seed=7)) / 63
TINY = (1e-5 * weight(4, 4)).astype(np.float16)
LOWEST = np.where(MASK, 0, -np.inf).astype(np.float32)


SQUARE = weight(4, 4, seed=8)
QKV: dict[str, tuple[Any, ...]] = dict.fromkeys("qkv", ("n", 2, 3, 3))
ATTENTION = "t = Transpose<perm: ints = [0, 1, 3, 2]>(k)\nl = MatMul(q, t)\nd = Div(l, half)\np = Softmax<axis = -1>(d)"
PLACES = {
    **{name: np.array([number]) for name, number in (("zero", 0), ("one", 1), ("two", 2), ("three", 3))},
    "half": np.float32(0.5), "front": np.ones((1, 1, 1, 1, 1), np.float32),
}  # fmt: skip


def attended(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT / 0.5).softmax(-1)


def rounded(x: Tensor, zero: int) -> Tensor:
    """To 8 bits in steps of STEP and cut off there; the gradient passes straight through."""
    step = float(STEP)
    codes = (torch.round(x / step) + zero).clamp(0, 255)
    return x + ((codes - zero) * step - x).detach()


def rounded_relu(x: Tensor) -> Tensor:
    """What rounds to 0 is not let through."""
    seen = rounded(x.relu(), 0)
    return torch.where(seen > 0, seen, 0)


def unary(operator: str, function: Callable[[Tensor], Tensor], *, positive: bool = False) -> Case:
    return Case(f"y = {operator}", X, function, positive=positive)


def sliced(function: Callable[[Tensor], Tensor], starts: Any, ends: Any, axes: Any, steps: Any) -> Case:
    """Starts, ends, axes and steps may be computed: here by Identity."""
    constants = {name: np.array(value) for name, value in
                 {"s": starts, "e": ends, "a": axes, "t": steps}.items()}  # fmt: skip
    return Case("i = Identity(s)\ny = Slice(x, i, e, a, t)", PICTURE, function, constants)


def batch_norm(x: Tensor) -> Tensor:
    constants = (double(array) for array in (MEAN, VARIANCE, SCALE, MEAN))
    return F.batch_norm(x, *constants, eps=float(np.float32(1e-5)))


def guarded(x: Tensor) -> Tensor:
    """What a row of nothing but masked keys gives is 0 by decree."""
    weights = x.masked_fill(~torch.from_numpy(MASK), -torch.inf).softmax(-1)
    keep = torch.from_numpy(MASK).any(-1, keepdim=True)
    return torch.where(keep, x.masked_fill(~torch.from_numpy(MASK), -1e9).softmax(-1), 0 * weights.nan_to_num())


CASES: dict[str, Case] = {
    "Add, another rank": Case("y = Add(x, w)", {**X, "w": (4,)}, torch.add),
    "Add, axes of 1 on both sides": Case("y = Add(x, w)", {"x": ("n", 1, 4), "w": (1, 3, 1)}, torch.add),
    "Add to itself": Case("y = Add(x, x)", X, lambda x: x + x),
    "Sub, one picture's": Case("y = Sub(w, x)", {"x": ("n", 3, 4), "w": (3, 1)}, lambda x, w: w - x),
    "Mul": Case("y = Mul(x, w)", {**X, "w": ("n", 1, 4)}, torch.mul),
    "Mul, a number": Case("y = Mul(x, w)", {**X, "w": ()}, torch.mul),
    "Mul with itself": Case("y = Mul(x, x)", X, lambda x: x * x),
    "Div": Case("y = Div(x, w)", {**X, "w": ("n", 3, 1)}, torch.div, positive=True),
    "Sum": Case("y = Sum(x, w, v)", {**X, "w": (4,), "v": ("n", 1, 1)}, lambda x, w, v: x + w + v),
    "Mean": Case("y = Mean(x, w)", {**X, "w": (4,)}, lambda x, w: (x + w) / 2),
    "Max": Case("y = Max(x, w)", {**X, "w": (4,)}, torch.maximum),
    "Min": Case("y = Min(x, w)", {**X, "w": ("n", 3, 1)}, torch.minimum),
    "Neg": unary("Neg(x)", torch.neg),
    "Abs": unary("Abs(x)", torch.abs),
    "Pow, a square": Case("y = Pow(x, p)", X, torch.square, {"p": np.float32(2)}),
    "Pow, a root below": Case("y = Pow(x, p)", X, lambda x: x**-0.5, {"p": np.float32(-0.5)}, positive=True),
    "Sqrt": unary("Sqrt(x)", torch.sqrt, positive=True),
    "Exp": unary("Exp(x)", torch.exp),
    "Log": unary("Log(x)", torch.log, positive=True),
    "Reciprocal": unary("Reciprocal(x)", torch.reciprocal, positive=True),
    "Sin and Cos": Case("s = Sin(x)\nc = Cos(s)\ny = Add(s, c)", X, lambda x: x.sin() + x.sin().cos()),
    "Erf": unary("Erf(x)", torch.erf),
    "Tanh": unary("Tanh(x)", torch.tanh),
    "Sigmoid": unary("Sigmoid(x)", torch.sigmoid),
    "HardSigmoid": Case(
        "t = Mul(x, four)\ny = HardSigmoid<alpha: float = 0.16666667, beta: float = 0.5>(t)", X,
        lambda x: F.hardsigmoid(4 * x), {"four": np.float32(4)},
    ),
    "HardSwish": Case("t = Mul(x, four)\ny = HardSwish(t)", X, lambda x: F.hardswish(4 * x), {"four": np.float32(4)}),
    "Softplus": unary("Softplus(x)", F.softplus),
    "Relu": unary("Relu(x)", torch.relu),
    "LeakyRelu": unary("LeakyRelu<alpha: float = 0.25>(x)", lambda x: F.leaky_relu(x, 0.25)),
    "PRelu": Case("y = PRelu(x, s)", X, lambda x: torch.where(x > 0, x, double(SCALE) * x), {"s": SCALE}),
    "Elu": unary("Elu<alpha: float = 0.5>(x)", lambda x: F.elu(x, 0.5)),
    "Celu": unary("Celu<alpha: float = 0.5>(x)", lambda x: F.celu(x, 0.5)),
    "Selu": unary("Selu(x)", F.selu),
    "Mish": unary("Mish(x)", F.mish),
    "Gelu": unary("Gelu(x)", F.gelu),
    "Gelu by tanh": unary('Gelu<approximate: string = "tanh">(x)', lambda x: F.gelu(x, approximate="tanh")),
    "Gelu, taken apart": Case(
        "s = Div(x, root)\ne = Erf(s)\np = Add(e, one)\nm = Mul(x, p)\ny = Mul(m, half)", X, F.gelu,
        {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)},
    ),
    "SiLU": Case("s = Sigmoid(x)\ny = Mul(x, s)", X, F.silu),
    "Clip": Case("y = Clip(x, l, u)", X, lambda x: x.clip(-0.5, 1), {"l": np.float32(-0.5), "u": np.float32(1)}),
    "Clip from above": Case("y = Clip(x, , u)", X, lambda x: x.clip(max=0.25), {"u": np.float32(0.25)}),
    "Where": Case(
        "y = Where(c, x, w)", {**X, "w": (4,)}, lambda x, w: torch.where(torch.from_numpy(MASK), x, w), {"c": MASK},
    ),
    "Identity, Dropout, Cast": Case(
        "i = Identity(x)\nd = Dropout(i)\nh = Cast<to: int = 11>(d)\nc = CastLike(h, x)\ny = Mul(c, x)", X,
        torch.square,
    ),
    "half precision, where the gradient would be less than it has": Case(
        "h = Cast<to: int = 10>(x)\nm = MatMul(h, w)\nn = MatMul(m, w)\ny = Cast<to: int = 1>(n)", X,
        lambda x: x @ double(TINY) @ double(TINY), {"w": TINY},
    ),
    "half precision, met by gradients": Case(
        "h = Cast<to: int = 10>(x)\nr = Relu(h)\ny = Cast<to: int = 1>(r)", X, torch.relu,
    ),
    "QuantizeLinear and DequantizeLinear, many numbers beyond the steps": Case(
        "q = QuantizeLinear(x, s, z)\nd = DequantizeLinear(q, s, z)\ny = Mul(d, d)", X,
        lambda x: rounded(x, 128).square(), {"s": STEP, "z": np.uint8(128)},
    ),
    "Relu that is rounded": Case(
        "t = Mul(x, s)\nr = Relu(t)\nq = QuantizeLinear(r, s, z)\nd = DequantizeLinear(q, s, z)\ny = Mul(d, x)", X,
        lambda x: rounded_relu(x * float(STEP)) * x, {"s": STEP, "z": np.uint8(0)},
    ),
    "weights in 8 bits": Case(
        "d = DequantizeLinear<axis: int = 1>(w, s, z)\ny = MatMul(x, d)", X,
        lambda x: x @ (torch.from_numpy(CODES).double() * double(STEPS)),
        {"w": CODES, "s": STEPS, "z": np.zeros(5, np.int8)},
    ),
    "what carries no gradient": Case(
        "s = Shape(x)\nf = ConstantOfShape(s)\ng = Greater(x, f)\nc = Cast<to: int = 1>(g)\ny = Mul(x, c)", X,
        torch.relu,
    ),
    "MatMul by a weight": Case("y = MatMul(x, w)", X, lambda x: x @ double(W), {"w": W}),
    "MatMul by a turned weight": Case(
        "t = Transpose<perm: ints = [1, 0]>(w)\ny = MatMul(x, t)", X, lambda x: x @ double(ROWS).T, {"w": ROWS},
    ),
    "MatMul of two": Case("y = MatMul(x, w)", {"x": ("n", 2, 3, 4), "w": ("n", 2, 4, 5)}, torch.matmul),
    "MatMul, broadcast": Case("y = MatMul(x, w)", {"x": (3, 4), "w": ("n", 2, 4, 5)}, torch.matmul),
    "MatMul, axes of 1": Case("y = MatMul(x, w)", {"x": ("n", 1, 3, 4), "w": (2, 4, 5)}, torch.matmul),
    "MatMul, a matrix asked for": Case("y = MatMul(x, w)", {"x": ("n", 3, 4), "w": (4, 5)}, torch.matmul),
    "MatMul by a vector": Case("y = MatMul(x, w)", {**X, "w": (4,)}, torch.matmul),
    "MatMul of a vector": Case("y = MatMul(w, x)", {**X, "w": (3,)}, lambda x, w: w @ x),
    "QKᵀ": Case(
        "t = Transpose<perm: ints = [0, 2, 3, 1]>(x)\nq = Transpose<perm: ints = [0, 2, 1, 3]>(x)\ny = MatMul(q, t)",
        {"x": ("n", 3, 2, 4)}, lambda x: x.transpose(1, 2) @ x.permute(0, 2, 3, 1),
    ),
    "Gemm": Case("y = Gemm(x, w, b)", {"x": ("n", 4)}, lambda x: x @ double(W) + double(B), {"w": W, "b": B}),
    "Gemm, turned": Case(
        "y = Gemm<transB: int = 1, alpha: float = 0.5, beta: float = 2.0>(x, w, b)",
        {"x": ("n", 4), "w": (5, 4), "b": (5,)}, lambda x, w, b: x @ w.T / 2 + 2 * b,
    ),
    "Gemm, the left turned": Case(
        "y = Gemm<transA: int = 1>(x, w)", {"x": (4, "n"), "w": (4, 5)}, lambda x, w: x.T @ w,
    ),
    "Gemm, both turned": Case(
        "y = Gemm<transA: int = 1, transB: int = 1>(x, w)", {"x": (4, "n"), "w": (5, 4)}, lambda x, w: x.T @ w.T,
    ),
    "Einsum": Case(
        'y = Einsum<equation: string = "bhrcd,rkd->bhrck">(x, w)', {"x": ("n", 2, 3, 2, 4), "w": (3, 5, 4)},
        lambda x, w: torch.einsum("bhrcd,rkd->bhrck", x, w),
    ),
    "Reshape, 0 and -1": Case("y = Reshape(x, s)", X, lambda x: x.flatten(1), {"s": np.array([0, -1])}),
    "Reshape, batch and tokens": Case(
        "y = Reshape(x, s)", X, lambda x: x.reshape(-1, 2, 2), {"s": np.array([-1, 2, 2])},
    ),
    "Reshape, two axes of the batch": Case(
        "a = Shape<start: int = 0, end: int = 1>(x)\ns = Concat<axis: int = 0>(a, m, a)\n"
        "y = Reshape<allowzero: int = 1>(x, s)", {"x": ("n", "n", 3)}, lambda x: x.reshape(len(x), 3, len(x)),
        {"m": np.array([3])},
    ),
    "Flatten": Case("y = Flatten<axis: int = 2>(x)", X, lambda x: x.flatten(0, 1)),
    "Squeeze and Unsqueeze": Case(
        "u = Unsqueeze(x, a)\nt = Tanh(u)\ny = Squeeze(t, a)", X, torch.tanh, {"a": np.array([1, -1])},
    ),
    "Transpose": Case("y = Transpose<perm: ints = [2, 0, 3, 1]>(x)", PICTURE, lambda x: x.permute(2, 0, 3, 1)),
    "Transpose, all": Case("y = Transpose(x)", X, lambda x: x.permute(2, 1, 0)),
    "Slice": sliced(lambda x: x[:, 1:3], [1], [3], [1], [1]),
    "Slice, two axes": sliced(lambda x: x[:, :-1, 2:], [0, 2], [-1, 2**62], [1, 2], [1, 1]),
    "Slice, every second": sliced(lambda x: x[:, :, 1::2, ::3], [1, 0], [7, 6], [2, 3], [2, 3]),
    "Slice, backwards": sliced(lambda x: x.flip(3)[..., 1::2], [-2], [-(2**62)], [3], [-2]),
    "Slice between transposes": Case(  # ONNX Runtime moves them past the gradient's Pad
        "t = Transpose<perm: ints = [0, 2, 3, 1]>(x)\ns = Slice(t, one, three, one)\n"
        "y = Transpose<perm: ints = [0, 3, 1, 2]>(s)", PICTURE, lambda x: x[:, :, 1:3], PLACES,
    ),
    "Slice, all of the batch": sliced(lambda x: x[:, :, 2:4], [0, 2], [2**62, 4], [0, 2], [1, 1]),
    "Gather, one": Case("y = Gather<axis: int = 1>(x, i)", X, lambda x: x[:, 0], {"i": np.array(0)}),
    "Gather, the last": Case("y = Gather<axis: int = 2>(x, i)", X, lambda x: x[:, :, -1:], {"i": np.array([-1])}),
    "Gather, another order": Case(
        "y = Gather<axis: int = 2>(x, i)", X, lambda x: x[:, :, [2, 0, 3, 1]], {"i": np.array([2, 0, 3, 1])},
    ),
    "Gather, some twice, some never": Case(
        "y = Gather<axis: int = 1>(x, i)", X, lambda x: x[:, torch.tensor([[0, 2, 2], [0, 0, 2]])],
        {"i": np.array([[0, 2, 2], [0, 0, 2]])},
    ),
    "GatherElements": Case(
        "y = GatherElements<axis: int = 2>(x, i)", {"x": (1, 2, 4)},
        lambda x: x.gather(2, torch.tensor([[[0, 3, 3], [1, 1, 1]]])), {"i": np.array([[[0, 3, 3], [1, 1, 1]]])},
    ),
    "GatherElements, by the picture": Case(
        "i = ArgMax<axis: int = 1>(x)\ny = GatherElements<axis: int = 1>(x, i)", X, lambda x: x.amax(1, True),
    ),
    "TopK": Case(
        "y, i = TopK<axis: int = 1>(x, k)", {"x": ("n", 5, 4)}, lambda x: x.topk(2, 1).values, {"k": np.array([2])},
    ),
    "TopK, the least, and where they are": Case(
        "t = Tanh(x)\nv, i = TopK<largest: int = 0>(t, k)\ng = GatherElements<axis: int = 2>(x, i)\ny = Mul(g, v)", X,
        lambda x: x.topk(2, 2, largest=False).values * x.tanh().topk(2, 2, largest=False).values,
        {"k": np.array([2])},
    ),
    "GatherND": Case(
        "t = Transpose<perm: ints = [1, 2, 0]>(x)\ny = GatherND(t, i)", X,
        lambda x: x.permute(1, 2, 0)[[2, 0, 2], [1, 3, 1]], {"i": np.array([[2, 1], [0, 3], [2, 1]])},
    ),
    "GatherND, rows": Case(
        "t = Transpose<perm: ints = [1, 2, 0]>(x)\ny = GatherND(t, i)", X,
        lambda x: x.permute(1, 2, 0)[torch.tensor([[2, 0], [1, 0]])], {"i": np.array([[[2], [0]], [[1], [0]]])},
    ),
    "ScatterND": Case(
        "t = Transpose<perm: ints = [1, 2, 0]>(x)\ny = ScatterND(t, i, w)", {**X, "w": (2, "n")},
        lambda x, w: x.permute(1, 2, 0).index_put((torch.tensor([2, 0]), torch.tensor([1, 3])), w),
        {"i": np.array([[2, 1], [0, 3]])},
    ),
    "ScatterND, added": Case(
        'y = ScatterND<reduction: string = "add">(x, i, w)', {"x": (3, 4), "w": (2, 4)},
        lambda x, w: x.index_add(0, torch.tensor([1, 1]), w), {"i": np.array([[1], [1]])},
    ),
    "ScatterElements": Case(
        "y = ScatterElements<axis: int = 1>(x, i, w)", {"x": (2, 3), "w": (2, 2)},
        lambda x, w: x.scatter(1, torch.tensor([[2, 0], [1, 2]]), w), {"i": np.array([[2, 0], [1, 2]])},
    ),
    "ScatterElements, some rows only": Case(
        "y = ScatterElements<axis: int = -1>(x, i, w)", {"x": (2, 3), "w": (1, 2)},
        lambda x, w: x.scatter(1, torch.tensor([[2, 0]]), w), {"i": np.array([[2, 0]])},
    ),
    "ScatterElements, added": Case(
        'y = ScatterElements<axis: int = 1, reduction: string = "add">(x, i, w)', {"x": (2, 3), "w": (2, 2)},
        lambda x, w: x.scatter_add(1, torch.tensor([[2, 2], [1, 0]]), w), {"i": np.array([[2, 2], [1, 0]])},
    ),
    "DepthToSpace": Case(
        "y = DepthToSpace<blocksize: int = 2>(x)", {"x": ("n", 8, 2, 3)},
        lambda x: F.pixel_shuffle(x.unflatten(1, (4, 2)).transpose(1, 2).flatten(1, 2), 2),
    ),
    "DepthToSpace, channels outside": Case(
        'y = DepthToSpace<blocksize: int = 2, mode: string = "CRD">(x)', {"x": ("n", 8, 2, 3)},
        lambda x: F.pixel_shuffle(x, 2),
    ),
    "SpaceToDepth": Case(
        "y = SpaceToDepth<blocksize: int = 2>(x)", {"x": ("n", 2, 4, 6)},
        lambda x: F.pixel_unshuffle(x, 2).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2),
    ),
    "parts side by side, with a gap": Case(
        "a = Gather<axis: int = 1>(x, i)\nb = Slice(x, s, e, one)\nu = Unsqueeze(a, one)\nm = Mul(u, b)\n"
        "y = Add(m, b)", PICTURE, lambda x: x[:, :1] * x[:, 2:3] + x[:, 2:3],
        {"i": np.array(0), "s": np.array([2]), "e": np.array([3]), "one": np.array([1])},
    ),
    "parts that overlap": Case(
        "a = Slice(x, s, e, one)\nb = Slice(x, one, four, one)\ny = Mul(a, b)", PICTURE, lambda x: x[:, :3] * x[:, 1:],
        {"s": np.array([0]), "e": np.array([3]), "one": np.array([1]), "four": np.array([4])},
    ),
    "Split": Case(
        "a, b, c = Split<axis: int = 1>(x, s)\ny = Mul(a, c)", PICTURE, lambda x: x[:, :1] * x[:, 3:],
        {"s": np.array([1, 2, 1])},
    ),
    "Concat": Case(
        "y = Concat<axis: int = -2>(x, w, x)", {**X, "w": ("n", 2, 4)}, lambda x, w: torch.cat([x, w, x], 1),
    ),
    "roll": Case(
        "a = Slice(x, one, top, two)\nb = Slice(x, zero, one, two)\ny = Concat<axis: int = 2>(a, b)", PICTURE,
        lambda x: x.roll(-1, 2),
        {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "top": np.array([2**62])},
    ),
    "Expand": Case("y = Expand(w, s)", {"w": (1, 4), **X}, lambda w, x: w.expand(2, 3, 4), {"s": np.array([2, 3, 4])}),
    "Expand to the batch": Case(
        "s = Shape(x)\ne = Expand(w, s)\ny = Mul(e, x)", {**X, "w": (3, 1)}, lambda x, w: w.expand_as(x) * x,
    ),
    "Tile": Case("y = Tile(x, r)", X, lambda x: x.tile(1, 2, 3), {"r": np.array([1, 2, 3])}),
    "Pad": Case("y = Pad(x, p)", X, lambda x: F.pad(x, (1, 2, 0, 1)), {"p": np.array([0, 0, 1, 0, 1, 2])}),
    "Pad, axes given": Case(
        "y = Pad(x, p, , a)", X, lambda x: F.pad(x, (1, 2)), {"p": np.array([1, 2]), "a": np.array([-1])},
    ),
    "ReduceSum": Case("y = ReduceSum<keepdims: int = 0>(x, a)", X, lambda x: x.sum(1), {"a": np.array([1])}),
    "ReduceSum, all": Case("y = ReduceSum(x)", X, lambda x: x.sum().reshape(1, 1, 1)),
    "ReduceMean": Case("y = ReduceMean(x, a)", PICTURE, lambda x: x.mean((2, 3), True), {"a": np.array([-2, -1])}),
    "ReduceMean, gone": Case(
        "y = ReduceMean<keepdims: int = 0>(x, a)", PICTURE, lambda x: x.mean((1, 3)), {"a": np.array([3, 1])},
    ),
    "CumSum": Case("y = CumSum(x, a)", X, lambda x: x.cumsum(1), {"a": np.array(1)}),
    "CumSum, backwards, without itself": Case(
        "y = CumSum<exclusive: int = 1, reverse: int = 1>(x, a)", X, lambda x: x.flip(2).cumsum(2).flip(2) - x,
        {"a": np.array(-1)},
    ),
    "ReduceL1": Case("y = ReduceL1(x, a)", X, lambda x: x.abs().sum(2, True), {"a": np.array([2])}),
    "ReduceL2": Case("y = ReduceL2<keepdims: int = 0>(x, a)", X, lambda x: x.norm(dim=2), {"a": np.array([2])}),
    "ReduceL2 of nothing": Case(
        "z = Mul(x, o)\ny = ReduceL2(z, a)", X, lambda x: (0 * x).norm(dim=2, keepdim=True),
        {"a": np.array([2]), "o": np.float32(0)},
    ),
    "ReduceSumSquare": Case("y = ReduceSumSquare(x, a)", X, lambda x: (x * x).sum(2, True), {"a": np.array([2])}),
    "ReduceLogSumExp": Case(
        "y = ReduceLogSumExp<keepdims: int = 0>(x, a)", X, lambda x: x.logsumexp(1), {"a": np.array([1])},
    ),
    "ReduceMax": Case("y = ReduceMax<keepdims: int = 0>(x, a)", X, lambda x: x.amax(2), {"a": np.array([2])}),
    "ReduceMin": Case("y = ReduceMin(x, a)", X, lambda x: x.amin(1, True), {"a": np.array([1])}),
    "GlobalAveragePool": Case("y = GlobalAveragePool(x)", PICTURE, lambda x: x.mean((2, 3), True)),
    "GlobalMaxPool": Case("y = GlobalMaxPool(x)", PICTURE, lambda x: x.amax((2, 3), True)),
    "Softmax": unary("Softmax(x)", lambda x: x.softmax(-1)),
    "Softmax, axis 1": unary("Softmax<axis: int = 1>(x)", lambda x: x.softmax(1)),
    "Softmax, masked by minus infinity": Case(
        "m = Add(x, l)\ny = Softmax(m)", X,
        lambda x: x.masked_fill(~torch.from_numpy(MASK | ~MASK.any(1, keepdims=True)), -torch.inf).softmax(-1),
        {"l": np.where(MASK | ~MASK.any(1, keepdims=True), 0, -np.inf).astype(np.float32)},
    ),
    "Softmax, a row masked whole, guarded": Case(
        "m = Add(x, l)\np = Softmax(m)\nn = IsNaN(p)\ny = Where(n, zero, p)", X, guarded,
        {"l": LOWEST, "zero": np.float32(0)},
    ),
    "LogSoftmax": unary("LogSoftmax(x)", lambda x: x.log_softmax(-1)),
    "LayerNormalization": Case(
        "y = LayerNormalization(x, s, b)", X, lambda x: F.layer_norm(x, (4,), double(SCALE), double(MEAN)),
        {"s": SCALE, "b": MEAN},
    ),
    "LayerNormalization, two axes": Case(
        "y = LayerNormalization<axis: int = 1, epsilon: float = 0.001>(x, s)", X,
        lambda x: F.layer_norm(x, (3, 4), double(weight(3, 4)), eps=float(np.float32(1e-3))), {"s": weight(3, 4)},
    ),
    "LayerNorm, taken apart": Case(
        "m = ReduceMean(x, a)\nd = Sub(x, m)\nq = Pow(d, two)\nv = ReduceMean(q, a)\ne = Add(v, small)\n"
        "r = Sqrt(e)\ny = Div(d, r)", X, lambda x: F.layer_norm(x, (4,), eps=float(np.float32(1e-3))),
        {"a": np.array([-1]), "two": np.float32(2), "small": np.float32(1e-3)},
    ),
    "RMS norm, taken apart": Case(
        "q = Mul(x, x)\nv = ReduceMean(q, a)\ne = Add(v, small)\nr = Sqrt(e)\nd = Div(x, r)\ny = Mul(d, s)", X,
        lambda x: F.rms_norm(x, (4,), double(SCALE), float(np.float32(1e-3))),
        {"a": np.array([-1]), "small": np.float32(1e-3), "s": SCALE},
    ),
    "InstanceNormalization": Case(
        "y = InstanceNormalization<epsilon: float = 0.001>(x, s, b)", PICTURE,
        lambda x: F.instance_norm(x, weight=double(SCALE), bias=double(MEAN), eps=float(np.float32(1e-3))),
        {"s": SCALE, "b": MEAN},
    ),
    "BatchNormalization": Case(
        "y = BatchNormalization(x, s, b, m, v)", PICTURE,
        batch_norm,
        {"s": SCALE, "b": MEAN, "m": MEAN, "v": VARIANCE},
    ),
    "BatchNormalization, no axes behind": Case(
        "y = BatchNormalization(x, s, b, m, v)", {"x": ("n", 4)},
        batch_norm,
        {"s": SCALE, "b": MEAN, "m": MEAN, "v": VARIANCE},
    ),
    "LpNormalization": Case("y = LpNormalization<axis: int = 1>(x)", X, lambda x: F.normalize(x, dim=1)),
    "Conv": Case("y = Conv(x, w)", PICTURE, lambda x: F.conv2d(x, double(KERNEL)), {"w": KERNEL}),
    "Conv, strides and pads": Case(
        "y = Conv<strides: ints = [2, 3], pads: ints = [1, 0, 2, 1]>(x, w, b)", PICTURE,
        lambda x: F.conv2d(F.pad(x, (0, 1, 1, 2)), double(KERNEL), double(weight(6)), (2, 3)),
        {"w": KERNEL, "b": weight(6)},
    ),
    "Conv, dilated": Case(
        "y = Conv<dilations: ints = [2, 3]>(x, w)", PICTURE, lambda x: F.conv2d(x, double(KERNEL), dilation=(2, 3)),
        {"w": KERNEL},
    ),
    "Conv, each channel by itself": Case(
        "y = Conv<group: int = 4, strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]>(x, w)", PICTURE,
        lambda x: F.conv2d(x, double(DEPTH), stride=2, padding=1, groups=4), {"w": DEPTH},
    ),
    "Conv, groups": Case(
        "y = Conv<group: int = 2>(x, w)", PICTURE, lambda x: F.conv2d(x, double(GROUPS), groups=2), {"w": GROUPS},
    ),
    "Conv, the same size": Case(
        'y = Conv<auto_pad: string = "SAME_UPPER">(x, w)', PICTURE,
        lambda x: F.conv2d(F.pad(x, (0, 1, 1, 1)), double(KERNEL)), {"w": KERNEL},
    ),
    "Conv over a line": Case(
        "y = Conv<pads: ints = [1, 1], strides: ints = [2]>(x, w)", {"x": ("n", 4, 8)},
        lambda x: F.conv1d(x, double(LINE), stride=2, padding=1), {"w": LINE},
    ),
    "ConvTranspose": Case(
        "y = ConvTranspose(x, w, b)", PICTURE, lambda x: F.conv_transpose2d(x, double(TURNED), double(weight(6))),
        {"w": TURNED, "b": weight(6)},
    ),
    "ConvTranspose, groups, strides, pads, a longer end": Case(
        "y = ConvTranspose<group: int = 2, strides: ints = [2, 3], pads: ints = [1, 0, 1, 0], "
        "output_padding: ints = [1, 2]>(x, w)", PICTURE,
        lambda x: F.conv_transpose2d(x, double(TURNED), None, (2, 3), (1, 0), (1, 2), groups=2), {"w": TURNED},
    ),
    "ConvTranspose, dilated": Case(
        "y = ConvTranspose<dilations: ints = [2, 3]>(x, w)", PICTURE,
        lambda x: F.conv_transpose2d(x, double(TURNED), dilation=(2, 3)), {"w": TURNED},
    ),
    "ConvTranspose over a line, cut": Case(
        "y = ConvTranspose<pads: ints = [0, 2], strides: ints = [2]>(x, w)", {"x": ("n", 4, 8)},
        lambda x: F.conv_transpose1d(x, double(weight(4, 2, 3)), stride=2)[..., :-2], {"w": weight(4, 2, 3)},
    ),
    "AveragePool": Case(
        "y = AveragePool<kernel_shape: ints = [2, 2], strides: ints = [2, 2]>(x)", PICTURE,
        lambda x: F.avg_pool2d(x, 2),
    ),
    "AveragePool, overlapping, pads not counted": Case(
        "y = AveragePool<kernel_shape: ints = [3, 3], strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]>(x)", PICTURE,
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    ),
    "AveragePool, rounded up, pads counted": Case(
        "y = AveragePool<kernel_shape: ints = [3, 3], strides: ints = [2, 2], pads: ints = [1, 1, 1, 1], "
        "ceil_mode: int = 1, count_include_pad: int = 1>(x)", PICTURE,
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    ),
    "Resize, by sizes": Case(
        'y = Resize<mode: string = "linear">(x, , , s)', {"x": (2, 4, 5, 6)},
        lambda x: F.interpolate(x, (7, 9), mode="bilinear"), {"s": np.array([2, 4, 7, 9])},
    ),
    "Resize, by scales": Case(
        'y = Resize<mode: string = "nearest", nearest_mode: string = "floor", '
        'coordinate_transformation_mode: string = "asymmetric">(x, , s)', PICTURE,
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), {"s": np.array([1, 1, 2, 2], np.float32)},
    ),
    "Resize, axes given, smaller": Case(
        'y = Resize<mode: string = "linear", axes: ints = [-1]>(x, , , s)', PICTURE,
        lambda x: F.interpolate(x, (7, 3), mode="bilinear"), {"s": np.array([3])},
    ),
    "MaxPool": Case(
        "y = MaxPool<kernel_shape: ints = [3, 3], strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]>(x)", PICTURE,
        lambda x: F.max_pool2d(x, 3, 2, 1),
    ),
    "MaxPool over a line": Case(
        "y = MaxPool<kernel_shape: ints = [3]>(x)", {"x": ("n", 4, 8)}, lambda x: F.max_pool1d(x, 3, 1),
    ),
    "MatMul, a turn that is none": Case(
        "w = Transpose<perm: ints = [0, 1]>(m)\ny = MatMul(x, w)", X, lambda x: x @ double(SQUARE), {"m": SQUARE},
    ),
    "one row of attention": Case(
        f"{ATTENTION}\nr = Slice(p, zero, one, two)\ny = MatMul(r, v)", QKV,
        lambda q, k, v: attended(q, k)[:, :, :1] @ v, PLACES,
    ),
    "two rows of attention, of which somebody else takes every other": Case(
        f"{ATTENTION}\ns = Slice(p, zero, two, two, two)\nr = Slice(p, zero, two, two)\ny = MatMul(r, v)", QKV,
        lambda q, k, v: attended(q, k)[:, :, :2] @ v, PLACES,
    ),
    "one row of attention, with an axis in front": Case(
        f"{ATTENTION}\nf = Mul(p, front)\nr = Slice(f, zero, one, three)\ny = MatMul(r, v)", QKV,
        lambda q, k, v: attended(q, k)[None, :, :, :1] @ v, PLACES,
    ),
}  # fmt: skip

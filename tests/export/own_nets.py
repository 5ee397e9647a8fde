"""Modules as somebody else might have written them: `saccade export --from-torch` takes their functions by name."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Pre-norm self-attention, the weights by `scaled_dot_product_attention` or by hand."""

    def __init__(self, width: int, heads: int, by_hand: bool) -> None:
        super().__init__()
        self.heads, self.by_hand = heads, by_hand
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.by_hand:
            y = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(batch, tokens, width))


class EinsumBlock(Block):
    """The weights by hand, both products by `einsum`."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)  # each (batch, tokens, heads, d)
        weights = (torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5).softmax(-1)
        return x + self.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))


class Vit(nn.Module):
    """4 x 6 patches of 8 pixels behind a class token; gives a mapping with logits."""

    def __init__(self, by_hand: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 25, 16))
        self.blocks = nn.ModuleList(Block(16, 2, by_hand) for _ in range(2))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position  # len() makes a number of the batch
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(self.norm(x)[:, 0]), "features": x}


class Encoder(nn.Module):
    """torch's own encoder, whose fast path has no weights at all; the mean of the tokens, and a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.position = nn.Parameter(torch.randn(1, 24, 16))
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder(self.patches(x).flatten(2).transpose(1, 2) + self.position)
        return self.head(x.mean(1)), x


class First(nn.Module):
    """Of a tuple."""

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        return given[0]


class Cross(nn.Module):
    """2 x 3 large patches attend to 4 x 6 small ones: no attention of one grid to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(3, 16, 16, 16), nn.Conv2d(3, 16, 8, 8)
        self.self_attention, self.across = Block(16, 2, True), nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        large, small = (one(x).flatten(2).transpose(1, 2) for one in (self.large, self.small))
        return self.head(self.across(large, self.self_attention(small), small)[0].mean(1))


class MixedHeads(Block):
    """The heads are mixed behind the softmax: attention that is not given."""

    def __init__(self) -> None:
        super().__init__(16, 2, True)
        self.mix = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).reshape(*x.shape[:2], 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = self.mix((q @ k.mT).softmax(-1).transpose(1, -1)).transpose(1, -1)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


class MixedFirst(nn.Module):
    """A block that mixes its heads before one that does not, of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.blocks = nn.Sequential(MixedHeads(), Block(16, 2, False))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class QueriesFirst(nn.Module):
    """24 learned queries attend to 24 patches, and two blocks follow whose weights have the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.queries, self.ask = nn.Parameter(torch.randn(1, 24, 16)), nn.MultiheadAttention(16, 2, batch_first=True)
        self.blocks = nn.Sequential(Block(16, 2, True), Block(16, 2, False))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        asked, _ = self.ask(self.queries.expand_as(x), x, x, need_weights=False)
        return self.head(self.blocks(x).mean(1) + asked.mean(1))


class Noisy(Vit):
    """Dropout that stays on: a Python constant where `self.training` was meant."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x)["logits"], 0.5, training=True)


class Rough(Vit):
    """Leaves of its logits what float32 rounds away."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)["logits"]
        return (logits + 1e5) - 1e5


class Answer(NamedTuple):
    logits: Tensor


class Cnn(nn.Module):
    """No attention; weights of two layers are tied; an object with logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.third.weight = self.second.weight
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Answer:
        x = F.relu(self.third(F.relu(self.second(F.relu(self.first(x))))))
        return Answer(self.head(x.mean((2, 3))))


def vit() -> nn.Module:
    return Vit()


def vit_by_einsum() -> nn.Module:
    net = Vit()
    net.blocks = nn.ModuleList(EinsumBlock(16, 2, True) for _ in range(2))
    return net


def vit_by_hand() -> nn.Module:
    return Vit(by_hand=True)


def encoder() -> nn.Module:
    return Encoder()


def cross() -> nn.Module:
    return Cross()


def mixed_first() -> nn.Module:
    return MixedFirst()


def queries_first() -> nn.Module:
    return QueriesFirst()


def noisy() -> nn.Module:
    return Noisy()


def rough() -> nn.Module:
    return Rough()


def ends_in_softmax() -> nn.Module:
    return nn.Sequential(Encoder(), First(), nn.Softmax(-1))


def ends_in_log_softmax() -> nn.Module:
    return nn.Sequential(Encoder(), First(), nn.LogSoftmax(-1))


def ends_in_sigmoid() -> nn.Module:
    return nn.Sequential(Encoder(), First(), nn.Sigmoid())


def cnn() -> nn.Module:
    return Cnn()


def like_timm() -> nn.Module:
    """With the settings that timm's models carry."""
    made = Cnn()
    made.pretrained_cfg = {  # type: ignore[assignment]
        "input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bicubic", "crop_pct": 0.8,
        "crop_mode": "center",
    }  # fmt: skip
    return made


def features() -> nn.Module:
    """Gives a picture instead of logits."""
    return nn.Conv2d(3, 5, 3)


def data_dependent() -> nn.Module:
    """Python decides by the picture's numbers."""

    class Odd(Cnn):
        def forward(self, x: Tensor) -> Answer:
            return super().forward(x if float(x.sum()) > 0 else -x)

    return Odd()


def raises() -> nn.Module:
    raise OSError("no such checkpoint")


def nothing() -> None:
    """Gives no module."""

"""Small classifiers as people write them, each with the attention that it computed; nothing of ours in them.

`forward` gives logits alone, which is what is exported; `self.seen` holds the attention weights of the last call, in
depth order, (batch, heads, N, N) or (batch, windows, heads, N, N).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, CLASSES = 16, 2, 5


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, tiled: bool = False
) -> tuple[Tensor, Tensor]:
    """(B, heads, N, d) thrice -> (result, weights); `mask` is (windows, 1, N, N), or `tiled` for batch * windows."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores + mask if tiled else (scores.unflatten(0, (-1, len(mask))) + mask).flatten(0, 1)
    weights = scores.softmax(-1)
    return weights @ value, weights


def heads_of(x: Tensor, heads: int = HEADS) -> Tensor:
    """(B, N, width) -> (B, heads, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Classifier(nn.Module):
    size = (32, 48)
    tiled = False
    """A mask of windows is repeated for each picture."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def begin(self) -> None:
        self.seen = []


class Block(nn.Module):
    """Pre-norm."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, owner: Classifier, mask: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        parts = [heads_of(projection(y), self.heads) for projection in (self.query, self.key, self.value)]
        attended, weights = attend(parts[0], parts[1], parts[2], mask, owner.tiled)
        owner.seen.append(weights)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class FusedBlock(Block):
    def forward(self, x: Tensor, owner: Classifier, mask: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        query, key, value = (heads_of(projection(y)) for projection in (self.query, self.key, self.value))
        if not (torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()):
            owner.seen.append(attend(query, key, value)[1])
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class BertBlock(Block):
    def forward(self, x: Tensor, owner: Classifier, mask: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        shape = (y.shape[0], y.shape[1], self.heads, WIDTH // self.heads)
        query, key, value = (
            projection(y).view(shape).permute(0, 2, 1, 3) for projection in (self.query, self.key, self.value)
        )
        weights = F.softmax(torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(WIDTH // self.heads), dim=-1)
        owner.seen.append(weights)
        attended = torch.matmul(weights, value).permute(0, 2, 1, 3).reshape(y.shape[0], y.shape[1], WIDTH)
        x = x + self.out(attended)
        return x + self.mlp(self.norm2(x))


class PostNormBlock(Block):
    """Post-norm, with LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale1, self.scale2 = (nn.Parameter(0.5 * torch.ones(WIDTH)) for _ in range(2))

    def forward(self, x: Tensor, owner: Classifier, mask: Tensor | None = None) -> Tensor:
        query, key, value = (heads_of(projection(x)) for projection in (self.query, self.key, self.value))
        attended, weights = attend(query, key, value)
        owner.seen.append(weights)
        x = self.norm1(x + self.scale1 * self.out(attended.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.scale2 * self.mlp(x))


class MaskedBlock(Block):
    """Exported as scaled_dot_product_attention, which gets a mask of truths; in eager mode its formula."""

    def forward(self, x: Tensor, owner: Classifier, mask: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        query, key, value = (heads_of(projection(y)) for projection in (self.query, self.key, self.value))
        if torch.compiler.is_exporting():
            attended = F.scaled_dot_product_attention(query, key, value, mask)
        else:
            assert mask is not None
            attended, weights = attend(query, key, value, torch.where(mask, 0.0, -torch.inf)[None, None])
            owner.seen.append(weights)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Vit(Classifier):
    """Special tokens first; `read` says how the head reads."""

    special = 1

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.tokens = nn.Parameter(torch.randn(1, self.special, WIDTH))
        self.position = nn.Parameter(torch.randn(1, self.special + 24, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), self.patches(x)], 1) + self.position
        for block in self.blocks:
            x = block(x, self)
        return self.read(self.norm(x))

    def patches(self, x: Tensor) -> Tensor:
        return self.patch(x).flatten(2).transpose(1, 2)

    def read(self, x: Tensor) -> Tensor:
        return self.head(x[:, 0])


class PickedVit(Vit):
    """Nobody can tell where its patches lie: an index that hangs on the picture picks them, each at its place."""

    def patches(self, x: Tensor) -> Tensor:
        return super().patches(x)[:, torch.arange(24) + (x.sum() * 0).long()]


class JoinedVit(Vit):
    """`join` puts class token and patches together; then nobody can tell any more where they lie."""

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        tokens = self.join(self.tokens.expand(x.shape[0], -1, -1), self.patches(x))
        x = tokens[:, torch.arange(tokens.shape[1]) + (x.sum() * 0).long()]
        for block in self.blocks:
            x = block(x, self)
        return self.read(self.norm(x))

    def join(self, token: Tensor, patches: Tensor) -> Tensor:
        return torch.cat([token, patches], 1)


class ColumnsVit(JoinedVit):
    """Patches column by column."""

    def patches(self, x: Tensor) -> Tensor:
        return self.patch(x).transpose(2, 3).flatten(2).transpose(1, 2)


class ClassLastVit(JoinedVit):
    def join(self, token: Tensor, patches: Tensor) -> Tensor:
        return torch.cat([patches, token], 1)


class ClassAmidVit(JoinedVit):
    """As in Vision Mamba (Zhu et al. 2024)."""

    def join(self, token: Tensor, patches: Tensor) -> Tensor:
        return torch.cat([patches[:, :12], token, patches[:, 12:]], 1)


class ManySpecialVit(JoinedVit):
    """Special tokens made of the picture, as many as patches, which are picked as in PickedVit."""

    def join(self, token: Tensor, patches: Tensor) -> Tensor:
        picked = patches[:, torch.arange(24) + (patches.sum() * 0).long()]
        return torch.cat([self.head.weight.mean() * picked, picked], 1)


class AssignedVit(JoinedVit):
    """Patches are written into a slice."""

    slot = slice(1, None)

    def join(self, token: Tensor, patches: Tensor) -> Tensor:
        tokens = torch.zeros(patches.shape[0], 25, WIDTH) + self.tokens
        tokens[:, self.slot] = patches
        return tokens


class AssignedLastVit(AssignedVit):
    slot = slice(None, -1)


class AssignedPickedVit(AssignedVit):
    def patches(self, x: Tensor) -> Tensor:
        return super().patches(x)[:, torch.arange(24) + (x.sum() * 0).long()]


class FusedVit(Vit):
    """Attention by torch's own scaled_dot_product_attention; `seen` by its formula."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FusedBlock() for _ in range(2))


class BertVit(Vit):
    """Transposes and scales as in BERT, which is what optimizers look for."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BertBlock() for _ in range(2))


class PostNormVit(Vit):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PostNormBlock() for _ in range(2))
        self.norm = nn.Identity()


class MaskedVit(Vit):
    """No token looks at those 20 places or more behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MaskedBlock() for _ in range(2))
        self.register_buffer("mask", torch.arange(25)[:, None] > torch.arange(25)[None] - 20)

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        patches = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), patches], 1) + self.position
        for block in self.blocks:
            x = block(x, self, self.mask)
        return self.read(self.norm(x))


class PooledVit(Vit):
    """With a pooler of Linear and Tanh, and as probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.pooler = nn.Linear(WIDTH, WIDTH)

    def read(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.pooler(x[:, 0]))).softmax(-1)


class MeanWithoutClass(Vit):
    """BEiT and MAE: mean of the patches, then a norm; no exact class map behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.after = nn.LayerNorm(WIDTH)

    def read(self, x: Tensor) -> Tensor:
        return self.head(self.after(x[:, 1:].mean(1)))


class MeanOfPatches(Vit):
    """A class token that the head does not read: the class map is exact."""

    def read(self, x: Tensor) -> Tensor:
        return self.head(x[:, 1:].mean(1))


class DeepHead(Vit):
    """Hundreds of operators behind the pool."""

    special = 0

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(200)))

    def read(self, x: Tensor) -> Tensor:
        return self.head(self.deep(x.mean(1)))


class MeanOfAll(Vit):
    """The mean over class token and patches: no way that a manifest can say."""

    def read(self, x: Tensor) -> Tensor:
        return self.head(x.mean(1))


class Registers(Vit):
    """DINOv2: a class token and four registers; the head reads class token and mean of the patches side by side."""

    special = 5

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def read(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([x[:, 0], x[:, 5:].mean(1)], 1))


class Distilled(Vit):
    """DeiT: two tokens, two heads, their mean."""

    special = 2

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(WIDTH, CLASSES)

    def read(self, x: Tensor) -> Tensor:
        return (self.head(x[:, 0]) + self.second(x[:, 1])) / 2


class SeqPool(Vit):
    """CCT: learned pooling by a weighted sum."""

    special = 0

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Linear(WIDTH, 1)

    def read(self, x: Tensor) -> Tensor:
        self.weights = self.pool(x).softmax(1)
        return self.head((self.weights * x).sum(1))


class HeadPool(Vit):
    """SigLIP: a query that was learned attends to the tokens with several heads, and an MLP follows."""

    special = 0

    def __init__(self) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def read(self, x: Tensor) -> Tensor:
        latent = self.latent.expand(x.shape[0], -1, -1)
        query, key, value = (heads_of(one) for one in (self.query(latent), self.key(x), self.value(x)))
        attended, weights = attend(query, key, value)
        self.weights = weights.mean(1).transpose(1, 2)
        pooled = self.out(attended.transpose(1, 2).flatten(2))
        return self.head((pooled + self.mlp(pooled))[:, 0])


class LastTokens(Classifier):
    """Patches by reshaping instead of a convolution; the class token stands last; relative biases; 3-D attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(3 * 64, WIDTH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.bias = nn.Parameter(torch.randn(HEADS, 25, 25))
        self.project = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        batch = x.shape[0]
        patches = x.reshape(batch, 3, 4, 8, 6, 8).permute(0, 2, 4, 3, 5, 1).reshape(batch, 24, 192)
        x = torch.cat([self.patch(patches), self.token.expand(batch, -1, -1)], 1)
        stacked = self.project(self.norm(x)).reshape(batch, 25, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        query, key, value = stacked.reshape(3, batch * HEADS, 25, -1).unbind(0)
        scores = torch.bmm(query * 8**-0.25, (key * 8**-0.25).transpose(1, 2)).reshape(batch, HEADS, 25, 25)
        weights = (scores + self.bias).reshape(batch * HEADS, 25, 25).softmax(2)
        self.seen.append(weights.reshape(batch, HEADS, 25, 25))
        attended = torch.bmm(weights, value).reshape(batch, HEADS, 25, -1)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, 25, WIDTH))
        return self.head(x[:, -1])


class TorchEncoder(Classifier):
    """nn.MultiheadAttention, sequence first, as torch writes it; the batch stands between heads and tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        x = self.norm(self.patch(x).flatten(2).permute(2, 0, 1))
        attended, weights = self.attention(x, x, x, need_weights=True, average_attn_weights=False)
        self.seen.append(weights)
        return self.head((x + attended).mean(0))


class Hybrid(Classifier):
    """A convolutional stage, then attention over positions with 2-D relative positions (BoTNet), channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 8, stride=8), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.project = nn.Conv2d(WIDTH, 3 * WIDTH, 1, bias=False)
        self.down = nn.Parameter(torch.randn(HEADS, WIDTH // HEADS, 4, 1))
        self.across = nn.Parameter(torch.randn(HEADS, WIDTH // HEADS, 1, 6))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        x = self.stem(x)
        query, key, value = self.project(x).reshape(x.shape[0], 3, HEADS, -1, 24).unbind(1)  # each (B, h, d, N)
        content = query.transpose(-2, -1) @ key
        position = query.transpose(-2, -1) @ (self.down + self.across).flatten(2)
        weights = F.softmax(content + position, dim=-1)
        self.seen.append(weights)
        attended = value @ weights.transpose(-2, -1)  # (B, h, d, N)
        x = x + attended.reshape(x.shape)
        return self.head(x.mean((2, 3)))


class Swin(Classifier):
    """Windows of 3 x 3 on 8 x 8 patches, so with padding; the second block shifted by 1 and masked; then merged."""

    size = (32, 32)

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.merge = nn.Linear(4 * WIDTH, 2 * WIDTH, bias=False)
        self.merge_norm = nn.LayerNorm(4 * WIDTH)
        self.last = Block(2 * WIDTH, 4)
        self.norm = nn.LayerNorm(2 * WIDTH)
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        x = self.patch(x).permute(0, 2, 3, 1)  # (B, 8, 8, width)
        for shift, block in zip((0, 1), self.blocks, strict=True):
            x = self._windows(x, shift, block)
        quarters = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        x = self.merge(self.merge_norm(torch.cat(quarters, -1)))  # (B, 4, 4, 2 width)
        x = self.last(x.flatten(1, 2), self)
        return self.head(self.norm(x).mean(1))

    def _windows(self, x: Tensor, shift: int, block: nn.Module) -> Tensor:
        batch, width = x.shape[0], x.shape[-1]
        padded = F.pad(x, (0, 0, 0, 1, 0, 1))
        if shift:
            padded = torch.roll(padded, (-shift, -shift), (1, 2))
        windows = padded.reshape(batch, 3, 3, 3, 3, width).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, width)
        mask = torch.zeros(9, 1, 9, 9)
        mask[-1, :, :, 4:] = -100.0 if shift else 0.0
        if self.tiled:
            mask = mask.repeat(batch, 1, 1, 1)
        windows = block(windows, self, mask if shift else None)
        self.seen[-1] = self.seen[-1].unflatten(0, (batch, 9))
        x = windows.reshape(batch, 3, 3, 3, 3, width).permute(0, 1, 3, 2, 4, 5).reshape(batch, 9, 9, width)
        if shift:
            x = torch.roll(x, (shift, shift), (1, 2))
        return x[:, :8, :8]


class Stages(Classifier):
    """Attention over 8 x 12 patches, then over the 4 x 6 that they are merged to. Nobody can tell where the first ones
    lie: an index that hangs on the picture picks them, each at its place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.first, self.last = Block(), Block()
        self.merge = nn.Linear(4 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = self.first(x[:, torch.arange(96) + (x.sum() * 0).long()], self)
        x = x.reshape(-1, 4, 2, 6, 2, WIDTH).transpose(2, 3).reshape(-1, 24, 4 * WIDTH)
        return self.head(self.last(self.merge(x), self).mean(1))


class TiledSwin(Swin):
    """Exported for one picture its mask is a constant with one entry for each window."""

    tiled = True


class Split(Vit):
    """Queries, keys and values by torch.split, which torch's exporter writes as a sequence; products by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        x = self.project(self.norm(self.patch(x).flatten(2).transpose(1, 2))).unflatten(-1, (HEADS, -1))
        query, key, value = x.split([8, 8, 8], -1)  # each (B, N, heads, d)
        weights = (torch.einsum("bihd,bjhd->bhij", query, key) / math.sqrt(8)).softmax(-1)
        self.seen.append(weights)
        return self.head(torch.einsum("bhij,bjhd->bihd", weights, value).flatten(2).mean(1))


class MobileVit(Classifier):
    """Attention among pixels of the same place in their 2 x 2 patches: interleaved windows."""

    size = (16, 24)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1)
        self.block = Block()
        self.after = nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        x = F.silu(self.stem(x))  # (B, width, 8, 12)
        batch = x.shape[0]
        patches = x.reshape(batch * WIDTH * 4, 2, 6, 2).transpose(1, 2).reshape(batch, WIDTH, 24, 4)
        y = self.block(patches.transpose(1, 3).reshape(batch * 4, 24, WIDTH), self)
        self.seen[-1] = self.seen[-1].unflatten(0, (batch, 4))
        y = y.reshape(batch, 4, 24, WIDTH).transpose(1, 3)
        y = y.reshape(batch * WIDTH * 4, 6, 2, 2).transpose(1, 2).reshape(batch, WIDTH, 8, 12)
        return self.head(self.after(torch.cat([x, y], 1)).mean((2, 3)))


class TalkingHeads(Vit):
    """Heads mixed after the softmax: what weighs the values is no softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(HEADS, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        x = self.patch(x).flatten(2).transpose(1, 2)
        query = heads_of(x)
        weights = (query @ query.transpose(-2, -1)).softmax(-1)
        weights = self.mix(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head((weights @ query).transpose(1, 2).flatten(2).mean(1))


class ReducedKeys(Vit):
    """PVT: keys and values of a coarser grid."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(WIDTH, WIDTH, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        x = self.patch(x)
        query = heads_of(x.flatten(2).transpose(1, 2))
        key = heads_of(self.reduce(x).flatten(2).transpose(1, 2))
        attended, _ = attend(query, key, key)
        return self.head(attended.transpose(1, 2).flatten(2).mean(1))


class Neighbours(nn.Module):
    """A convolution on each channel of 4 x 6 patches; what stands before them stays."""

    def __init__(self, width: int, special: int = 0) -> None:
        super().__init__()
        self.special = special
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.mix(x[:, self.special :].transpose(1, 2).unflatten(2, (4, 6))).flatten(2).transpose(1, 2)
        return torch.cat([x[:, : self.special], patches], 1) if self.special else patches


def mixing(block: Block, special: int = 0) -> Block:
    """An MLP that mixes neighbours."""
    block.mlp.insert(1, Neighbours(2 * WIDTH, special))
    return block


class ConvMlp(Classifier):
    """PVT V2, SegFormer: the MLPs mix neighbours, and the head takes tokens for a picture before their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.blocks = nn.ModuleList(mixing(Block()) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        x = self.patch(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, self)
        return self.head(self.read(self.norm(x)).unflatten(1, (4, 6)).permute(0, 3, 1, 2).mean((2, 3)))

    def read(self, x: Tensor) -> Tensor:
        return x


class ConvBehind(ConvMlp):
    """Neighbours are mixed behind the last block, and nothing keeps the tokens beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.behind = Neighbours(WIDTH)

    def read(self, x: Tensor) -> Tensor:
        return self.behind(x)


class LocalVit(Vit):
    """The same MLPs with a class token, which they pass by."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(mixing(Block(), 1) for _ in range(2))


class Convolutions(Classifier):
    """Squeeze and excitation, depthwise, a norm before the pool: no attention, an exact class map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.deep = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, groups=WIDTH)
        self.squeeze, self.excite = nn.Conv2d(WIDTH, 4, 1), nn.Conv2d(4, WIDTH, 1)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        x = self.deep(F.silu(self.stem(x)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(F.adaptive_avg_pool2d(self.norm(x * gate), 1).flatten(1))


def lively(model: Classifier, seed: int = 0) -> Classifier:
    """Weights that make attention uneven and norms count; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model.eval()

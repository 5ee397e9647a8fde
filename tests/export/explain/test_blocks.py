"""LeGrad asks the classifier where a block ends, whatever the block's form; where that cannot be told it is refused."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.explain.relevance import GRAD_ATTENTION, LEGRAD, RELEVANCE
from tests.export.explain.nets import explained_net
from tests.export.explain.test_legrad import assert_right
from tests.export.graph import models as plain


class Parts(plain.Block):
    """What blocks of many forms are made of."""

    def __init__(self) -> None:
        super().__init__()
        width = plain.WIDTH
        self.norm3, self.norm4 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate1, self.gate2, self.other = (nn.Linear(width, width) for _ in range(3))
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(width)) for _ in range(2))
        self.second = nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))
        self.both = nn.Linear(3 * width, width)
        self.deep = nn.Conv1d(width, width, 3, padding=1, groups=width)
        self.wide = nn.Conv1d(width, width, 3, padding=1)

    def weighed(self, x: Tensor, owner: plain.Classifier) -> Tensor:
        query, key, value = (plain.heads_of(one(x)) for one in (self.query, self.key, self.value))
        attended, weights = plain.attend(query, key, value)
        owner.seen.append(weights)
        return attended.transpose(1, 2).flatten(2)

    def attend(self, x: Tensor, owner: plain.Classifier) -> Tensor:
        return self.out(self.weighed(x, owner))

    def conv(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x.transpose(1, 2)).transpose(1, 2)


Form = Callable[[Parts, Tensor, plain.Classifier], Tensor]


class Formed(plain.Vit):
    """Blocks of a form, the mean of the patches or the class token, and perhaps something more behind each block."""

    def __init__(self, form: Form, layers: int = 2, *, class_token: bool = False, behind: Form | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FormedBlock(form) for _ in range(layers))
        self.others = nn.ModuleList(FormedBlock(behind) for _ in range(layers) if behind is not None)
        self.class_token = class_token

    def forward(self, x: Tensor) -> Tensor:
        self.begin()
        patches = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), patches], 1) + self.position
        passed = [x]
        for index, block in enumerate(self.blocks):
            x = block(self.before(passed, index), self)
            if self.others:
                x = self.others[index](x, self)
            passed.append(x)
        return self.classify(self.norm(x), passed)

    def before(self, passed: Sequence[Tensor], index: int) -> Tensor:
        return passed[-1]

    def classify(self, x: Tensor, passed: Sequence[Tensor]) -> Tensor:
        return self.head(x[:, 0] if self.class_token else x[:, 1:].mean(1))


class FormedBlock(Parts):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor, owner: plain.Classifier, mask: Tensor | None = None) -> Tensor:
        return self.form(self, x, owner)


def pre_norm(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    x = x + it.attend(it.norm1(x), owner)
    return x + it.mlp(it.norm2(x))


def attention_alone(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    return x + it.attend(it.norm1(x), owner)


def parallel(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    y = it.norm1(x)
    return x + it.attend(y, owner) + it.mlp(y)


def mlp_first_parallel(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    y = it.norm1(x)
    return x + it.mlp(y) + it.attend(y, owner)


def parallel_by_one_product(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    y = it.norm1(x)
    return x + it.both(torch.cat([it.weighed(y, owner), F.gelu(it.mlp[0](y))], -1))


def parallel_added_first(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    y = it.norm1(x)
    return x + (it.attend(y, owner) + it.mlp(y))


def sandwich(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    x = x + it.norm3(it.attend(it.norm1(x), owner))
    return x + it.norm4(it.mlp(it.norm2(x)))


def deep_norm(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    x = it.norm1(1.5 * x + it.attend(x, owner))
    return it.norm2(1.5 * x + it.mlp(x))


def scaled_and_dropped(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    x = x + F.dropout(it.scale1 * it.attend(it.norm1(x), owner), 0.1, it.training)
    return x + F.dropout(it.scale2 * it.mlp(it.norm2(x)), 0.1, it.training)


def highway(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    gate = torch.sigmoid(it.gate1(x))
    x = gate * x + (1 - gate) * it.attend(it.norm1(x), owner)
    gate = torch.sigmoid(it.gate2(x))
    return gate * x + (1 - gate) * it.mlp(it.norm2(x))


def gated_attention(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    y = it.norm1(x)
    x = x + it.out(torch.sigmoid(it.gate1(y)) * it.weighed(y, owner))
    y = it.norm2(x)
    return x + it.other(F.silu(it.gate2(y)) * it.other(y))


def differences(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    x = x - it.attend(it.norm1(x), owner)
    return x - it.mlp(it.norm2(x))


def mixed_by_neighbours(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    """The MLP as in SegFormer, with a depthwise convolution."""
    x = x + it.attend(it.norm1(x), owner)
    return x + it.other(F.gelu(it.conv(it.deep, it.other(it.norm2(x)))))


RIGHT = [
    pre_norm, attention_alone, parallel, mlp_first_parallel, parallel_by_one_product, parallel_added_first, sandwich,
    deep_norm, scaled_and_dropped, highway, gated_attention, differences, mixed_by_neighbours,
]  # fmt: skip


class NormedPatches(Formed):
    """Of patches behind a norm, their places are added behind it."""

    def before(self, passed: Sequence[Tensor], index: int) -> Tensor:
        return passed[-1] if index else self.norm(passed[-1]) + self.position


@pytest.mark.parametrize("form", RIGHT)
def test_every_class_has_the_map_of_float64_autograd(form: Form, tmp_path: Path) -> None:
    """Each block asked behind all of it."""
    assert_right(Formed(form), tmp_path)


@pytest.mark.parametrize("form", [parallel, mlp_first_parallel])
def test_so_has_it_where_the_last_block_gives_the_class_token_alone(form: Form, tmp_path: Path) -> None:
    assert_right(Formed(form, class_token=True), tmp_path, class_token=True)


def test_so_has_it_where_patches_come_from_a_norm_and_blocks_end_in_one(tmp_path: Path) -> None:
    """The places that are added between say that the norm is no block's."""
    assert_right(NormedPatches(deep_norm), tmp_path)


def mlp_behind(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    return x + it.second(it.norm3(x))


def mlp_without_a_skip_behind(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    return it.second(it.norm3(x))


def neighbours_behind(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    return x + it.conv(it.deep, x)


def convolutions_behind(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    return F.relu(x + it.conv(it.wide, F.relu(it.conv(it.wide, x))))


def mlp_then_attention(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    x = x + it.mlp(it.norm2(x))
    return x + it.attend(it.norm1(x), owner)


def half_mlps_around(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    return mlp_behind(it, mlp_then_attention(it, x, owner), owner)


def norm_before_the_skip(it: Parts, x: Tensor, owner: plain.Classifier) -> Tensor:
    x = it.norm1(x)
    x = x + it.attend(x, owner)
    return x + it.mlp(it.norm2(x))


class FromTheBlockBefore(Formed):
    def before(self, passed: Sequence[Tensor], index: int) -> Tensor:
        return passed[-1] + passed[-2] if index else passed[-1]

    def classify(self, x: Tensor, passed: Sequence[Tensor]) -> Tensor:
        return super().classify(self.norm(passed[-1] + passed[-2]), passed)


class FromTheEntry(Formed):
    """The patches, through a layer of its own, are added to what each block gives."""

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        self.again = nn.Linear(plain.WIDTH, plain.WIDTH)

    def before(self, passed: Sequence[Tensor], index: int) -> Tensor:
        return passed[-1] + self.again(passed[0]) if index else passed[-1]

    def classify(self, x: Tensor, passed: Sequence[Tensor]) -> Tensor:
        return super().classify(self.norm(passed[-1] + self.again(passed[0])), passed)


class ReadsAllBlocks(Formed):
    """The class token behind each block, side by side."""

    def __init__(self, form: Form) -> None:
        super().__init__(form, class_token=True)
        self.head = nn.Linear(2 * plain.WIDTH, plain.CLASSES)

    def classify(self, x: Tensor, passed: Sequence[Tensor]) -> Tensor:
        return self.head(torch.cat([one[:, 0] for one in passed[1:]], -1))


class UsesWeightsAgain(Formed):
    """The weights of each block weigh the values of one more."""

    def before(self, passed: Sequence[Tensor], index: int) -> Tensor:
        return self.again(passed[-1], index - 1) if index else passed[-1]

    def classify(self, x: Tensor, passed: Sequence[Tensor]) -> Tensor:
        return super().classify(self.norm(self.again(passed[-1], 1)), passed)

    def again(self, x: Tensor, index: int) -> Tensor:
        block = self.blocks[index]
        return x + (self.seen[-1] @ plain.heads_of(block.other(block.norm3(x)))).transpose(1, 2).flatten(2)


BESIDE = "which of the sums behind attention_00 ends its block is not known: an MLP stands beside its attention"
NO_MLP = "which of the sums behind attention_00 ends its block is not known: what is added by the second one comes from"
ENTRY = "which of the sums behind attention_00 ends its block is not known: something is added to them that does not"
WHOSE = "whether what stands behind the last sum of its blocks is theirs is not known"
ONLY = "whether what stands behind its only block is the block's or the classifier's is not known"
NORM = "whether a norm ends each block, or begins the next one, is not known"
REFUSED: dict[str, tuple[Callable[[], Formed], str]] = {
    "an MLP behind a parallel block": (lambda: Formed(mlp_first_parallel, behind=mlp_behind), BESIDE),
    "and a class token": (lambda: Formed(mlp_first_parallel, class_token=True, behind=mlp_behind), BESIDE),
    "of one product": (lambda: Formed(parallel_by_one_product, behind=mlp_behind), BESIDE),
    "of one product, the only block": (lambda: Formed(parallel_by_one_product, 1, behind=mlp_behind), BESIDE),
    "of two sums": (lambda: Formed(parallel, behind=mlp_behind), "which of 3 sums behind attention_00"),
    "an MLP without a skip": (lambda: Formed(mlp_first_parallel, behind=mlp_without_a_skip_behind), WHOSE),
    "and the only block": (lambda: Formed(attention_alone, 1, behind=mlp_without_a_skip_behind), ONLY),
    "neighbours added": (lambda: Formed(attention_alone, behind=neighbours_behind), NO_MLP),
    "a block of convolutions": (lambda: Formed(attention_alone, behind=convolutions_behind), NO_MLP),
    "the MLP first": (lambda: Formed(mlp_then_attention), "which of 1 sums behind attention_01"),
    "half MLPs around": (lambda: Formed(half_mlps_around), "which of 3 sums behind attention_00"),
    "a norm before the skip": (lambda: Formed(norm_before_the_skip), NORM),
    "a skip over two blocks": (lambda: FromTheBlockBefore(mlp_first_parallel), "which of 2 sums behind attention_01"),
    "a skip from the entry": (lambda: FromTheEntry(attention_alone), ENTRY.replace("00", "01")),
    "a classifier of all blocks": (lambda: ReadsAllBlocks(pre_norm), "its classifier reads more than what the last"),
    "weights used again": (lambda: UsesWeightsAgain(pre_norm), "attention_00 are the weights of more than one block"),
}  # fmt: skip


OLD = ("an MLP behind a parallel block", "neighbours added", "a norm before the skip")


@pytest.mark.parametrize(("case", "opset"), [*((case, 18) for case in REFUSED), *((case, 16) for case in OLD)])
def test_where_the_end_is_not_known_there_is_a_reason(case: str, opset: int, tmp_path: Path) -> None:
    """And the other maps, never a map of another place; also where norms are written out, as before opset 17."""
    make, reason = REFUSED[case]
    added, _ = explained_net(plain.lively(make()), tmp_path, opset)
    assert added.maps.names == (RELEVANCE, GRAD_ATTENTION)
    assert added.why_not[LEGRAD].startswith(reason)

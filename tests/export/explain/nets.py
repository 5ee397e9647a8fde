"""Nets whose blocks are not the usual ones, and their graphs with maps of the gradient."""

from pathlib import Path

import onnx_ir as ir
import onnxruntime
from torch import Tensor, nn

from export.explain.relevance import Classifier, Explained, add_relevance
from export.names import LOGITS
from tests.export.graph import models
from tests.export.graph.conftest import exposed, write


class PostNorm(models.MeanOfPatches):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(models.PostNormBlock() for _ in range(2))
        self.norm = nn.Identity()


class GeluEndBlock(models.Block):
    def __init__(self, approximate: str) -> None:
        super().__init__()
        self.end = nn.GELU(approximate)

    def forward(self, x: Tensor, owner: models.Classifier, mask: Tensor | None = None) -> Tensor:
        end: Tensor = self.end(super().forward(x, owner, mask))
        return end


class GeluEnd(models.MeanOfPatches):
    """GELU behind each block, and no norm behind the last."""

    def __init__(self, approximate: str, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GeluEndBlock(approximate) for _ in range(blocks))
        self.norm = nn.Identity()


class Mlp(nn.Module):
    """A residual block without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(models.WIDTH)
        self.mlp = nn.Sequential(nn.Linear(models.WIDTH, 32), nn.GELU(), nn.Linear(32, models.WIDTH))

    def forward(self, x: Tensor, owner: models.Classifier) -> Tensor:
        return x + self.mlp(self.norm(x))


class FewKeys(models.Block):
    """Attends to every second token; attention before it does not count."""

    def forward(self, x: Tensor, owner: models.Classifier, mask: Tensor | None = None) -> Tensor:
        owner.begin()
        y = self.norm1(x)
        few = y[:, ::2]
        query, key, value = (models.heads_of(one) for one in (self.query(y), self.key(few), self.value(few)))
        attended, _ = models.attend(query, key, value)
        return x + self.out(attended.transpose(1, 2).flatten(2))


class Between(models.MeanOfPatches):
    """Three attention blocks, and something else with so many of them `behind` it."""

    def __init__(self, other: nn.Module, behind: int = 1) -> None:
        super().__init__()
        blocks = [models.Block() for _ in range(3)]
        blocks.insert(len(blocks) - behind, other)
        self.blocks = nn.ModuleList(blocks)


def explained_net(
    net: models.Classifier, folder: Path, opset: int = 18
) -> tuple[Explained, onnxruntime.InferenceSession]:
    """Raises BundleError."""
    model, found = exposed(write(net, net.size, folder / "given.onnx", "script", opset), net.size)
    outputs = {value.name: value for value in model.graph.outputs}
    attention = tuple(outputs[layer.output] for layer in found.layers)
    classifier = Classifier("it", outputs[LOGITS], found.classes, found.layers, attention, found.pooling, None)
    added = add_relevance(model, classifier)
    content = ir.to_proto(model).SerializeToString()
    return added, onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

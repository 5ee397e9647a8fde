"""The types of manifest.json: what a bundle promises, in one place, read by the service and written by the exporter.

Every type is frozen and refuses unknown keys, so a typo or a manifest of a later schema fails at load and not at the
first request.
"""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, model_validator

from saccade.card import Card
from saccade.frozen import NAME, Count, Frozen, Sha256

SCHEMA_VERSION = 1

Channel = Annotated[int, Field(ge=0, le=255)]
GradientMapName = Literal["relevance", "grad_attention", "legrad", "grad_cam"]
MapName = Literal["pooling", "rollout", "class", "relevance", "grad_attention", "legrad", "grad_cam"]
Scores = Literal["softmax", "sigmoid"]
Precision = Literal["float32", "float16", "int8"]
Edge = Annotated[int, Field(ge=1, le=8192)]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]

SWITCHES: dict[str, tuple[str, ...]] = {
    "with_relevance": ("relevance", "grad_attention"), "with_legrad": ("legrad",),
    "with_rollout": ("rollout",), "with_class_map": ("class_tokens",),
}  # fmt: skip
"""Inputs of relevance.onnx, a bool each, and the outputs that they are for: ONNX Runtime works out all outputs of a
graph, whichever are asked for."""

TEMPERATURES = (0.05, 20.0)
"""The least and the greatest that scores may have: beyond them a fit says that there is none."""


class Preprocessing(Frozen):
    """How an RGB picture becomes the input of the net; `saccade.preprocess` is what these words mean.

    `fit="stretch"` resizes the whole picture to `stretch_to`, and takes the (height, width) in its middle; without
    `stretch_to`, to (height, width) itself. `fit="crop"` resizes it so that its shorter side is `shortest_edge` pixels
    and takes the (height, width) in the middle.
    """

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    fit: Literal["stretch", "crop"] = "crop"
    shortest_edge: int | None = Field(None, ge=1, le=8192)
    stretch_to: tuple[Edge, Edge] | None = None
    """Height and width of the stretched picture before the crop, for fit="stretch"."""
    interpolation: Interpolation = "bilinear"
    channels: Literal["RGB", "BGR"] = "RGB"
    """Order in which the net takes them; `mean` and `std` stand in the same order."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    background: tuple[Channel, Channel, Channel] = (255, 255, 255)
    """What shows through transparent pixels, RGB."""

    @model_validator(mode="after")
    def _consistent(self) -> "Preprocessing":
        if self.fit == "crop" and (self.shortest_edge or 0) < max(self.height, self.width):
            raise ValueError(
                f"fit='crop' needs shortest_edge of at least {max(self.height, self.width)}, not {self.shortest_edge}"
            )
        cropped = self.fit == "crop" or self.stretch_to not in (None, (self.height, self.width))
        if cropped and self.interpolation in ("nearest", "box"):
            # their kernels are steps: the last bit of the crop's corner would decide over a whole pixel
            raise ValueError(f"a crop needs a smooth interpolation, bilinear or bicubic, not {self.interpolation}")
        if self.fit == "stretch" and self.shortest_edge is not None:
            raise ValueError("shortest_edge has no meaning with fit='stretch'")
        if self.fit == "crop" and self.stretch_to is not None:
            raise ValueError("stretch_to has no meaning with fit='crop'")
        if self.stretch_to is not None and (self.stretch_to[0] < self.height or self.stretch_to[1] < self.width):
            raise ValueError(f"stretch_to must be at least {self.height} x {self.width}, not {self.stretch_to}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")
        return self


class SpecialTokens(Frozen):
    """Tokens that are no patch (class token, registers, distillation); together, before or after the patches."""

    count: int = Field(0, ge=0)
    place: Literal["first", "last"] = "first"


class Windows(Frozen):
    """Of a layer whose tokens attend within parts of the picture only: how the windows lie on its patches.

    Token (r, c) of window (i, j) is a patch of the whole picture, counted in rows and columns: for `blocks` (Swin,
    Liu et al. 2021) the patch (i * rows + r + shift[0], j * columns + c + shift[1]), modulo the padded whole; for
    `interleaved` (MobileViT, Mehta & Rastegari 2022) the patch (r * count[0] + i, c * count[1] + j). Patches at or
    beyond `picture` are padding.
    """

    count: tuple[Count, Count]
    """Rows and columns of windows; as an output's axis they stand row by row."""
    picture: tuple[Count, Count]
    """Rows and columns of patches of the whole picture in this layer, without padding."""
    layout: Literal["blocks", "interleaved"] = "blocks"
    shift: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)


class AttentionLayer(Frozen):
    """Geometry of one output `attention_NN`: (batch, heads, tokens, tokens), or (batch, windows, heads, tokens, tokens)
    where there are windows. Never worked out from a square root.
    """

    output: str
    grid: tuple[Count, Count]
    """Rows and columns of patches; where there are windows, of one of them."""
    heads: int = Field(ge=1)
    special_tokens: SpecialTokens = SpecialTokens()
    windows: Windows | None = None

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        return self.patches + self.special_tokens.count

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the output, without the batch axis."""
        windows = () if self.windows is None else (self.windows.count[0] * self.windows.count[1],)
        return (*windows, self.heads, self.tokens, self.tokens)

    @property
    def patch_slice(self) -> slice:
        """Where the patches stand among the tokens."""
        first = self.special_tokens.count if self.special_tokens.place == "first" else 0
        return slice(first, first + self.patches)


class Pooling(Frozen):
    """How the tokens of the last layer become one vector: the row w of the rollout and of `rows=pool`.

    `learned`: the output `pooling` (batch, tokens), rows sum to 1. `class_token`: the token at `index`. `mean`: 1/P for
    each patch. `class_and_distillation`: half of each of the two tokens from `index` on (DeiT: its logits are the mean
    of two heads'). `class_and_mean`: half of the class token, half of the mean (DINOv2, whose head reads both).
    """

    kind: Literal["learned", "class_token", "mean", "class_and_distillation", "class_and_mean"]
    index: int = Field(0, ge=0)

    @property
    def last_index(self) -> int:
        """The last special token that is read by its number; -1 where none is."""
        return {"class_token": self.index, "class_and_mean": self.index, "class_and_distillation": self.index + 1}.get(
            self.kind, -1
        )


class ClassMap(Frozen):
    """The exact class map: M[i, c] = tokens[i] · weight[c], whose sum over i plus bias[c] is logit c.

    `tokens` names the output (batch, patches, width); `weight` (classes, width) and `bias` (classes,) name tensors of
    weights.safetensors. A head without a bias has None.
    """

    tokens: str
    weight: str
    bias: str | None
    grid: tuple[Count, Count]


class GradientMaps(Frozen):
    """Maps of the gradient of any class asked for: outputs (batch, k, patches) of relevance.onnx, which takes
    `class_index` (batch, k) beside the pixels, and gives all that model.onnx gives as well.
    """

    names: tuple[GradientMapName, ...] = Field(min_length=1)
    grid: tuple[Count, Count]
    """Rows and columns of patches."""
    layers: tuple[str, ...] = ()
    """Attention outputs that they are made of: the last ones, where layers differ in grid."""


class Maps(Frozen):
    """The maps that this model can give, and those given when nobody asked for any by name."""

    default: tuple[MapName, ...]
    pooling: str | None = None
    """Output (batch, tokens): the weight of each token of the last layer in learned pooling."""
    rollout: str | None = None
    """Output (batch, patches): attention rollout from the pooled row."""
    class_map: ClassMap | None = None
    gradients: GradientMaps | None = None
    """Those of relevance.onnx; None where there is no such file."""
    why_not: dict[GradientMapName, str] = Field(default_factory=dict)
    """Of maps of the gradient that this model cannot have, the reason."""

    @property
    def available(self) -> tuple[MapName, ...]:
        present: list[tuple[MapName, object]] = [
            ("pooling", self.pooling),
            ("rollout", self.rollout),
            ("class", self.class_map),
        ]
        of_gradients = () if self.gradients is None else self.gradients.names
        return (*(name for name, what in present if what is not None), *of_gradients)

    def switches(self, outputs: Collection[str]) -> dict[str, bool]:
        """Those of SWITCHES that relevance.onnx has, which it must be given; true where one of `outputs` hangs on it.
        Where one is false, its maps are empty.
        """
        if self.gradients is None:
            return {}
        given = (*self.gradients.names, self.rollout, self.class_map and self.class_map.tokens)
        return {
            switch: any(name in outputs for name in maps)
            for switch, maps in SWITCHES.items()
            if any(name in given for name in maps)
        }

    @model_validator(mode="after")
    def _default_available(self) -> "Maps":
        missing = [name for name in self.default if name not in self.available]
        if missing:
            raise ValueError(f"default maps {missing} are not among the available {list(self.available)}")
        costly = [name for name in self.default if self.gradients is not None and name in self.gradients.names]
        if costly:
            raise ValueError(f"default maps {costly} are of relevance.onnx, which runs for who asks for them")
        return self


class Parent(Frozen):
    """The bundle that a variant was made of."""

    name: str = Field(pattern=NAME)
    version: int = Field(ge=1)
    weights_sha256: Sha256

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"


class FileEntry(Frozen):
    """One file of the bundle, as it was written."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class Origin(Frozen):
    """Whose model it is, where it was not trained here."""

    kind: Literal["transformers", "torch", "onnx"]
    name: str
    """Of the checkpoint, `module:function`, or of the ONNX file."""
    revision: str | None = None
    files: dict[str, str] = Field(default_factory=dict)
    """What was read: file name -> sha256."""
    configuration: dict[str, object] = Field(default_factory=dict)
    """What the framework needs, beside the weights, to build it again."""


class Initialisation(Frozen):
    """Whose weights a training run began with."""

    name: str
    """Of a bundle, or of a safetensors file."""
    sha256: Sha256
    """Of the weights."""
    changes: tuple[str, ...] = ()
    """What was made new or interpolated, a phrase each."""


class Provenance(Frozen):
    """Where the weights come from; with the bundle alone, enough to rebuild the net. Either `recipe` or `origin`."""

    recipe: dict[str, object] | None = None
    origin: Origin | None = None
    init: Initialisation | None = None
    """None where training began with random weights."""
    data: str | None = None
    data_sha256: str | None = None
    """Fingerprint of all training pictures, held-out ones included; None for a model that was not trained here."""
    held_out: str | None = None
    seed: int | None = None
    commit: str | None
    versions: dict[str, str]


class Measured(Frozen):
    """One promise held against its source: the largest difference seen and the most that is allowed."""

    largest: float
    allowed: float


class Parity(Frozen):
    """What `saccade verify` measured: graph through ONNX Runtime against the net rebuilt in eager PyTorch."""

    pictures: int
    source: str
    batches: tuple[int, ...]
    provider: str
    checks: dict[str, Measured]
    versions: dict[str, str]


class Manifest(Frozen):
    """manifest.json of `models/<name>/<version>/`."""

    schema_version: Literal[1]
    name: str = Field(pattern=NAME)
    version: int = Field(ge=1)
    precision: Precision = "float32"
    """Of most weights; inputs and outputs of the graph are float32 always."""
    parent: Parent | None = None
    """Of a variant, whose precision is lower."""
    labels: tuple[str, ...] = Field(min_length=1)
    scores: Scores = "softmax"
    """What makes scores of the logits: one label of all, or each label by itself (multi-label)."""
    temperature: float = Field(1.0, ge=TEMPERATURES[0], le=TEMPERATURES[1])
    """Logits are divided by it before they become scores (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""
    preprocessing: Preprocessing
    attention: tuple[AttentionLayer, ...] = ()
    pooling: Pooling | None = None
    maps: Maps
    tolerance: dict[str, dict[str, float]]
    """Execution provider -> kind of output (logits, attention, pooling, rollout, class_tokens), or of a variant the
    output itself -> largest absolute difference from golden.npz that is accepted at load."""
    provenance: Provenance
    card: Card
    parity: Parity | None = None
    files: dict[str, FileEntry]

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    def unlike(self, other: "Manifest") -> tuple[str, ...]:
        """Of the fields that decide which scores a picture gets, those in which `other` differs."""
        fields = ("files", "labels", "scores", "temperature", "preprocessing")
        return tuple(name for name in fields if getattr(self, name) != getattr(other, name))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Every output that model.onnx must have, in the order of the graph; relevance.onnx has them too."""
        maps = (self.maps.pooling, self.maps.rollout, self.maps.class_map and self.maps.class_map.tokens)
        return ("logits", *(layer.output for layer in self.attention), *(name for name in maps if name))

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if (self.parent is None) != (self.precision == "float32"):
            raise ValueError(f"a variant has a parent and another has none; precision is {self.precision}")
        if self.maps.rollout and self.pooling is None:
            raise ValueError("the map rollout needs a model that says how it pools")
        if (self.maps.rollout or self.maps.pooling) and any(layer.windows for layer in self.attention):
            raise ValueError("the maps rollout and pooling need layers that attend to the whole picture, not to parts")
        if (self.maps.rollout or self.maps.pooling) and not self.attention:
            raise ValueError("the maps rollout and pooling need attention layers, and there are none")
        if self.pooling is not None and not self.attention:
            raise ValueError("pooling is said of the last attention layer's tokens, and there are none")
        if self.pooling is not None and self.pooling.kind == "learned" and not self.maps.pooling:
            raise ValueError("learned pooling needs an output for its weights, maps.pooling")
        tokens = self.attention[-1].tokens if self.attention else 0
        if self.pooling is not None and self.pooling.last_index >= tokens:
            raise ValueError(f"pooling.index is {self.pooling.index}; the last layer has {tokens} tokens")
        if len(set(self.outputs)) != len(self.outputs):
            raise ValueError(f"outputs must differ from each other: {', '.join(self.outputs)}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ from each other")
        return self

"""The wire types of /v1: what a caller may ask and what comes back. The service, the client and the OpenAPI share them.

Options are kept as the strings of the query, checked for form here; what they mean for a given model (does layer 3
exist?) is `service.selection`'s business.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    field_validator,
)

from saccade.card import Card
from saccade.decode import decode
from saccade.errors import InvalidParameter
from saccade.frozen import Frozen
from saccade.geometry import Region
from saccade.manifest import Manifest, MapName, Parity
from saccade.overlay import overlay
from saccade.picture import Picture, picture_bytes

_INDICES = r"\d{1,9}(,\d{1,9})*"
_MAP = f"({'|'.join(get_args(MapName))})"

Indices = tuple[int, ...]

_MOST_PIXELS = 178_000_000
"""As many as any service may take."""


class ClassifyOptions(Frozen):
    """The query of POST /v1/classify."""

    model: str | None = Field(
        None, description="`name` (its highest version) or `name@version`; the default model if absent"
    )
    top_k: int = Field(5, ge=1, le=100_000, description="How many labels, most probable first")
    min_score: float = Field(0.0, ge=0, le=1, description="Leave out labels with a lower probability")
    maps: str | None = Field(
        None,
        pattern=rf"^(none|{_MAP}(,{_MAP})*)$",
        description="Maps by name, with commas; `none`; the model's default if absent",
    )
    classes: tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...] = Field(
        ("top1",),
        min_length=1,
        max_length=1000,
        description="Classes of the class map and of maps of the gradient: `top1`, `topk`, or indices or labels, with "
        "commas or given again",
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        """One alone, and indices as numbers, as a caller in Python has them."""
        several = value if isinstance(value, (tuple, list)) else (value,)
        return tuple(str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in several)

    attention: str = Field(
        "none", pattern=rf"^(none|last|all|{_INDICES})$", description="Layers whose weights to return; 0 is the first"
    )
    heads: str = Field("mean", pattern=rf"^(mean|all|{_INDICES})$", description="Heads of each layer, or their mean")
    rows: str = Field(
        "all",
        pattern=rf"^(all|pool|{_INDICES})$",
        description="Rows (tokens that look) of each layer; `pool` is the row that the classifier reads",
    )
    windows: str = Field(
        "all",
        pattern=rf"^(all|{_INDICES})$",
        description="Windows of each layer that attends within parts of the picture (Swin); others have none",
    )
    decimals: int = Field(6, ge=0, le=9, description="Digits after the point of scores, maps and weights")
    timeout_ms: int | None = Field(
        None, ge=1, le=3_600_000, description="Give up after so many milliseconds; the service's default if absent"
    )

    @classmethod
    def from_query(cls, query: Iterable[tuple[str, str]]) -> "ClassifyOptions":
        """From the pairs of a query string. Raises InvalidParameter with the bound and the value seen."""
        values: dict[str, Any] = {}
        for name, value in query:
            if name == "classes":
                values[name] = (*values.get(name, ()), value)
            elif name in values:
                raise InvalidParameter(f"parameter {name} is given twice: {values[name]!r} and {value!r}")
            else:
                values[name] = value
        return cls.checked(values)

    @classmethod
    def checked(cls, values: dict[str, Any]) -> "ClassifyOptions":
        """From values by name. Raises InvalidParameter with the bound and the value seen."""
        unknown = [name for name in values if name not in cls.model_fields]
        if unknown:
            raise InvalidParameter(f"unknown parameter {unknown[0]!r}; there are {', '.join(cls.model_fields)}")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InvalidParameter(_sentence(error)) from error

    def to_query(self) -> list[tuple[str, str]]:
        """The pairs of a query string; defaults are left out."""
        pairs: list[tuple[str, str]] = []
        for name, value in self.model_dump(exclude_defaults=True).items():
            pairs += [(name, str(item)) for item in (value if isinstance(value, tuple) else (value,))]
        return pairs


def indices(text: str) -> Indices:
    """`"0,2"` -> (0, 2)."""
    return tuple(int(part) for part in text.split(","))


_GRAMMAR = {
    "classes": "top1, topk, or indices or labels of at most 1000 characters each, with commas or given again",
    "maps": f"none, or of {', '.join(get_args(MapName))}, with commas",
    "attention": "none, last, all, or layer indices with commas",
    "heads": "mean, all, or head indices with commas",
    "rows": "all, pool, or token indices with commas",
    "windows": "all, or window indices with commas",
}


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name, seen = str(first["loc"][0]), repr(first["input"])[:100]
    context = first.get("ctx", {})
    match "string_pattern_mismatch" if name == "classes" else first["type"]:
        case "greater_than_equal":
            return f"{name} must be at least {context['ge']}, not {seen}"
        case "less_than_equal":
            return f"{name} must be at most {context['le']}, not {seen}"
        case "string_pattern_mismatch":
            return f"{name} must be {_GRAMMAR[name]}, not {seen}"
        case "int_parsing" | "int_parsing_size":
            return f"{name} must be a whole number, not {seen}"
        case "float_parsing" | "finite_number":
            return f"{name} must be a number, not {seen}"
        case _:
            return f"{name}: {first['msg']}, not {seen}"


class _Wire(BaseModel):
    """Base of what the service sends. A client of this version reads answers of a later one: unknown keys are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


def _numbers(dimensions: int) -> tuple[PlainValidator, PlainSerializer, WithJsonSchema]:
    """How nested lists of numbers become an array of so many dimensions, and what JSON Schema says of them."""

    def read(value: object) -> NDArray[np.float64]:
        array = np.asarray(value, np.float64)
        if array.ndim != dimensions:
            raise ValueError(f"not {dimensions} dimensions but {array.ndim}")
        return array

    schema: dict[str, Any] = {"type": "number"}
    for _ in range(dimensions):
        schema = {"type": "array", "items": schema}
    return PlainValidator(read), PlainSerializer(np.ndarray.tolist), WithJsonSchema(schema)


# float64, so that every digit of the answer is kept; decimals=9 is more than float32 holds
Grid = Annotated[NDArray[np.float64], *_numbers(2)]
Weights = Annotated[NDArray[np.float64], *_numbers(3)]


class _WithArrays(_Wire):
    """Equal by what it says: arrays have no single answer to `==`, and a client's picture is not part of an answer."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]


class ModelId(_Wire):
    name: str
    version: int


class Label(_Wire):
    label: str
    index: int
    score: float
    """Probability over all classes; of a multi-label model, of this label by itself. Calibrated where the model is."""


class Map(_WithArrays):
    """One map on the grid. A class map also carries what proves it: sum + bias = logit, but for float32's rounding."""

    name: MapName
    class_index: int | None
    """Of the class map and of maps of the gradient, whose class it is."""
    grid: tuple[int, int]
    values: Grid
    """(rows, columns)."""
    special_tokens_share: float | None = None
    """Of rollout: what went to tokens that are no patch, and is not in `values`."""
    sum: float | None = None
    bias: float | None = None
    logit: float | None = None
    """Before the temperature: `score` is softmax (or sigmoid) of all logits divided by it."""
    temperature: float | None = None
    note: str | None = None
    """What there is to know before one reads `values`: that a map of the gradient is zero everywhere."""

    def __str__(self) -> str:
        return f"{self.name} map" if self.class_index is None else f"{self.name} map of class {self.class_index}"


class SpecialTokensPlace(_Wire):
    count: int
    place: Literal["first", "last"]


class Window(_Wire):
    """Which window of a layer: its number, row and column, and how windows lie on the picture (`Windows`)."""

    number: int
    row: int
    column: int
    count: tuple[int, int]
    picture: tuple[int, int]
    layout: Literal["blocks", "interleaved"]
    shift: tuple[int, int]


class Attention(_WithArrays):
    """Softmax weights of one layer, or of one window: `weights[head][row][token]` is how much `token` gave to `row`."""

    layer: int
    window: Window | None = None
    """Of a layer that attends within windows, an entry for each; `grid` is then that of one window."""
    heads: Literal["mean"] | list[int]
    grid: tuple[int, int]
    special_tokens: SpecialTokensPlace
    rows: Literal["all", "pool"] | list[int]
    shape: tuple[int, int, int]
    weights: Weights


class ImageSize(_Wire):
    width: int
    height: int


class RegionSeen(_Wire):
    """In pixels of the upright original; each grid spans it evenly."""

    left: float
    top: float
    width: float
    height: float


class Geometry(_Wire):
    image: ImageSize
    region: RegionSeen


class Timing(_Wire):
    decode_ms: float
    queue_ms: float
    run_ms: float
    total_ms: float
    batch_size: int


class Answer(_WithArrays):
    """200 of POST /v1/classify."""

    request_id: str
    model: ModelId
    labels: list[Label]
    maps: list[Map]
    attention: list[Attention] | None
    geometry: Geometry
    timing: Timing
    _picture: Picture | None = PrivateAttr(None)
    """As it was given to the client that asked."""

    def overlay(
        self,
        name: str | None = None,
        class_index: int | None = None,
        *,
        picture: Picture | None = None,
        background: tuple[int, int, int] = (255, 255, 255),
    ) -> Image.Image:
        """The picture with a map laid over it: the first of the answer's, or the one of that name and class.

        `picture` is needed for an answer that no client of this process got; a path is read anew. `background` shows
        where the picture is transparent. Raises InvalidParameter for a map that the answer does not hold and for
        another picture, InvalidImage, DataError.
        """
        asked = "a map" if name is None else f"a map {name!r}"
        asked += "" if class_index is None else f" of class {class_index}"
        for one in self.maps:
            if name in (None, one.name) and class_index in (None, one.class_index):
                break
        else:
            has = ", ".join(str(one) for one in self.maps) or "none"
            raise InvalidParameter(
                f"the answer does not hold {asked}: ask for it with maps= and classes=; it has {has}"
            )
        given = self._picture if picture is None else picture
        if given is None:
            raise InvalidParameter("the answer does not know its picture: give picture=")
        upright = decode(picture_bytes(given), background, _MOST_PIXELS)
        if upright.size != (self.geometry.image.width, self.geometry.image.height):
            raise InvalidParameter(
                f"the picture has {upright.width} x {upright.height} pixels, and the answer is about one of "
                f"{self.geometry.image.width} x {self.geometry.image.height}"
            )
        return overlay(upright, one.values.astype(np.float32), Region(**self.geometry.region.model_dump()))


class Error(_Wire):
    """Every answer that is not a success, the framework's own included."""

    error: str
    code: str
    request_id: str


class Live(_Wire):
    """200 of GET /v2/health/live."""

    live: Literal[True]


class Ready(_Wire):
    """200 of GET /v2/health/ready."""

    ready: Literal[True]


class ModelSummary(_Wire):
    name: str
    version: int
    default: bool
    labels: int
    maps: list[str]
    attention_layers: int
    scores: Literal["softmax", "sigmoid"]
    """Over all classes, or of each label by itself."""
    precision: Literal["float32", "float16", "int8"]
    parent: str | None
    """`name@version` of what a variant was made of."""
    input_size: tuple[int, int]
    """Height and width."""


class ModelList(_Wire):
    models: list[ModelSummary]


class Plan(_Wire):
    """How the service runs the model."""

    provider: str
    cpus: int
    """Whole CPUs that the process may use: the smaller of the next two."""
    cpu_affinity: int
    cpu_quota: float | None
    """CPUs' worth of time that the cgroup grants; null without a limit."""
    memory_limit: int | None
    """Bytes that the cgroup grants; null without a limit."""
    instances: int
    intra_op_threads: int
    spinning: bool
    decode_threads: int
    max_batch: int
    max_wait_ms: float
    queue_images: int
    run_timeout_s: float


class ModelInfo(_Wire):
    """200 of GET /v1/models/{name}."""

    name: str
    version: int
    maps: list[str]
    """Those that may be asked for; the manifest's may be more, where relevance.onnx is off or could not be opened."""
    manifest: Manifest
    card: Card
    parity: Parity | None
    plan: Plan

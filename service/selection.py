"""What a request asks of one model: options resolved against its manifest, before anything is decoded or run.

Raises InvalidParameter, UnsupportedMap, TooManyClasses and ResponseTooLarge, each naming the limit and the value seen.
"""

from typing import Literal, NamedTuple, cast, get_args

from saccade.api import ClassifyOptions, Indices, indices
from saccade.errors import InvalidParameter, RequestError, ResponseTooLarge, TooManyClasses, UnsupportedMap
from saccade.manifest import AttentionLayer, GradientMapName, Manifest, MapName
from saccade.reasons import why_not

_LEAST_BYTES = 4  # "0.0," in JSON
_ENVELOPE_BYTES = 1500  # everything that is no array, with room
_MAP_BYTES = 300  # of a map, what is no array

GRADIENT = get_args(GradientMapName)
"""Names of the maps of the gradient."""


Gradients = Literal["on", "off", "failed"]
"""Whether maps of the gradient may be asked for. Not where SACCADE_RELEVANCE is off; once relevance.onnx could not
be opened, in vain, and whoever waits for it is told so.
"""


class LayerSelection(NamedTuple):
    """Which weights of one attention layer go into the answer."""

    number: int
    layer: AttentionLayer
    heads: Literal["mean"] | Indices
    rows: Literal["all", "pool"] | Indices
    windows: Indices | None
    """Of a layer that attends within windows, those that are asked for; each is an entry of the answer."""

    @property
    def entries(self) -> int:
        return 1 if self.windows is None else len(self.windows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(heads, rows, tokens) of an entry."""
        heads = 1 if self.heads == "mean" else len(self.heads)
        rows = {"all": self.layer.tokens, "pool": 1}.get(cast(str, self.rows)) or len(self.rows)
        return heads, rows, self.layer.tokens


class Selection(NamedTuple):
    """A request, understood: what to fetch from the graph and what to put into the answer."""

    top_k: int
    min_score: float
    decimals: int
    maps: tuple[MapName, ...]
    classes: Literal["top1", "topk"] | Indices
    attention: tuple[LayerSelection, ...] | None
    outputs: tuple[str, ...]
    class_index: Indices
    """What relevance.onnx is asked for: classes, or ranks below 0, -1 being the top class. Empty: it is not needed."""
    numbers: int
    """How many numbers the answer's arrays hold."""


def select(
    manifest: Manifest,
    options: ClassifyOptions,
    max_bytes: int,
    *,
    max_classes: int | None = None,
    gradients: Gradients = "on",
) -> Selection:
    """Resolves `options` for the model; refuses what can only give an answer of more than `max_bytes`.

    Maps of the gradient are for at most `max_classes` classes, as many as one likes without it.
    """
    selection = _resolve(manifest, options, gradients)
    count = len(selection.class_index)
    if max_classes is not None and count > max_classes:
        asked = next(name for name in selection.maps if name in GRADIENT)
        raise TooManyClasses(f"classes: {count} are asked for; the limit is {max_classes} for the map {asked!r}")
    least = selection.numbers * _LEAST_BYTES
    if least > max_bytes:
        raise too_large(manifest, options, max_bytes, f"at least {least}")
    return selection


def offered(manifest: Manifest, gradients: Gradients) -> tuple[MapName, ...]:
    """The maps that may be asked for."""
    return tuple(name for name in manifest.maps.available if gradients == "on" or name not in GRADIENT)


def too_large(manifest: Manifest, options: ClassifyOptions, max_bytes: int, size: str) -> ResponseTooLarge:
    """The error for an answer of `size` bytes, with the largest of the usual smaller requests that fits."""
    for change in _SMALLER:
        smaller = options.model_copy(update=change)
        try:
            most = _most_bytes(manifest, _resolve(manifest, smaller))
        except RequestError:
            continue  # such a request is not one for this model
        if most <= max_bytes and smaller != options:
            asked = "&".join(
                f"{name}={value[0] if isinstance(value, tuple) else value}" for name, value in change.items()
            )
            return ResponseTooLarge(
                f"the answer would have {size} bytes; the limit is {max_bytes}; with {asked} it has at most {most}"
            )
    return ResponseTooLarge(f"the answer would have {size} bytes; the limit is {max_bytes}")


_SMALLER: tuple[dict[str, object], ...] = (
    {"heads": "mean"},
    {"rows": "pool"},
    {"attention": "last"},
    {"heads": "mean", "rows": "pool"},
    {"attention": "last", "heads": "mean"},
    {"attention": "last", "rows": "pool"},
    {"attention": "last", "heads": "mean", "rows": "pool"},
    {"attention": "last", "heads": "mean", "windows": "0"},
    {"attention": "last", "heads": "mean", "windows": "0", "rows": "0"},
    {"attention": "none"},
    {"attention": "none", "classes": ("top1",)},
    {"attention": "none", "maps": "none"},
    {"attention": "none", "maps": "none", "top_k": 5},
    {"attention": "none", "maps": "none", "top_k": 1},
)


def _resolve(manifest: Manifest, options: ClassifyOptions, gradients: Gradients = "on") -> Selection:
    maps = _maps(manifest, options, gradients)
    attention = _attention(manifest, options)
    selection = Selection(
        top_k=min(options.top_k, len(manifest.labels)),
        min_score=options.min_score,
        decimals=options.decimals,
        maps=maps,
        classes=_classes(manifest, options.classes),
        attention=attention,
        outputs=_outputs(manifest, maps, attention),
        class_index=(),
        numbers=0,
    )
    return selection._replace(class_index=_class_index(selection), numbers=_numbers(manifest, selection))


def _class_index(selection: Selection) -> Indices:
    if not any(name in GRADIENT for name in selection.maps):
        return ()
    if isinstance(selection.classes, tuple):
        return selection.classes
    ranks = selection.top_k if selection.classes == "topk" else 1
    return tuple(range(-1, -1 - ranks, -1))


def _maps(manifest: Manifest, options: ClassifyOptions, gradients: Gradients) -> tuple[MapName, ...]:
    if options.maps is None:
        return manifest.maps.default
    if options.maps == "none":
        return ()
    asked, has = cast(tuple[MapName, ...], tuple(dict.fromkeys(options.maps.split(",")))), manifest.maps.available
    offers = offered(manifest, gradients)
    for name in asked:
        if name not in (has if gradients == "failed" else offers):
            reason = "SACCADE_RELEVANCE is off" if name in has else why_not(manifest, name)
            raise UnsupportedMap(f"{manifest.id} has no map {name!r}: {reason}; it has {', '.join(offers) or 'no map'}")
    return asked


def _classes(manifest: Manifest, asked: tuple[str, ...]) -> Literal["top1", "topk"] | Indices:
    if asked == ("top1",):
        return "top1"
    if asked == ("topk",):
        return "topk"
    parts: list[str] = []
    for text in asked:  # a label may hold commas ("tench, Tinca tinca") and begin or end with a blank: whole first
        split = [text] if text in manifest.labels else [part.strip() for part in text.split(",")]
        if "" in split:
            raise InvalidParameter(f"classes: one is missing in {text[:80]!r}; one comma stands between two classes")
        parts += split
    return tuple(dict.fromkeys(_class_number(manifest, part) for part in parts))


def _class_number(manifest: Manifest, text: str) -> int:
    if text.isascii() and text.isdigit():
        index = int(text) if len(text) < 10 else len(manifest.labels)
        if index < len(manifest.labels):
            return index
        raise InvalidParameter(f"classes: index {text[:20]} is outside of 0 to {len(manifest.labels) - 1}")
    try:
        return manifest.labels.index(text)
    except ValueError:
        if text in ("top1", "topk"):
            raise InvalidParameter(f"classes: {text} stands alone, without other classes") from None
        raise InvalidParameter(
            f"classes: {manifest.id} has no label {text[:80]!r}; give top1, topk, indices or labels"
        ) from None


def _attention(manifest: Manifest, options: ClassifyOptions) -> tuple[LayerSelection, ...] | None:
    if options.attention == "none":
        return None
    count = len(manifest.attention)
    if not count:
        raise UnsupportedMap(
            f"{manifest.id} has no attention layers: attention must be none, not {options.attention!r}"
        )
    if options.attention in ("last", "all"):
        chosen = range(count)[-1:] if options.attention == "last" else range(count)
    else:
        chosen = _within("attention", options.attention, count, f"layers of {manifest.id}")  # type: ignore[assignment]
    return tuple(_layer(manifest, options, index) for index in chosen)


def _layer(manifest: Manifest, options: ClassifyOptions, index: int) -> LayerSelection:
    layer = manifest.attention[index]
    heads: Literal["mean"] | Indices = "mean"
    if options.heads == "all":
        heads = tuple(range(layer.heads))
    elif options.heads != "mean":
        heads = _within("heads", options.heads, layer.heads, f"heads of layer {index}")
    rows: Literal["all", "pool"] | Indices
    if options.rows == "all":
        rows = "all"
    elif options.rows == "pool":
        rows = "pool"
        _check_pooled_row(manifest, index)
    else:
        rows = _within("rows", options.rows, layer.tokens, f"tokens of layer {index}")
    return LayerSelection(index, layer, heads, rows, _windows(manifest, options, index))


def _check_pooled_row(manifest: Manifest, index: int) -> None:
    layer, last = manifest.attention[index], manifest.attention[-1]
    if manifest.pooling is None:
        raise UnsupportedMap(f"rows=pool: how {manifest.id} pools its tokens is not known")
    if layer.windows or last.windows:
        raise UnsupportedMap(f"rows=pool: {manifest.id} attends within windows, and no row of theirs is pooled")
    if (layer.grid, layer.special_tokens) != (last.grid, last.special_tokens):
        raise InvalidParameter(
            f"rows=pool: layer {index} has {_tokens(layer)}; the pooled row is that of the last layer, {_tokens(last)}"
        )


def _tokens(layer: AttentionLayer) -> str:
    return f"{layer.grid[0]} x {layer.grid[1]} + {layer.special_tokens.count} tokens"


def _windows(manifest: Manifest, options: ClassifyOptions, index: int) -> Indices | None:
    layer = manifest.attention[index]
    if layer.windows is None:
        if options.windows != "all":
            raise InvalidParameter(
                f"windows: layer {index} of {manifest.id} attends to the whole picture; leave it out"
            )
        return None
    count = layer.windows.count[0] * layer.windows.count[1]
    if options.windows == "all":
        return tuple(range(count))
    return _within("windows", options.windows, count, f"windows of layer {index}")


def _within(name: str, text: str, count: int, what: str) -> Indices:
    chosen = tuple(dict.fromkeys(indices(text)))
    for index in chosen:
        if index >= count:
            raise InvalidParameter(f"{name}: {index} is outside of 0 to {count - 1}, the {what}")
    return chosen


def _outputs(
    manifest: Manifest, maps: tuple[MapName, ...], attention: tuple[LayerSelection, ...] | None
) -> tuple[str, ...]:
    class_map = manifest.maps.class_map
    wanted = {
        "logits",
        *(layer.layer.output for layer in attention or ()),
        *([manifest.maps.rollout] if "rollout" in maps else []),
        *([class_map.tokens] if "class" in maps and class_map else []),
    }
    pooled_rows = any(layer.rows == "pool" for layer in attention or ())
    if "pooling" in maps or (pooled_rows and manifest.maps.pooling):
        wanted.add(manifest.maps.pooling)
    return (*(name for name in manifest.outputs if name in wanted), *(name for name in maps if name in GRADIENT))


def _numbers(manifest: Manifest, selection: Selection) -> int:
    count = 0
    for name in selection.maps:
        if name == "class" or name in GRADIENT:
            made = manifest.maps.class_map if name == "class" else manifest.maps.gradients
            assert made is not None
            count += made.grid[0] * made.grid[1] * _classes_count(selection)
        else:
            count += manifest.attention[-1].patches
    for layer in selection.attention or ():
        heads, rows, tokens = layer.shape
        count += layer.entries * heads * rows * tokens
    return count


def _classes_count(selection: Selection) -> int:
    return {"top1": 1, "topk": selection.top_k}.get(cast(str, selection.classes)) or len(selection.classes)


def _most_bytes(manifest: Manifest, selection: Selection) -> int:
    """An upper bound of the JSON: a sign, digits before the point, the point, the decimals, an exponent, a comma."""
    labels = selection.top_k * (max(len(label.encode()) for label in manifest.labels) * 6 + 60)
    arrays = selection.numbers * (selection.decimals + 9)
    entries = sum(layer.entries for layer in selection.attention or ())
    maps = sum(_classes_count(selection) if name == "class" or name in GRADIENT else 1 for name in selection.maps)
    return arrays + labels + _ENVELOPE_BYTES * (1 + entries) + _MAP_BYTES * maps

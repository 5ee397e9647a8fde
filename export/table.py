"""What is said at the end of an export: what of the model was found, what not, and what was taken for granted."""

from collections.abc import Iterable, Sequence

from export.adopt import Facts
from export.graph.expose import Exposed, Row
from saccade.manifest import AttentionLayer, Pooling


def lines(exposed: Exposed, facts: Facts, said: Sequence[str], assumed: Sequence[str]) -> list[str]:
    """The table of attention layers with their names, and sentences. `said` comes from preparing the graph."""
    found = [
        ("attention", "heads", "tokens", "grid", "given as"),
        *(cells(row) for row in exposed.table),
    ]
    table = list(aligned(found)) if exposed.table else ["attention: none was found"]
    spec = facts.preprocessing
    fit = (
        "stretched" if spec.stretch_to is None else f"stretched to {spec.stretch_to[0]} x {spec.stretch_to[1]}, cropped"
    )
    if spec.fit == "crop":
        fit = f"crop of shortest edge {spec.shortest_edge}"
    return [
        *table,
        f"logits read the tokens by: {read_by(exposed.layers, exposed.pooling)}",
        f"pictures: {spec.height} x {spec.width}, {fit}, {spec.interpolation}, {spec.channels}, "
        f"mean {_numbers(spec.mean)}, std {_numbers(spec.std)}",
        f"scores: {facts.scores}, {len(facts.labels)} labels",
        *([f"taken as for ImageNet, since nobody said: {', '.join(assumed)}"] if assumed else []),
        *said,
    ]


def cells(row: Row) -> tuple[str, str, str, str, str]:
    """Of an attention layer; the last one says under which name it is given, or why not."""
    tokens = str(row.tokens[0]) if row.tokens[0] == row.tokens[1] else f"{row.tokens[0]} of {row.tokens[1]}"
    layer = row.layer
    if layer is None:
        return row.where, str(row.heads), tokens, "-", f"not given: {row.why_not}"
    grid = f"{layer.grid[0]} x {layer.grid[1]}"
    if layer.special_tokens.count:
        grid += f" + {layer.special_tokens.count} {layer.special_tokens.place}"
    if layer.windows is not None:
        grid += f" in {layer.windows.count[0]} x {layer.windows.count[1]} windows ({layer.windows.layout})"
    return row.where, str(row.heads), tokens, grid, layer.output


def read_by(layers: Sequence[AttentionLayer], pooling: Pooling | None) -> str:
    """How the logits read the tokens, in words."""
    if pooling is None:
        return "unknown, so there is no rollout and no rows=pool" if layers else "no attention"
    return pooling.kind if pooling.last_index < 0 else f"{pooling.kind}, from token {pooling.index}"


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Lines in which equal columns stand below each other."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

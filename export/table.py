"""What is said at the end of an export: what of the model was found, what not, and what was taken for granted."""

from collections.abc import Iterable, Sequence

from export.adopt import Facts
from export.graph.expose import Exposed, Row


def lines(exposed: Exposed, facts: Facts, said: Sequence[str], assumed: Sequence[str]) -> list[str]:
    """The table of attention layers with their names, and sentences. `said` comes from preparing the graph."""
    found = [
        ("attention", "heads", "tokens", "grid", "given as"),
        *(_cells(row) for row in exposed.table),
    ]
    table = list(_aligned(found)) if exposed.table else ["attention: none was found"]
    spec = facts.preprocessing
    fit = {"crop": f"crop of shortest edge {spec.shortest_edge}", "stretch": "stretched"}[spec.fit]
    return [
        *table,
        f"logits read the tokens by: {_pooling(exposed)}",
        f"maps: {', '.join(exposed.maps.available) or 'none'}",
        f"pictures: {spec.height} x {spec.width}, {fit}, {spec.interpolation}, {spec.channels}, "
        f"mean {_numbers(spec.mean)}, std {_numbers(spec.std)}",
        f"scores: {facts.scores}, {len(facts.labels)} labels",
        *([f"taken as for ImageNet, since nobody said: {', '.join(assumed)}"] if assumed else []),
        *said,
    ]


def _cells(row: Row) -> tuple[str, str, str, str, str]:
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


def _pooling(exposed: Exposed) -> str:
    if exposed.pooling is None:
        return "no attention" if not exposed.layers else "unknown, so there is no rollout and no rows=pool"
    if exposed.pooling.last_index < 0:
        return exposed.pooling.kind
    return f"{exposed.pooling.kind}, from token {exposed.pooling.index}"


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

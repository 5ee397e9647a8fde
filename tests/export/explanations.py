"""docs/explanations.md: what maps of the gradient are, what they do not show, how right they are, what they cost.

`python -m tests.export.explanations --out docs/explanations.md` measures every family and every shipped model, and
writes the page; what it says of cost comes from docs/explanations.json (`python -m benchmarks.relevance`), and of timm
from docs/explanations-timm.json (`python -m tests.export.explain.timm_rows`).
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.relevance_tables import cost_section
from tests.conftest import ROOT
from tests.export.explain import family_rows, more_families, shipped_rows, timm_rows
from tests.export.explain.proofs import GRADIENT, OF_MAPS, TIMES

COSTS = ROOT / "docs/explanations.json"
FAMILIES_HEAD = "| family | class in transformers | `saccade export --from-` | attention | maps | ∇A | maps' errors |"
TIMM_HEAD = "| family | model of timm | attention | maps | ∇A | maps' errors |"
SHIPPED_HEAD = "| model | ∇A | relevance | grad_attention | legrad | grad_cam |"
CHECKS_HEAD = "| model | two classes | random weights, from the head down | one weight | alone | one colour |"

WORDS = Path(__file__).with_suffix(".md")
"""Around the tables."""


def page(
    families: Sequence[family_rows.Row], shipped: Sequence[shipped_rows.Row], checks: Sequence[shipped_rows.Sane]
) -> str:
    """The document."""
    return _filled({
        "families": _lines(family_rows.cells(row) for row in families if row.said is None),
        "reasons": "\n".join(_reasons(families)),
        "shipped": _lines(row.cells() for row in shipped),
        "checks": _lines(row.cells() for row in checks),
    })  # fmt: skip


def anew(page: str) -> str:
    """The document with what it measured of right and wrong; all else, words and costs, as it would be written now."""
    heads = {"families": FAMILIES_HEAD, "shipped": SHIPPED_HEAD, "checks": CHECKS_HEAD}
    measured = {name: _block(rf"{re.escape(head)}\n[|-]+\n((?:\|.*\n)+)", page) for name, head in heads.items()}
    return _filled({**measured, "reasons": _block(r"Why not:\n\n((?:- .*\n)+)", page)})


def _block(pattern: str, page: str) -> str:
    (found,) = re.findall(f"^{pattern}", page, flags=re.M)
    return str(found).rstrip("\n")


def _filled(measured: Mapping[str, str]) -> str:
    found = {
        **measured,
        "family_pictures": family_rows.PICTURES, "families_head": FAMILIES_HEAD, **_timm(),
        "gradient": f"{GRADIENT:.0e}", "maps": f"{OF_MAPS:.0e}", "times": TIMES,
        "pictures": shipped_rows.PICTURES, "shipped_head": SHIPPED_HEAD,
        "checks_head": CHECKS_HEAD, "sanity": shipped_rows.FOR_SANITY,
        "cost": cost_section(costs()),
    }  # fmt: skip
    return re.sub(r"\{(\w+)\}", lambda name: str(found.get(name[1], name[0])), WORDS.read_text(encoding="utf-8"))


def costs() -> dict[str, Any]:
    """What `benchmarks.relevance` found."""
    found: dict[str, Any] = json.loads(COSTS.read_text(encoding="utf-8"))
    return found


def _lines(rows: Iterable[list[str]]) -> str:
    return "\n".join(line(cells) for cells in rows)


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _reasons(rows: Sequence[family_rows.Row]) -> Iterator[str]:
    """Of maps that models of this kind could have; each reason once, with the families that it is of."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.said is not None:
            said = row.said if row.said.startswith(timm_rows.NOT_MEASURED) else f"no bundle: {row.said}"
            found.setdefault(said, []).append(row.family)
        elif row.maps:
            missing: dict[str, list[str]] = {}
            for name, reason in row.why_not.items():
                if row.layers[1] and name != "grad_cam":
                    missing.setdefault(reason, []).append(f"`{name}`")
            for reason, maps in missing.items():
                found.setdefault(f"no {', '.join(maps)}: {reason}", []).append(row.family)
        else:
            why = dict.fromkeys(
                reason for name, reason in row.why_not.items() if name != "grad_cam" or not row.layers[0]
            )
            found.setdefault(f"none: {'; '.join(why)}", []).append(row.family)
    for reason, names in found.items():
        yield f"- {', '.join(names)}: {reason.rstrip('.')}."


def _timm() -> dict[str, str]:
    """What `timm_rows` found."""
    versions, rows = timm_rows.read()
    shown = [family_rows.cells(row) for row in rows if row.said is None]
    return {
        "timm_versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "timm_head": TIMM_HEAD,
        "timm": _lines([family, name, *more] for family, name, _option, *more in shown),
        "timm_reasons": "\n".join(_reasons(rows)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--words", action="store_true", help="measure nothing: words and costs anew, tables as they are"
    )
    options = parser.parse_args()
    if options.words:
        options.out.write_text(anew(options.out.read_text(encoding="utf-8")), encoding="utf-8")
        return
    torch.set_num_threads(1)
    families = []
    for name in more_families.NAMES:
        families.append(family_rows.measure(family_rows.of_transformers(name)))
        print(line(family_rows.cells(families[-1])), flush=True)
    shipped, checks = [], []
    for name in shipped_rows.NAMES:
        bundle = shipped_rows.opened(name)
        shipped.append(shipped_rows.measure(bundle))
        checks.append(shipped_rows.check(bundle))
    for broken in [*(one for row in families for one in family_rows.failing(row)),
                   *(one for row in shipped for one in row.failing())]:  # fmt: skip
        print("beyond what is allowed:", broken)
    options.out.write_text(page(families, shipped, checks), encoding="utf-8")


if __name__ == "__main__":
    main()

"""docs/explanations.md: what maps of the gradient are, what they do not show, how right they are, what they cost.

`python -m tests.export.explanations --out docs/explanations.md` measures every family and every shipped model, and
writes the page; what it says of cost comes from docs/explanations.json (`python -m benchmarks.relevance`).
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.relevance_tables import cost_section
from tests.conftest import ROOT
from tests.export.explain import family_rows, more_families, shipped_rows

COSTS = ROOT / "docs/explanations.json"
FAMILIES_HEAD = "| family | class in transformers | `saccade export --from-` | attention | maps | ∇A | maps' errors |"
SHIPPED_HEAD = "| model | ∇A | relevance | grad_attention | legrad | grad_cam |"
CHECKS_HEAD = "| model | two classes | random weights, from the head down | one weight | alone | one colour |"

PAGE = """# Why this label

Labels say what a model saw, attention says where it looked; neither says what argued *for the label*. Maps of the
gradient do: for any class, also one that the model did not choose, each patch gets a number that says how much the
attention paid to it spoke for that class. Ask for "dog" on a picture of a cat and a dog, and the dog should light up;
ask for "cat", and the cat. All of it is worked out in ONNX Runtime, by `relevance.onnx`, a graph of tens of kB beside
`model.onnx` on the same weights: labels and maps come from one run, and nothing of PyTorch is needed.

```sh
curl --data-binary @examples/chelsea.jpg 'http://127.0.0.1:8000/v1/classify?maps=relevance&classes=cat,dog'
saccade overlay examples/chelsea.jpg --model cifar10-cct --map relevance --class cat --out why.png
saccade relevance my-model
```

The first asks the service for two classes, the second draws one, the third adds `relevance.onnx` to a bundle that has
none; `saccade export` makes it by itself, and says at its end which maps the model has and which it cannot have, and
why. [http-api.md](http-api.md) and [client.md](client.md) have the rest, [bundle.md](bundle.md) the files.

## The maps

In a layer with attention weights A (heads, queries, keys), ∇A is the gradient of a class's logit by them: by how much
the logit would grow if a query attended more to a key. (·)+ keeps what is positive.

| map | what it is | of which models |
|---|---|---|
| `relevance` | Of each layer E = mean over heads of (∇A · A)+; r ← r + r E from the pooled row, last layer first. Chefer, Gur and Wolf, [ICCV 2021](https://arxiv.org/abs/2103.15679), equations 5 and 6 | with attention over the whole picture in the last layer, whose tokens the classifier reads in a way that is known |
| `grad_attention` | The same of the last layer alone, r E: cheaper to understand, blind to what earlier layers mixed | the same |
| `legrad` | LeGrad, Bousselham et al., [ICCV 2025](https://arxiv.org/abs/2404.03214): the classifier is asked behind each block, for the mean of its tokens; (gradient of that logit by A)+, the mean over heads and queries, summed over layers | the same, where the blocks are one residual stream |
| `grad_cam` | Selvaraju et al., [ICCV 2017](https://arxiv.org/abs/1610.02391): the channels of the last feature map, each weighed by the mean of its gradient, summed, and what is positive of it | without attention |

- **Where r starts** is how the classifier reads its tokens: 1 at the class token; a half at each of DeiT's two tokens;
  1/P at each of P patches where the mean is read; for DINOv2 half of one and half of the other. Where the pooling is
  learned, its weights w are attention too, and r starts from their evidence, (∇w · w)+. What r has before any attention
  (the 1/P of a mean, the same everywhere) says nothing of the picture and is taken off; learned evidence stays.
- **Layers of several grids**: the maps are of the last stage, the last layers of one grid, whose tokens the classifier
  reads. What lies before it has other tokens, and evidence is not carried over. The manifest's `maps.gradients.layers`
  says which layers count. A layer that attends within windows has no row that reads the whole picture; a model whose
  last layer does has none of these maps.
- **Values** are not scaled: they add up over layers, are never negative, and compare between classes of one picture.
  They are no probabilities and do not sum to the logit; the exact class map does, where the model has one.
- **A map of zero everywhere** is an answer: no patch argued for this class. It happens where learned pooling finds only
  evidence against it. The answer says so in words.
- **Classes** are given by index or label, or by rank: in the graph's input `class_index` -1 is the class of the
  greatest logit, -2 that of the second, and so on, found in the graph itself, of each picture its own. An index that is
  neither a class nor a rank stops the run; nothing is ever taken for another class.
- **Kinks**: at exactly 0 the derivative of a ReLU is taken as 0, as PyTorch does. A number within rounding of 0 may
  fall to the other side in another engine, and a gradient with it.

## What they do not show

- A gradient is local: it says what a small change of attention would do, not what the model would say without the
  patch. To know that, hide the patch and ask again.
- Values, feature maps and MLPs count only as far as they change what attention to a patch is worth. What happens before
  the first attention (a convolutional stem, say) is attributed to the patch where it ends up.
- A map that looks right is no proof of a model that is right: a model may be wrong and show the object, or be right for
  the background. Adebayo et al., [2018](https://arxiv.org/abs/1810.03292), found maps that look the same for a net whose
  weights are random. So that is measured here, below, and so is whether another class gets another map.
- Maps of one model do not compare with those of another: grids, layers and scales differ.

## How right they are: families

Small models of transformers with seeded weights that make attention uneven, exported by the command that a user gives,
against float64 autograd through the framework's own eager model, {family_pictures} pictures, every class. ∇A: the
largest error of any layer's gradient, relative to its largest value; maps: that of each map, relative to its own. The
formulas are typed anew for this, as products of whole matrices in float64. In brackets what float32 autograd itself is
off by. Allowed are {gradient:.0e} of ∇A and {maps:.0e} of a map, or {times} times float32 autograd's error where that
is larger. `legrad` without a number is held to finite differences in float64 only: these models are not one list of
blocks, so that autograd needs a reference for each.

{families_head}
|---|---|---|---|---|---|---|
{families}

*Attention*: layers that the bundle gives, of those that the model has. Each file was held to finite differences in
float64 before it was kept, as `saccade export` always does.

Why not:

{reasons}

{others}

## How right they are: the models in the repository

Over {pictures} made pictures and every class, the same errors. `grad_cam` is held to the exact class map's positive
part, which it must equal behind a mean.

{shipped_head}
|---|---|---|---|---|---|
{shipped}

## Checks

{checks_head}
|---|---|---|---|---|---|
{checks}

*Two classes*: mean Spearman rank correlation of the maps of a picture's first and second class; 1 would mean that the
class asked for does not matter. *Random weights*: the same between the trained net's map and that after its parts got
the weights of an untrained net, one after the other, the head first (cascading randomisation; running statistics stay);
a map that is the same everywhere counts as 0. *One weight*: the largest difference of the graph's gradient from finite
differences in float64, when a single attention weight of the eager net is changed, relative to the layer's largest.
*Alone*: of a picture's map alone and in a batch, as a share of its maximum. *One colour*: whether pictures of one colour
(black, grey, white) have finite maps of every class. {sanity} made pictures each.

## What they cost

{cost}

Written by

```sh
python -m benchmarks.relevance --out docs/explanations.json
python -m tests.export.explanations --out docs/explanations.md
```

and `make test` measures some of it again.
"""


def page(
    families: Sequence[family_rows.Row], shipped: Sequence[shipped_rows.Row], checks: Sequence[shipped_rows.Sane]
) -> str:
    """The document."""
    from tests.export.explain.proofs import GRADIENT, OF_MAPS, TIMES

    return PAGE.format(
        family_pictures=family_rows.PICTURES, gradient=GRADIENT, maps=OF_MAPS, times=TIMES,
        families_head=FAMILIES_HEAD, families=_lines(family_rows.cells(row) for row in families if row.said is None),
        reasons="\n".join(_reasons(families)), others=_others(),
        pictures=shipped_rows.PICTURES, shipped_head=SHIPPED_HEAD, shipped=_lines(row.cells() for row in shipped),
        checks_head=CHECKS_HEAD, checks=_lines(row.cells() for row in checks), sanity=shipped_rows.FOR_SANITY,
        cost=cost_section(json.loads(COSTS.read_text(encoding="utf-8"))),
    )  # fmt: skip


def _lines(rows: Iterator[list[str]]) -> str:
    return "\n".join(line(cells) for cells in rows)


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _reasons(rows: Sequence[family_rows.Row]) -> Iterator[str]:
    """Of maps that models of this kind could have; each reason once, with the families that it is of."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.said is not None:
            found.setdefault(f"no bundle: {row.said}", []).append(row.family)
        elif row.maps:
            for name, reason in row.why_not.items():
                if row.layers[0] and name != "grad_cam":
                    found.setdefault(f"no `{name}`: {reason}", []).append(row.family)
        else:
            said = dict.fromkeys(
                reason for name, reason in row.why_not.items() if name != "grad_cam" or not row.layers[0]
            )
            found.setdefault(f"none: {'; '.join(said)}", []).append(row.family)
    for reason, names in found.items():
        yield f"- {', '.join(names)}: {reason}."


def _others() -> str:
    try:
        import timm  # noqa: F401 - whether it is there
    except ImportError:
        return "timm could not be imported where this page was written, so no family of it is here."
    return "timm's families are not measured here."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    families = [family_rows.measure(name) for name in more_families.NAMES]
    shipped, checks = [], []
    for name in shipped_rows.NAMES:
        with shipped_rows.opened(name) as bundle:
            shipped.append(shipped_rows.measure(bundle))
            checks.append(shipped_rows.check(bundle))
    for broken in [*(one for row in families for one in family_rows.failing(row)),
                   *(one for row in shipped for one in row.failing())]:  # fmt: skip
        print("beyond what is allowed:", broken)
    options.out.write_text(page(families, shipped, checks), encoding="utf-8")


if __name__ == "__main__":
    main()

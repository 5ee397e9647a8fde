"""`saccade quantize`: a bundle -> a variant of lower precision, held to what it promises, or nothing at all."""

import shutil
import tempfile
from collections.abc import Iterable
from itertools import tee
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
from numpy.typing import NDArray
from safetensors import safe_open

from export.assemble import assemble, gives_manifest
from export.head import head_of
from export.names import INPUT
from export.quantize.agreement import Agreement, Batch, answer_by, answer_of, answers, compare
from export.quantize.choose import Bounds, in_float
from export.quantize.float16 import to_float16
from export.quantize.float_graph import SMALL, array, float_graph, weighted_nodes
from export.quantize.int8 import calibrated_values, to_int8
from export.quantize.parent import identity_of
from export.quantize.parts import Parts, batches, held_out_parts
from export.quantize.ranges import measured_steps, picture_step
from export.quantize.reference import VariantOf
from export.weights import TOLERANCE, write_files
from saccade.bundle import GRAPH, WEIGHTS, Bundle, find_bundles, open_bundle
from saccade.card import Variant
from saccade.errors import BundleError
from saccade.manifest import Manifest, Precision

PICTURES = 256


def quantize(
    bundle: Bundle,
    precision: Literal["int8", "float16"],
    data: Path | None,
    name: str | None = None,
    *,
    pictures: int = PICTURES,
    anyway: bool = False,
    bounds: Bounds = Bounds(),  # noqa: B008 - a tuple
) -> Bundle:
    """Writes the next version of `name` beside the bundle, its parent, and gives it.

    int8 is calibrated on `pictures` held-out pictures, others decide which nodes stay in float (see `held_out_parts`);
    the rest judge. Raises DataError; BundleError where the bundle is a variant already, where `name` is another
    model's, where a promise does not hold, and, unless `anyway`, where more is lost than `bounds` allow. Then nothing
    is written.
    """
    manifest = bundle.manifest
    if manifest.parent is not None:
        raise BundleError(f"{manifest.id} is a variant already ({manifest.precision}): quantise {manifest.parent.id}")
    models, name = bundle.folder.parent.parent, f"{manifest.name}-{precision}" if name is None else name
    _check_name(models, name, manifest, precision)
    parts = held_out_parts(manifest, data, pictures if precision == "int8" else None)
    model = float_graph(bundle)
    if not weighted_nodes(model):
        raise BundleError(
            f"{manifest.id} has no Conv, Gemm or MatMul of {SMALL:,} weights beside its head: nothing would get smaller"
        )
    kept: tuple[str, ...] = ()
    calibrated_on = "nothing: float16 has a range of its own"
    if precision == "float16":
        to_float16(model)
    else:
        kept = _quantise(bundle, model, parts, bounds)
        calibrated_on = f"{len(parts.calibrate)} of {parts.name}, and {len(parts.choose)} others to choose by"
    with tempfile.TemporaryDirectory() as place, gives_manifest(manifest.id):
        folder = Path(place)
        _write(bundle, model, folder)
        found = _judge(bundle, folder / GRAPH, batches(parts.judge, manifest.preprocessing))
        if found.lacking:
            raise BundleError(f"{manifest.id} in {precision} gives numbers that are none in {', '.join(found.lacking)}")
        if not (anyway or bounds.hold(found)):
            raise BundleError(_refusal(manifest, precision, found, bounds, parts))
        variant = Variant(
            split=f"{parts.name}, neither calibrated on nor chosen by",
            pictures=found.pictures,
            parent_top1=found.parent_top1,
            top1=found.top1,
            same_label=found.same_label,
            logits=found.logits,
            maps=found.maps,
            calibrated_on=calibrated_on,
            in_float=kept,
            bytes=sum((folder / file).stat().st_size for file in (GRAPH, WEIGHTS)),
            parent_bytes=sum(manifest.files[file].bytes for file in (GRAPH, WEIGHTS)),
            anyway=not bounds.hold(found),
        )
        return assemble(
            models,
            name,
            _fields(bundle, precision, variant),
            lambda target: _copy(folder, target),
            VariantOf,
            relevance=manifest.maps.gradients is not None,
        )


def _check_name(models: Path, name: str, parent: Manifest, precision: Precision) -> None:
    """Raises BundleError where the newest version of that name, which callers get who name none, is another model."""
    versions = [folder for folder in find_bundles(models) if folder.parent.name == name]
    if not versions:
        return
    newest = open_bundle(versions[-1]).manifest
    if newest.parent is None or (newest.parent.name, newest.precision) != (parent.name, precision):
        raise BundleError(f"{newest.id} is no {precision} variant of {parent.name}: give another --name")


def _quantise(bundle: Bundle, model: ir.Model, parts: Parts, bounds: Bounds) -> tuple[str, ...]:
    """Changes the float graph; gives the names of the layers that stay as they are."""
    spec = bundle.manifest.preprocessing
    names = calibrated_values(weighted_nodes(model))
    seen = [name for name in names if name != INPUT]
    steps = measured_steps(model, seen, (pixels for pixels, _ in batches(parts.calibrate, spec)))
    steps[INPUT] = picture_step(spec)
    choosing = list(batches(parts.choose, spec))
    kept = in_float(bundle, head_of(bundle), lambda: float_graph(bundle), steps, choosing, bounds)
    to_int8(model, steps, kept)
    return kept


def _judge(bundle: Bundle, graph: Path, judging: Iterable[Batch]) -> Agreement:
    manifest, head = bundle.manifest, head_of(bundle)
    first, second = tee(judging)
    theirs = answers(answer_of(bundle), manifest, head, first)
    return compare(answer_by(ir.load(graph), manifest, graph.parent), manifest, head, second, theirs)


def _refusal(manifest: Manifest, precision: Precision, found: Agreement, bounds: Bounds, parts: Parts) -> str:
    said = []
    if found.lost > bounds.top1:
        said.append(
            f"is right on {found.top1:.2%} of {found.pictures} held-out pictures and {manifest.id} on "
            f"{found.parent_top1:.2%}: it loses {100 * found.lost:.2f} points, {100 * bounds.top1:g} are allowed"
            + (f" and one picture is {100 / found.pictures:.2f}" if 1 / found.pictures > bounds.top1 > 0 else "")
        )
    low = [f"{name} {value:.4f}" for name, value in found.maps.items() if value < bounds.maps]
    if low:
        said.append(f"agrees with its maps by a rank correlation of {', '.join(low)}; {bounds.maps:g} is the least")
    others = precision == "int8" and 2 * len(parts.choose) < len(parts.judge)
    more = f"--pictures above {len(parts.choose)} chooses by as many; " if others else ""
    return f"{manifest.id} in {precision} {' and '.join(said)} ({more}--anyway writes it)"


def _fields(bundle: Bundle, precision: Precision, variant: Variant) -> dict[str, Any]:
    """The parent's, but for what is measured of a bundle by itself."""
    manifest = bundle.manifest
    carried = manifest.model_dump(exclude={"schema_version", "name", "version", "files", "parity"})
    card = manifest.card.model_copy(
        update={
            "summary": f"{manifest.card.summary} ({precision} variant of {manifest.id})",
            "evaluation": (),
            "calibration": None,
            "cost": (),
            "variant": variant,
        }
    )
    return {
        **carried,
        "precision": precision,
        "parent": identity_of(bundle),
        "maps": manifest.maps.model_copy(update={"gradients": None}),
        "tolerance": TOLERANCE,  # of the draft; `assemble` has the final one
        "card": card,
    }


def _write(bundle: Bundle, model: ir.Model, folder: Path) -> None:
    """Graph and weights. Whatever comes from a tensor of the parent's file is in the variant's file, under its name."""
    with safe_open(bundle.weights, framework="numpy") as file:
        theirs = set(file.keys())
    named = theirs | {f"{name.removesuffix('.weight')}.bias" for name in theirs}
    tensors: dict[str, NDArray[Any]] = {
        name: array(value) for name, value in model.graph.initializers.items() if _stem(name) in named
    }
    try:
        write_files(model, tensors, {name: name for name in tensors}, folder)
    except OSError as error:
        raise BundleError(f"could not write to {folder}: {error}") from error


def _stem(name: str) -> str:
    """Of the parameter that a tensor belongs to."""
    for suffix in (".scale", ".zero_point", ".transposed"):
        name = name.removesuffix(suffix)
    return name


def _copy(folder: Path, target: Path) -> None:
    for file in (GRAPH, WEIGHTS):
        shutil.copyfile(folder / file, target / file)

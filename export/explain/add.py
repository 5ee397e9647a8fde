"""`saccade relevance NAME`: relevance.onnx for a bundle that has none, or anew, with all that is promised of it."""

import shutil
import tempfile
from pathlib import Path

from export.explain.build import write_relevance
from export.reference import reference_of
from export.verify import prove
from saccade.bundle import GOLDEN, GRAPH, RELEVANCE, WEIGHTS, Bundle, update_bundle
from saccade.errors import BundleError


def add(bundle: Bundle, *, file: Path | None = None, function: str | None = None) -> Bundle:
    """The bundle is held to its source again, as by `verify`, which has `file` and `function`. Raises BundleError where
    it can have no map of the gradient, or a promise does not hold; then it stays as it is.
    """
    reference = reference_of(bundle, file=file, function=function)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{bundle.folder.name}.part-", dir=bundle.folder.parent) as place:
            folder = Path(place)
            for name in (GRAPH, WEIGHTS):
                shutil.copyfile(bundle.folder / name, folder / name)  # readers of ONNX refuse links
            plain = bundle.manifest.maps.model_copy(update={"gradients": None})
            draft = Bundle(folder, bundle.manifest.model_copy(update={"maps": plain}))
            maps = write_relevance(draft, folder)
            proof = prove(Bundle(folder, bundle.manifest.model_copy(update={"maps": maps})), reference, None)
            files = {RELEVANCE: (folder / RELEVANCE).read_bytes(), GOLDEN: proof.golden}
    except OSError as error:
        raise BundleError(f"could not write to {bundle.folder.parent}: {error}") from error
    fields = {"maps": maps.model_dump(), "parity": proof.parity.model_dump(), "tolerance": proof.tolerance}
    return update_bundle(bundle, fields, files)

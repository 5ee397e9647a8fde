"""`saccade export --from-transformers`: a checkpoint -> a bundle, with its own labels and preprocessing."""

import argparse
import importlib.metadata

from safetensors.torch import load_file

from export.adopt import Facts
from export.eager import Eager
from export.module import adopt_module
from export.preparation import distinct
from export.pretrained.checkpoint import labels_of, model_of, read_checkpoint, read_weights, scores_of, widened
from export.pretrained.hub import find
from export.pretrained.preprocessing import preprocessing_of, processor_of
from export.table import lines
from saccade.bundle import Bundle
from saccade.card import Card
from saccade.errors import BundleError, DataError
from saccade.manifest import Origin


def adopt(options: argparse.Namespace) -> tuple[Bundle, list[str]]:
    """The bundle, and what is said of it (see `export.table`).

    Raises DataError for a checkpoint that is missing, damaged, pickled, of an unknown architecture, or prepared in a
    way that the manifest has no word for; BundleError where a promise does not hold. Then nothing is written.
    """
    found = find(options.from_transformers, options.revision)
    checkpoint = read_checkpoint(found.folder)
    labels, said = distinct(labels_of(checkpoint.configuration))
    scores = scores_of(checkpoint.configuration, len(labels))
    preprocessing = preprocessing_of(processor_of(checkpoint.processor, checkpoint.model_type))
    model = model_of(checkpoint.configuration, read_weights(checkpoint.weights))
    origin = Origin(
        kind="transformers",
        name=options.from_transformers if found.revision else found.folder.resolve().name,
        revision=found.revision,
        files=checkpoint.files,
        configuration=checkpoint.without_labels(len(labels)),
    )
    card = Card(
        summary=f"{checkpoint.architecture} {origin.name}; not trained and not evaluated here.",
        license="that of the source",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    facts = Facts(labels, preprocessing, origin, card, scores, {"transformers": _version()}, options.relevance)
    bundle, exposed = adopt_module(model, facts, reference_of, options.models, options.name, options.grid)
    if "auto_map" in checkpoint.configuration:
        said.append("the configuration names code of the checkpoint's own (auto_map): it was not run")
    return bundle, lines(exposed, facts, [*said, *widened(checkpoint.weights)], [])


def reference_of(bundle: Bundle) -> Eager:
    """The eager model, rebuilt from the bundle alone. Raises BundleError where transformers cannot do that."""
    manifest = bundle.manifest
    assert manifest.provenance.origin is not None
    try:
        model = model_of(manifest.provenance.origin.configuration, load_file(bundle.weights))
    except DataError as error:
        raise BundleError(f"{manifest.id}: the model cannot be rebuilt from the bundle: {error}") from error
    said = f"{type(model).__name__} of transformers {_version()} in eager PyTorch"
    return Eager(said, bundle, model, output_attentions=True)


def _version() -> str:
    return importlib.metadata.version("transformers")

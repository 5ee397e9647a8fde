"""A run -> a bundle: graph, weights, manifest and golden file, verified before anybody can see them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from export.convert import TOLERANCE, versions, write_model
from export.environment import commit
from export.examples import HELD_OUT_SEED, HELD_OUT_SHARE
from export.nets import Net, build
from export.nets.maps import maps_of
from export.recipe import Recipe
from export.run import read_run
from export.verify import prove
from saccade.bundle import GOLDEN, Bundle, next_version, write_bundle
from saccade.errors import BundleError, first_problem
from saccade.manifest import SCHEMA_VERSION, Card, Manifest, Provenance, Training


def publish(run: Path, models: Path, name: str, data: Path | None = None) -> Bundle:
    """Exports the best weights of a run as the next version of `name`, verified. Raises BundleError, DataError."""
    recipe, weights, state, metrics = read_run(run)
    labels = tuple(state["classes"])
    net = build(recipe.net, recipe.size, len(labels))
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise BundleError(f"the weights in {run} do not fit its recipe: {error}") from error
    version = next_version(models, name)
    try:
        fields = {
            **promises(net, recipe, labels),
            "provenance": _provenance(recipe, state),
            "card": _card(recipe, net, state, metrics),
        }
        draft = draft_manifest(name, version, fields)
    except ValidationError as error:
        raise BundleError(f"{run} gives no manifest: {first_problem(error)}") from error

    def write(folder: Path) -> Mapping[str, Any]:
        write_model(net.eval(), recipe.size, folder)
        parity, golden = prove(Bundle(folder, draft), data)
        (folder / GOLDEN).write_bytes(golden)
        return {**fields, "parity": parity}

    return write_bundle(models, name, version, write)


def promises(net: Net, recipe: Recipe, labels: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a manifest that say what the graph takes and gives."""
    return {
        "labels": labels,
        "preprocessing": recipe.preprocessing,
        "attention": net.attention_layers,
        "pooling": net.pooling,
        "maps": maps_of(net, recipe.default_maps),
        "tolerance": TOLERANCE,
    }


def draft_manifest(name: str, version: int, fields: Mapping[str, Any]) -> Manifest:
    """A manifest before its files are hashed."""
    identity = {"schema_version": SCHEMA_VERSION, "name": name, "version": version, "files": {}}
    return Manifest.model_validate({**identity, **fields})


def _provenance(recipe: Recipe, state: Mapping[str, Any]) -> Provenance:
    return Provenance(
        recipe=recipe.model_dump(mode="json"),
        init=state.get("init"),
        data=state["data"],
        held_out=f"1 of {HELD_OUT_SHARE} training pictures of each class, seed {HELD_OUT_SEED}",
        seed=recipe.seed,
        commit=commit(),
        versions={**versions(), "torch (training)": state["torch"]},
    )


def _card(recipe: Recipe, net: Net, state: Mapping[str, Any], metrics: list[dict[str, Any]]) -> Card:
    trained = metrics[: state["epoch"]]
    return Card(
        summary=recipe.card.summary,
        license=recipe.card.license,
        limits=recipe.card.limits,
        parameters=net.parameter_count,
        training=Training(
            epochs=state["epoch"],
            seconds=round(sum(epoch["seconds"] for epoch in trained)),
            hardware=state["hardware"],
        ),
    )

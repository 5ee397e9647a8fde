"""A run -> a bundle: graph, weights, manifest and golden file, verified before anybody can see them."""

from pathlib import Path
from typing import Any

from export.assemble import assemble, gives_manifest
from export.convert import write_model
from export.environment import commit
from export.examples import HELD_OUT_SEED, HELD_OUT_SHARE
from export.nets import Net, build
from export.nets.maps import maps_of
from export.recipe import Recipe
from export.reference import RecipeNet
from export.run import read_run
from export.weights import TOLERANCE, versions
from saccade.bundle import Bundle
from saccade.card import Card, Training
from saccade.errors import BundleError
from saccade.manifest import Provenance


def publish(run: Path, models: Path, name: str, data: Path | None = None, *, relevance: bool = True) -> Bundle:
    """Exports the best weights of a run as the next version of `name`, verified. Raises BundleError, DataError."""
    recipe, weights, state, metrics = read_run(run)
    labels = tuple(state["classes"])
    net = build(recipe.net, recipe.size, len(labels))
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise BundleError(f"the weights in {run} do not fit its recipe: {error}") from error
    net.eval()
    with gives_manifest(run):
        fields = {
            **promises(net, recipe, labels),
            "provenance": _provenance(recipe, state),
            "card": _card(recipe, net, state, metrics),
        }
        return assemble(
            models,
            name,
            fields,
            lambda folder: write_model(net, recipe.size, folder),
            RecipeNet,
            data,
            relevance=relevance,
        )


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


def _provenance(recipe: Recipe, state: dict[str, Any]) -> Provenance:
    return Provenance(
        recipe=recipe.model_dump(mode="json"),
        init=state.get("init"),
        data=state["data"],
        data_sha256=state.get("data_sha256"),
        held_out=f"1 of {HELD_OUT_SHARE} training pictures of each class, seed {HELD_OUT_SEED}",
        seed=recipe.seed,
        commit=commit(),
        versions={**versions(), "torch (training)": state["torch"]},
    )


def _card(recipe: Recipe, net: Net, state: dict[str, Any], metrics: list[dict[str, Any]]) -> Card:
    return Card(
        summary=recipe.card.summary,
        license=recipe.card.license,
        limits=recipe.card.limits,
        parameters=net.parameter_count,
        training=Training(
            epochs=len(metrics),
            seconds=round(sum(epoch["seconds"] for epoch in metrics)),
            hardware=state["hardware"],
            best_epoch=state["epoch"],
        ),
    )

"""A bundle's relevance.onnx: made by export, held to float64, added afterwards, and refused where it was changed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from export.explain.add import add
from export.publish import publish
from export.runtime import PROVIDER, open_graph, open_relevance
from export.verify import verify
from saccade.bundle import RELEVANCE, Bundle, open_bundle
from saccade.cli import main
from saccade.errors import BundleError
from saccade.golden import Arrays, Explain, check_golden, check_golden_maps
from saccade.reasons import map_lines
from tests.export.test_verify import contents, restate_checksum

OF_ATTENTION = ("tiny-cct", "tiny-vit", "tiny-vit-mean", "tiny-hybrid")


def holds_alike(one: Bundle, other: Bundle) -> None:
    measured = {"parity", "provenance", "card"}  # of the day
    assert one.manifest.model_dump(exclude=measured) == other.manifest.model_dump(exclude=measured)
    assert contents(one.folder).keys() == contents(other.folder).keys()


def test_every_export_has_the_maps_that_its_model_can_have(bundle: Bundle) -> None:
    """The manifest names maps, grid and layers; parity says how far they are from float64, and nothing else is new."""
    gradients, parity = bundle.manifest.maps.gradients, bundle.manifest.parity
    assert gradients is not None
    assert parity is not None
    assert ("relevance" in gradients.names) == (bundle.manifest.name in OF_ATTENTION)
    assert ("grad_cam" in gradients.names) == (bundle.manifest.name not in OF_ATTENTION)
    assert not set(gradients.names) & set(bundle.manifest.maps.default)
    if bundle.manifest.attention:
        assert gradients.grid == bundle.manifest.attention[-1].grid
        assert gradients.layers[-1] == bundle.manifest.attention[-1].output
    else:
        class_map = bundle.manifest.maps.class_map
        assert class_map is not None
        assert gradients.grid == class_map.grid
    for name in gradients.names:
        assert parity.checks[f"{name}, of its maximum"].largest <= 1e-4
        assert parity.checks[f"alone = in a batch, {name}, of its maximum"].largest <= 1e-4
    shape = onnx.load(bundle.relevance, load_external_data=False).graph.output[-1].type.tensor_type.shape
    assert shape.dim[2].dim_value == gradients.grid[0] * gradients.grid[1]


def test_a_hybrids_maps_are_of_its_last_stage(models: Path) -> None:
    """Before it the patches are others; the manifest says which layers count."""
    manifest = open_bundle(models / "tiny-hybrid" / "1").manifest
    gradients = manifest.maps.gradients
    assert gradients is not None
    assert len({layer.grid for layer in manifest.attention}) == 2
    assert gradients.layers == tuple(layer.output for layer in manifest.attention if layer.grid == gradients.grid)
    assert f"relevance       yes, 3 x 2, of {gradients.layers[-1]}" in map_lines(manifest)


def changed(bundle: Bundle, name: str, change: float) -> Explain:
    right = open_relevance(bundle.relevance)

    def answer(pixels: np.ndarray, classes: np.ndarray) -> Arrays:
        found = right(pixels, classes)
        return {**found, name: found[name] * np.float32(1 + change)}

    return answer


def test_every_map_is_held_to_golden_values(bundle: Bundle) -> None:
    """What relevance.onnx gives is right on this machine, and a map that is off by a hundredth is named."""
    assert bundle.manifest.maps.gradients is not None
    check_golden_maps(bundle.manifest, bundle.golden, PROVIDER, open_relevance(bundle.relevance))
    for name in (*bundle.manifest.maps.gradients.names, "logits"):
        with pytest.raises(BundleError, match=f"output {name} of relevance.onnx is .* away from its golden values"):
            check_golden_maps(bundle.manifest, bundle.golden, PROVIDER, changed(bundle, name, 0.01))


def test_a_class_that_the_graph_takes_for_another_is_found(models: Path) -> None:
    """Golden values are of the top class, and of another one that is named."""
    bundle = open_bundle(models / "tiny-vit" / "1")
    explain = open_relevance(bundle.relevance)

    def next_class(pixels: np.ndarray, classes: np.ndarray) -> Arrays:
        return explain(pixels, np.where(classes < 0, classes, (classes + 1) % 10))

    def second_class(pixels: np.ndarray, classes: np.ndarray) -> Arrays:
        return explain(pixels, np.where(classes < 0, classes - 1, classes))

    for wrong in (next_class, second_class):
        with pytest.raises(BundleError, match=r"is .* away from its golden values"):
            check_golden_maps(bundle.manifest, bundle.golden, PROVIDER, wrong)


def test_without_relevance_a_bundle_says_so_and_can_have_it_later(
    runs: dict[str, Path], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--no-relevance leaves the file out; `add` makes the bundle what export would have made."""
    command = ["export", str(runs["tiny-vit"]), "--name", "tiny-vit", "--models", str(tmp_path), "--no-relevance"]
    assert main(command) == 0
    assert "relevance       no: it was made without relevance.onnx" in capsys.readouterr().out
    bundle = open_bundle(tmp_path / "tiny-vit" / "1")
    assert bundle.manifest.maps.gradients is None
    assert not bundle.relevance.exists()
    check_golden(bundle.manifest, bundle.golden, PROVIDER, open_graph(bundle.graph))
    add(bundle)
    holds_alike(open_bundle(bundle.folder), open_bundle(models / "tiny-vit" / "1"))
    assert bundle.relevance.read_bytes() == (models / "tiny-vit" / "1" / RELEVANCE).read_bytes()
    assert [path.name for path in (tmp_path / "tiny-vit").iterdir()] == ["1"]


def test_export_says_at_the_end_which_maps_there_are(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each by its name, with the reason for what there is not."""
    assert main(["export", str(runs["tiny-resnet"]), "--name", "plain", "--models", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "grad_cam        yes, 4 x 4" in said
    for name in ("pooling", "rollout"):
        assert f"  {name:14}  no: it has no attention layers\n" in said
    for name in ("relevance", "grad_attention", "legrad"):
        assert f"  {name:14}  no: it gives no attention\n" in said


def test_a_model_whose_maps_cannot_be_is_exported_without_them(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator of which no gradient is known costs the maps and not the model; the reason names it."""
    monkeypatch.delitem(__import__("export.explain.gradients", fromlist=["RULES"]).RULES, "Softmax")
    bundle = publish(runs["tiny-vit"], tmp_path, "tiny-vit")
    assert bundle.manifest.maps.gradients is None
    assert "Softmax" in bundle.manifest.maps.why_not["relevance"]
    assert not bundle.relevance.exists()
    with pytest.raises(BundleError, match="Softmax"):
        add(bundle)
    assert open_bundle(bundle.folder).manifest == bundle.manifest


def test_a_changed_relevance_file_is_found(copy: Callable[[str], Bundle]) -> None:
    """At the service's golden check, and by `verify`, even with its checksum restated."""
    bundle = copy("tiny-vit")
    model = ir.load(bundle.relevance)
    choice = next(value for value in model.graph.outputs if value.name == "relevance").producer()
    assert choice is not None
    branch = choice.attributes["then_branch"].as_graph()
    last = branch.outputs[0].producer()
    assert last is not None
    root = ir.node("Sqrt", [last.inputs[0]])
    root.outputs[0].name = "root"
    branch.insert_before(last, root)
    last.replace_input_with(0, root.outputs[0])
    ir.save(model, bundle.relevance)
    with pytest.raises(BundleError, match=r"relevance\.onnx has \d+ bytes; the manifest says"):
        open_bundle(bundle.folder)
    tampered = restate_checksum(bundle.folder, RELEVANCE)
    with pytest.raises(BundleError, match=r"output relevance of relevance.onnx is .* away from its golden values"):
        check_golden_maps(tampered.manifest, tampered.golden, PROVIDER, open_relevance(tampered.relevance))
    with pytest.raises(BundleError, match=r"relevance\.onnx"):
        verify(tampered, None)


def test_a_bundle_without_the_file_that_it_promises_is_refused(copy: Callable[[str], Bundle]) -> None:
    """And one with such a file that its manifest does not know."""
    bundle = copy("tiny-vit")
    bundle.relevance.unlink()
    with pytest.raises(BundleError, match=r"could not read .*relevance\.onnx"):
        open_bundle(bundle.folder)


def test_the_command_adds_it_to_a_bundle_by_name(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it does to a file; an option of the other kind is refused."""
    publish(runs["tiny-resnet"], tmp_path, "plain", relevance=False)
    models = ["--models", str(tmp_path)]
    assert main(["relevance", "plain", *models]) == 0
    assert "grad_cam        yes, 4 x 4" in capsys.readouterr().out
    gradients = open_bundle(tmp_path / "plain" / "1").manifest.maps.gradients
    assert gradients is not None
    assert gradients.names == ("grad_cam",)
    assert main(["relevance", "plain", *models, "--logits", "logits"]) == 2
    assert "--logits says nothing of a bundle, plain" in capsys.readouterr().err
    assert main(["relevance", "absent.onnx", *models]) == 2
    assert "--models says nothing of an ONNX file, absent.onnx" in capsys.readouterr().err
    assert main(["relevance", "absent", *models]) == 2
    assert "no model 'absent'" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [None, 1])
def test_golden_classes_are_those_that_they_must_be(copy: Callable[[str], Bundle], kept: int | None) -> None:
    """Without them, or with the top class alone, nothing would be shown of a class that is named."""
    bundle = copy("tiny-vit")
    with np.load(bundle.golden) as file:
        arrays = dict(file)
    classes = arrays.pop("class_index")
    if kept is not None:
        arrays["class_index"] = classes[:, :kept]
        arrays |= {name: arrays[name][:, :kept] for name in ("relevance", "grad_attention", "legrad")}
    np.savez(bundle.golden, **arrays)
    with pytest.raises(BundleError, match=r"golden\.npz does not fit the manifest: .*class_index"):
        check_golden_maps(bundle.manifest, bundle.golden, PROVIDER, open_relevance(bundle.relevance))


def test_a_tolerance_that_would_let_any_map_pass_is_refused(models: Path) -> None:
    """Of a float bundle too: maps have no size of their own."""
    bundle = open_bundle(models / "tiny-vit" / "1")
    tolerance = {PROVIDER: {**bundle.manifest.tolerance[PROVIDER], "relevance": 1.0}}
    manifest = bundle.manifest.model_copy(update={"tolerance": tolerance})
    with pytest.raises(
        BundleError, match=r"1 is allowed of output relevance of relevance.onnx, .* wrong ones would pass"
    ):
        check_golden_maps(manifest, bundle.golden, PROVIDER, open_relevance(bundle.relevance))


def test_a_graph_of_labels_alone_is_no_relevance(models: Path) -> None:
    with pytest.raises(BundleError, match=r"the graph takes pixel_values and no class"):
        open_relevance(open_bundle(models / "tiny-vit" / "1").graph)

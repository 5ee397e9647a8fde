"""Checkpoints as they come: in parts, with labels twice, damaged, pickled, of unknown kinds. Bad ones leave nothing."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.pretrained.checkpoint import labels_of, read_weights
from saccade.bundle import open_bundle
from saccade.cli import main
from saccade.errors import DataError
from tests.export import families

TINY = {"num_hidden_layers": 1}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A ViT of one layer, as transformers saves it, to be broken."""
    return families.save("ViT", tmp_path / "tiny-vit", families.model("ViT", **TINY))


def export(*words: object, models: Path) -> int:
    return main(["export", "--from-transformers", *map(str, words), "--models", str(models), "--name", "it"])


def change(file: Path, **fields: Any) -> None:
    """Sets fields of a JSON file; None takes one away."""
    content = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def test_the_command_says_what_was_found_and_what_was_not(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table with the modules' own names, and words for what was changed: equal labels, code that was not run."""
    labels = {"0": "crane", "1": "dog", "2": "crane", "3": "hen", "4": "owl"}
    change(checkpoint / "config.json", id2label=labels, auto_map={"AutoModel": "evil--evil.Model"})
    assert export(checkpoint, models=tmp_path / "models") == 0
    said = capsys.readouterr().out
    assert "vit.layers.0.attention" in said
    assert "attention_00" in said
    assert "equal labels got their numbers behind them: crane (0), crane (2)" in said
    assert "(auto_map): it was not run" in said
    manifest = open_bundle(tmp_path / "models" / "it" / "1").manifest
    assert manifest.labels == ("crane (0)", "dog", "crane (2)", "hen", "owl")


def test_a_checkpoint_in_several_files_is_read(tmp_path: Path) -> None:
    """model.safetensors.index.json and its parts, as transformers writes large models."""
    made: Any = families.model("ViT", **TINY)
    checkpoint = families.save("ViT", tmp_path / "tiny", made)
    (checkpoint / "model.safetensors").unlink()
    with families.quiet():
        made.save_pretrained(checkpoint, max_shard_size="16KB")
    assert len(list(checkpoint.glob("model-*-of-*.safetensors"))) > 1
    assert export(checkpoint, models=tmp_path / "models") == 0
    weights = load_file(open_bundle(tmp_path / "models" / "it" / "1").weights)
    assert all(torch.equal(weights[key], tensor) for key, tensor in made.state_dict().items())


def test_half_precision_is_widened_and_said(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """float16 and bfloat16 to the bit, as float32."""
    state = {key: tensor.to(torch.bfloat16) for key, tensor in load_file(checkpoint / "model.safetensors").items()}
    save_file({**state, "classifier.bias": state["classifier.bias"].half()}, checkpoint / "model.safetensors")
    assert export(checkpoint, models=tmp_path / "models") == 0
    assert "weights that are stored as bfloat16, float16 are float32 in the bundle" in capsys.readouterr().out
    weights = load_file(open_bundle(tmp_path / "models" / "it" / "1").weights)
    assert torch.equal(weights["classifier.weight"], state["classifier.weight"].float())


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def pickled_by_another_name(folder: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, folder / "model.safetensors")


def outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"weight_map": {"classifier.bias": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def indexed(weight_map: dict[str, Any]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return act


def without(*keys: str) -> Callable[[Path], None]:
    def drop(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        save_file(
            {key: tensor.clone() for key, tensor in state.items() if key not in keys}, folder / "model.safetensors"
        )

    return drop


def edited(key: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        state = {key: tensor.clone() for key, tensor in load_file(folder / "model.safetensors").items()}
        save_file({**state, key: edit(state[key])}, folder / "model.safetensors")

    return act


def configured(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "config.json", **fields)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda folder: (folder / "config.json").unlink(), r"could not read .*config\.json"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "must hold a JSON object, not a list"),
    "unknown architecture": (
        configured(architectures=["BertModel"]), "architecture is BertModel; supported are ViTForImageClassification, "
    ),
    "no head": (configured(architectures=["ViTModel"]), "architecture is ViTModel; supported are"),
    "no architecture": (configured(architectures=None), "architecture is none; supported are"),
    "a pickle": (only_pickle, r"has pytorch_model\.bin and no model\.safetensors: pickled weights can run code"),
    "a pickle by another name": (pickled_by_another_name, "is pickled, which can run code and is never read"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"has no model\.safetensors, and no"),
    "cut off": (cut, r"model\.safetensors is not a whole safetensors file"),
    "a path that leaves the folder": (outside, r"names '\.\./elsewhere\.safetensors', which is not in the folder"),
    "a part that is a number": (indexed({"a": 1}), r"weight_map of .* names 1, which is not in the folder"),
    "a part that is a list": (indexed({"a": ["x"]}), r"weight_map of .* names \['x'\], which is not in the folder"),
    "a missing tensor": (without("classifier.bias"), r"not those of a ViTForImage.*: classifier\.bias is missing"),
    "NaN": (
        edited("classifier.weight", lambda it: it.fill_(float("nan"))),
        r"model\.safetensors has weights that are no numbers: classifier\.weight has 160 numbers that are NaN or inf",
    ),
    "whole numbers": (edited("classifier.bias", torch.Tensor.long), r"classifier\.bias is int64, not float32"),
    "another width": (configured(hidden_size=48), r"not those of a ViTForImageC.*: .* is \(.*\), not \(.*\)"),
    "nonsense": (configured(hidden_size="wide"), r"config\.json makes no ViTForImageClassification; what transf"),
    "a width below 0": (configured(hidden_size=-3), r"config\.json makes no ViTForImageClassification; what transf"),
    "no number of labels": (
        configured(id2label=None, num_labels="abc"),
        r"num_labels of config\.json must be a whole number from 1 to 1000000, not 'abc'",
    ),
    "labels below 0": (configured(id2label=None, num_labels=-1), r"num_labels of config\.json .*, not -1"),
    "more labels than memory": (configured(id2label=None, num_labels=10**15), r"num_labels of .* to 1000000"),
    "a regression": (configured(problem_type="regression"), "problem_type regression: it is no classifier"),
    "gaps in labels": (configured(id2label={"0": "a", "7": "b"}), "must number its 2 labels from 0, without gaps"),
    "quantised": (configured(quantization_config={}), "is quantised"),
    "no processor": (
        lambda folder: (folder / "preprocessor_config.json").unlink(), r"has no preprocessor_config\.json"
    ),
    "another size": (
        lambda folder: change(folder / "preprocessor_config.json", size={"height": 40, "width": 40}),
        "tiny-vit cannot be exported for pictures of 40 x 40: .*doesn't match model",
    ),
}  # fmt: skip


def test_a_number_of_labels_that_is_null_is_said(checkpoint: Path) -> None:
    configuration = json.loads((checkpoint / "config.json").read_text())
    with pytest.raises(DataError, match=r"num_labels of config\.json must be a whole number .*, not None"):
        labels_of({**configuration, "id2label": None, "num_labels": None})


def test_weights_that_are_not_there_are_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"could not read .*nothere\.safetensors: .*[Nn]o such file"):
        read_weights((tmp_path / "nothere.safetensors",))


@pytest.mark.parametrize("damage", BROKEN)
def test_a_bad_checkpoint_is_said_in_one_line_and_leaves_nothing(
    damage: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    act, message = BROKEN[damage]
    act(checkpoint)
    assert export(checkpoint, models=tmp_path / "models") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "models").exists()


def test_without_transformers_the_command_says_what_to_install(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert export(checkpoint, models=tmp_path / "models") == 2
    assert "needs transformers: install the extra, pip install -e '.[transformers]'" in capsys.readouterr().err

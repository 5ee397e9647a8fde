"""`saccade export --from-torch`: anybody's module, held to itself in eager PyTorch."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from export.from_torch import adopt, make
from export.runtime import open_graph
from export.verify import verify
from saccade.bundle import Bundle, open_bundle
from saccade.cli import main
from saccade.errors import BundleError, DataError
from saccade.sources import add_arguments
from tests.conftest import ROOT
from tests.export import own_nets

LABELS = ("cat", "dog", "fox", "hen", "owl")


@pytest.fixture(autouse=True)
def _from_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory from which `tests.export.own_nets` is found."""
    monkeypatch.chdir(ROOT)


def saved(function: str, folder: Path, *, seed: int = 0, noise: float = 0.1) -> tuple[nn.Module, Path]:
    """(the module with seeded weights, its state dict as safetensors, what is tied once)."""
    torch.manual_seed(seed)
    module: nn.Module = getattr(own_nets, function)().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    tensors = {tensor.data_ptr(): (name, tensor) for name, tensor in reversed(module.state_dict().items())}
    save_file(dict(tensors.values()), folder / "weights.safetensors")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    return module, folder / "weights.safetensors"


def words(function: str, folder: Path, *more: str, size: str = "32x48") -> list[str]:
    return ["--from-torch", f"tests.export.own_nets:{function}", "--weights", str(folder / "weights.safetensors"),
            "--labels", str(folder / "labels.txt"), "--models", str(folder / "models"), "--name", "own",
            *(["--size", size] if size else []), *more]  # fmt: skip


def exported(function: str, folder: Path, *more: str, size: str = "32x48") -> tuple[Bundle, str]:
    """(the bundle, what is said of it)."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    bundle, said = adopt(parser.parse_args(words(function, folder, *more, size=size)))
    return bundle, "\n".join(said)


def answers(bundle: Bundle, count: int = 3) -> tuple[torch.Tensor, dict[str, Any]]:
    """(noise in the size of the input, what the bundle's graph gives for it)."""
    spec = bundle.manifest.preprocessing
    pixels = torch.randn(count, 3, spec.height, spec.width, generator=torch.Generator().manual_seed(1))
    return pixels, open_graph(bundle.graph)(pixels.numpy())


def expected_of_vit(module: Any, pixels: torch.Tensor) -> list[torch.Tensor]:
    """softmax(QKᵀ / sqrt(d)) of each block, in float64, typed anew."""
    found = []
    module = module.double()
    x = module.patches(pixels.double()).flatten(2).transpose(1, 2)
    x = torch.cat([module.token.expand(len(x), -1, -1), x], 1) + module.position
    for block in module.blocks:
        q, k, _ = block.qkv(block.norm(x)).chunk(3, -1)
        q, k = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in (q, k))
        found.append(torch.softmax(q @ k.mT / 8**0.5, -1))
        x = block(x)
    return found


@pytest.mark.parametrize("function", ["vit", "vit_by_hand", "vit_by_einsum"])
def test_the_attention_is_softmax_of_qk_however_it_is_written(function: str, tmp_path: Path) -> None:
    """scaled_dot_product_attention, softmax by hand, einsum: the same promise, held to the formula in float64."""
    module, _ = saved(function, tmp_path)
    bundle, said = exported(function, tmp_path)
    pixels, seen = answers(bundle)
    with torch.no_grad():
        assert np.abs(seen["logits"] - module(pixels)["logits"].numpy()).max() <= 1e-4
        expected = expected_of_vit(module, pixels)
    layers = bundle.manifest.attention
    assert [(layer.grid, layer.heads, layer.special_tokens.count) for layer in layers] == [((4, 6), 2, 1)] * 2
    for layer, weights in zip(layers, expected, strict=True):
        assert np.abs(seen[layer.output] - weights.numpy()).max() <= 1e-5
    assert bundle.manifest.pooling is not None
    assert bundle.manifest.pooling.kind == "class_token"
    assert bundle.manifest.maps.available == ("rollout", "relevance", "grad_attention", "legrad")
    assert "blocks.1" in said
    assert "attention_01" in said


def test_torchs_own_encoder_gives_the_weights_that_it_reports(tmp_path: Path) -> None:
    """nn.TransformerEncoder, whose fast path is off meanwhile: the first layer's are those of nn.MultiheadAttention."""
    module, _ = saved("encoder", tmp_path)
    bundle, said = exported("encoder", tmp_path)
    pixels, seen = answers(bundle)
    made: Any = module
    with torch.no_grad():
        assert np.abs(seen["logits"] - module(pixels)[0].numpy()).max() <= 1e-4
        tokens = made.patches(pixels).flatten(2).transpose(1, 2) + made.position
        attention = made.encoder.layers[0].self_attn
        _, weights = attention(tokens, tokens, tokens, need_weights=True, average_attn_weights=False)
    assert np.abs(seen["attention_00"] - weights.numpy()).max() <= 1e-5
    assert bundle.manifest.maps.available == ("rollout", "class", "relevance", "grad_attention", "legrad")
    assert "encoder.layers.1.self_attn" in said


def test_sharp_attention_may_be_as_far_away_as_float32_is(tmp_path: Path) -> None:
    """Scores of some tens round more roughly than 1e-5, in PyTorch too: 4 times its own distance from float64 is
    allowed, the manifest says how much, and the service loads the bundle with a tolerance as wide.
    """
    module, _ = saved("vit_by_hand", tmp_path, noise=1.0)
    bundle, _ = exported("vit_by_hand", tmp_path)
    assert bundle.manifest.parity is not None
    check = bundle.manifest.parity.checks["attention"]
    pixels, seen = answers(bundle)
    with torch.no_grad():
        expected = expected_of_vit(module, pixels)
    apart = max(np.abs(seen[f"attention_{i:02d}"] - one.numpy()).max() for i, one in enumerate(expected))
    assert 1e-5 < check.allowed < 1e-3
    assert apart <= check.allowed
    assert bundle.manifest.tolerance["CPUExecutionProvider"]["attention"] == pytest.approx(check.allowed)
    assert bundle.manifest.tolerance["CUDAExecutionProvider"]["attention"] == pytest.approx(10 * check.allowed)


def test_large_logits_may_be_a_ten_thousandth_of_themselves_away_and_no_more(tmp_path: Path) -> None:
    """What float32 rounds in a head of 1e4 is allowed; a net that leaves little but roundings is refused in numbers."""
    module, _ = saved("encoder", tmp_path)
    with torch.no_grad():
        made: Any = module
        made.head.weight.mul_(1e4)
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    bundle, _ = exported("encoder", tmp_path)
    assert bundle.manifest.parity is not None
    with torch.no_grad():
        largest = float(module(answers(bundle)[0])[0].abs().max())
    assert 1e-4 < bundle.manifest.parity.checks["logits"].allowed <= 1e-4 * 2 * largest
    saved("rough", tmp_path)
    with pytest.raises(
        BundleError, match=r"float32 rounds the logits of own@2 so roughly that [0-9.e+-]+ would be allowed; .* at most"
    ):
        exported("rough", tmp_path)
    assert not (tmp_path / "models" / "own" / "2").exists()


@pytest.mark.parametrize(("function", "given"), [("mixed_first", 1), ("queries_first", 2)])
def test_attention_that_is_not_given_takes_the_place_of_none_that_is(function: str, given: int, tmp_path: Path) -> None:
    """Weights of the same shape before those that are given: each output is held to the softmax of its own layer."""
    module, _ = saved(function, tmp_path)
    bundle, _ = exported(function, tmp_path)
    assert len(bundle.manifest.attention) == given
    made: Any = module.double()
    pixels, seen = answers(bundle)
    with torch.no_grad():
        x = made.patches(pixels.double()).flatten(2).transpose(1, 2)
        for index, block in enumerate(made.blocks, given - len(made.blocks)):
            if index >= 0:
                q, k, _ = block.qkv(block.norm(x)).chunk(3, -1)
                q, k = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in (q, k))
                expected = torch.softmax(q @ k.mT / 8**0.5, -1).numpy()
                assert np.abs(seen[f"attention_{index:02d}"] - expected).max() <= 1e-5
            x = block(x)


def test_attention_that_cannot_be_given_is_said_by_its_name(tmp_path: Path) -> None:
    """6 large patches attend to 24 small ones: in the table with the reason; the rest is given."""
    module, _ = saved("cross", tmp_path)
    bundle, said = exported("cross", tmp_path)
    (layer,) = bundle.manifest.attention
    assert layer.grid == (4, 6)
    assert "across" in said
    assert "6 queries attend to 24 keys" in said
    pixels, seen = answers(bundle)
    with torch.no_grad():
        assert np.abs(seen["logits"] - module(pixels).numpy()).max() <= 1e-4


def test_a_cnn_has_a_class_map_and_says_that_it_has_no_attention(tmp_path: Path) -> None:
    """Tied weights stand once in the file, as safetensors wants it; the map's sum is the logit."""
    module, weights = saved("cnn", tmp_path)
    assert len(load_file(weights)) == len(module.state_dict()) - 1
    bundle, said = exported("cnn", tmp_path)
    assert "attention: none was found" in said
    assert bundle.manifest.maps.available == ("class", "grad_cam")
    pixels, seen = answers(bundle)
    made: Any = module
    with torch.no_grad():
        logits = made(pixels).logits
        assert np.abs(seen["logits"] - logits.numpy()).max() <= 1e-4
        summed = torch.from_numpy(seen["class_tokens"]).sum(1) @ made.head.weight.T + made.head.bias
    assert torch.allclose(summed, logits, atol=1e-4)


def test_what_the_command_says_of_pictures_is_in_the_manifest(tmp_path: Path) -> None:
    """Sizes, fit, mean and std; what nobody said is taken as on ImageNet, and said; so are equal labels."""
    saved("cnn", tmp_path)
    more = ["--mean", "0.5", "0.5", "0.5", "--std", "0.2", "0.2", "0.2", "--channels", "BGR", "--scores", "sigmoid"]
    (tmp_path / "labels.txt").write_text("crane\ndog\ncrane\nhen\nowl\n")
    bundle, said = exported("cnn", tmp_path, *more, size="32x32")
    assert bundle.manifest.labels == ("crane (0)", "dog", "crane (2)", "hen", "owl")
    assert "equal labels got their numbers behind them: crane (0), crane (2)" in said
    spec = bundle.manifest.preprocessing
    assert (spec.height, spec.width, spec.channels, spec.mean, spec.std) == (32, 32, "BGR", (0.5,) * 3, (0.2,) * 3)
    assert bundle.manifest.scores == "sigmoid"
    assert "taken as for ImageNet, since nobody said: fit crop, interpolation bilinear" in said


def test_a_module_of_timm_says_itself_how_its_pictures_are_prepared(tmp_path: Path) -> None:
    """`pretrained_cfg` as timm reads it; the command's own words go first."""
    saved("like_timm", tmp_path)
    bundle, said = exported("like_timm", tmp_path, "--interpolation", "bilinear", size="")
    spec = bundle.manifest.preprocessing
    assert (spec.height, spec.width, spec.fit, spec.shortest_edge) == (32, 32, "crop", 40)
    assert (spec.mean, spec.std, spec.interpolation) == ((0.5,) * 3, (0.25,) * 3, "bilinear")
    assert "ImageNet" not in said or "channels RGB" in said


def test_a_bundle_is_verified_where_its_function_is_named_and_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The module is made anew and filled from the bundle; elsewhere the error says what is looked for."""
    saved("cnn", tmp_path)
    bundle, _ = exported("cnn", tmp_path)
    function = "tests.export.own_nets:cnn"
    assert verify(open_bundle(bundle.folder), None, function=function).manifest == bundle.manifest
    assert main(["verify", str(bundle.folder), "--from-torch", "mynet:make"]) == 2
    assert "held to mynet:make, which cannot be made here: " in capsys.readouterr().err
    moved = f"{ROOT / 'tests/export/own_nets.py'}:cnn"
    assert main(["verify", str(bundle.folder), "--from-torch", moved]) == 0
    assert f"Cnn of {moved}, which the manifest calls {function}, in eager" in capsys.readouterr().out


def test_verifying_runs_no_code_that_a_manifest_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --from-torch somebody else's bundle is held to its own graph by another evaluator, and says so; sharp
    attention is allowed what its tolerance allows.
    """
    saved("vit_by_hand", tmp_path, noise=1.0)
    bundle, _ = exported("vit_by_hand", tmp_path)
    (tmp_path / "evil.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\ndef make(): Path('ran').touch()\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("evil:make", "evil.py:make"):
        manifest = bundle.folder / "manifest.json"
        content = json.loads(manifest.read_text())
        content["provenance"]["origin"]["name"] = name
        manifest.write_text(json.dumps(content))
        assert main(["verify", str(bundle.folder)]) == 0
        said = capsys.readouterr().out
        assert "16 made pictures, seed 11, against onnx's own evaluator on the bundle's graph" in said
        assert f"the module itself ({name}) is asked where --from-torch names it, which runs its code" in said
    assert not (tmp_path / "ran").exists()


def test_a_file_is_a_place_for_a_function_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`file.py:function`, and a module in the working directory, as the command is installed and not a script there."""
    saved("cnn", tmp_path)
    (tmp_path / "my_own_net.py").write_text("from tests.export.own_nets import cnn\n")
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    command = ["export", "--from-torch", "my_own_net:cnn", *words("cnn", tmp_path)[2:]]
    assert main(command) == 0
    assert main(["export", "--from-torch", str(tmp_path / "my_own_net.py:cnn"), *words("cnn", tmp_path)[2:]]) == 0
    assert open_bundle(tmp_path / "models" / "own" / "2").manifest.version == 2


def test_a_file_is_imported_as_python_would(tmp_path: Path) -> None:
    """With what stands beside it, at once or later, and dataclasses with annotations that are strings; sys.path and
    sys.modules are afterwards as before where it fails.
    """
    (tmp_path / "beside_my_net.py").write_text("from torch import nn\n")
    (tmp_path / "beside_it_later.py").write_text("WIDTH = 4\n")
    (tmp_path / "my_net.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from beside_my_net import nn\n"
        "@dataclass\n"
        "class Sizes:\n"
        "    width: int = 3\n"
        "def net() -> nn.Module:\n"
        "    from beside_it_later import WIDTH\n"
        "    return nn.Linear(Sizes().width, WIDTH)\n"
    )
    before = list(sys.path)
    assert isinstance(make(f"{tmp_path}/my_net.py:net"), nn.Linear)
    (tmp_path / "half_a_net.py").write_text("import math\nmath.no_such\n")
    with pytest.raises(DataError, match=r"half_a_net.py:net cannot be imported: AttributeError"):
        make(f"{tmp_path}/half_a_net.py:net")
    assert sys.path == before
    assert "given_half_a_net" not in sys.modules


def state_of(path: Path) -> dict[str, torch.Tensor]:
    """In memory: the file is written over."""
    return {key: tensor.clone() for key, tensor in load_file(path).items()}


def pickled(folder: Path) -> None:
    torch.save(state_of(folder / "weights.safetensors"), folder / "weights.safetensors")


def edited(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        state = state_of(folder / "weights.safetensors")
        change(state)
        save_file(state, folder / "weights.safetensors")

    return act


def keep(_: Path) -> None:
    pass


BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "pickle": ("cnn", pickled, "is pickled, which can run code and is never read"),
    "missing": ("cnn", edited(lambda state: state.pop("head.bias")), "does not fit the module: head.bias is missing"),
    "left over": (
        "cnn", edited(lambda state: state.update(extra=torch.zeros(1))),
        "does not fit the module: extra is not in the module",
    ),
    "shape": (
        "cnn", edited(lambda state: state.update({"head.bias": torch.zeros(7)})), "head.bias is (7,), not (5,)"
    ),
    "NaN": (
        "cnn", edited(lambda state: state["head.weight"].fill_(float("nan"))),
        "weights.safetensors has weights that are no numbers: head.weight has 40 numbers that are NaN or infinite",
    ),
    "infinite": (
        "cnn", edited(lambda state: state["head.weight"][0].fill_(float("-inf"))),
        "head.weight has 8 numbers that are NaN or infinite",
    ),
    "whole numbers": (
        "cnn", edited(lambda state: state.update({"head.weight": state["head.weight"].long()})),
        "does not fit the module: head.weight is int64, not float32",
    ),
    "no file": ("cnn", lambda folder: (folder / "weights.safetensors").unlink(), "could not read"),
    "labels": (
        "cnn", lambda folder: (folder / "labels.txt").write_text("a\nb"), "there are 2 labels and the model gives 5"
    ),
    "labels, and what cannot be traced": (
        "data_dependent", lambda folder: (folder / "labels.txt").write_text("a\nb"), "there are 2 labels and the model"
    ),
    "no function": ("missing", keep, "tests.export.own_nets has no function missing"),
    "function raises": ("raises", keep, "raises() failed with OSError: no such checkpoint"),
    "no module": ("nothing", keep, "must give a torch.nn.Module, not a NoneType"),
    "no logits": ("features", keep, "must give logits (batch, classes), alone or as `logits` or first"),
    "dropout left on": ("noisy", keep, "answers differently each time it is asked (dropout? random noise?)"),
    "softmax": ("ends_in_softmax", keep, "must give its logits, and no probabilities: the output logits is a Softmax"),
    "log softmax": ("ends_in_log_softmax", keep, "the output logits is a LogSoftmax"),
    "sigmoid": ("ends_in_sigmoid", keep, "the output logits is a Sigmoid"),
    "control flow": ("data_dependent", keep, "cannot be exported for pictures of 32 x 48"),
}  # fmt: skip


MODULES = ("no logits", "control flow", "dropout left on", "softmax", "log softmax", "sigmoid")
"""Of BROKEN, those whose module it is that does not fit, and no file."""


@pytest.mark.parametrize("what", BROKEN)
def test_what_does_not_fit_is_said_in_one_line_and_leaves_nothing(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    function, damage, message = BROKEN[what]
    saved(function if what in MODULES else "cnn", tmp_path)
    damage(tmp_path)
    assert main(["export", *words(function, tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error, error
    assert error.count("\n") == 1
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tests.export.own_nets", "must be of the form module:function, or file.py:function"),
        ("no_such_module:make", "no module named no_such_module"),
        ("no_such_file.py:make", "there is no file no_such_file.py"),
        ("tests/export/data.json:make", "cannot be imported"),
    ],
)
def test_a_target_that_is_not_there_is_said(
    target: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved("cnn", tmp_path)
    assert main(["export", "--from-torch", target, *words("cnn", tmp_path)[2:]]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("taken", "message"),
    [("--weights", "needs --weights"), ("--labels", "and --labels"), ("--size", "give --size HxW")],
)
def test_what_nobody_said_is_asked_for(
    taken: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved("cnn", tmp_path)
    line = words("cnn", tmp_path)
    place = line.index(taken)
    assert main(["export", *line[:place], *line[place + 2 :]]) == 2
    assert message in capsys.readouterr().err


def test_labels_may_be_json(tmp_path: Path) -> None:
    """As a checkpoint's id2label has them."""
    saved("cnn", tmp_path)
    (tmp_path / "labels.txt").write_text(json.dumps({"id2label": dict(enumerate(LABELS))}))
    assert exported("cnn", tmp_path)[0].manifest.labels == LABELS

"""`saccade export --from-onnx`: from a file to a bundle that the service runs; bad files are sentences."""

import json
import pickle
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import load_file
from starlette.testclient import TestClient

from export.graph.read import read_model
from saccade.bundle import Bundle, open_bundle
from saccade.cli import main
from saccade.errors import DataError
from saccade.manifest import Preprocessing
from saccade.preprocess import preprocess
from service.app import create_app
from service.settings import Settings
from tests.conftest import ROOT
from tests.export.graph import models
from tests.export.graph.conftest import answers, noise, write

LABELS = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(scope="module")
def net() -> models.Classifier:
    return models.lively(models.Vit())


@pytest.fixture(scope="module")
def file(net: models.Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-token ViT of 32 x 48, its batch open."""
    return write(net, net.size, tmp_path_factory.mktemp("given") / "vit.onnx", "script")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(LABELS) + "\n")
    return path


@pytest.fixture
def export(tmp_path: Path, labels: Path) -> Callable[..., int]:
    """A function: file and further words of the command -> exit code; the models folder is `tmp_path / "models"`."""

    def run(path: Path, *words: str, named: bool = True) -> int:
        given = [*words, "--labels", str(labels)] if named else [*words]
        command = ["export", "--from-onnx", str(path), "--models", str(tmp_path / "models"), "--name", "taken"]
        return main([*command, *given])

    return run


def taken(tmp_path: Path) -> Bundle:
    return open_bundle(tmp_path / "models" / "taken" / "1")


def test_one_command_makes_a_bundle_that_the_service_serves(
    export: Callable[..., int], net: models.Classifier, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels, attention and rollout of the given model, through a real service, as the eager net says them."""
    assert export(file, "--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25", "--fit", "stretch") == 0
    printed = capsys.readouterr().out
    manifest = taken(tmp_path).manifest
    assert manifest.labels == LABELS
    assert manifest.scores == "softmax"
    assert manifest.preprocessing == Preprocessing(height=32, width=48, fit="stretch", mean=(0.5,) * 3, std=(0.25,) * 3)
    assert [layer.grid for layer in manifest.attention] == [(4, 6)] * 2
    assert manifest.provenance.recipe is None
    assert manifest.provenance.origin.kind == "onnx"
    assert manifest.provenance.origin.name == "vit.onnx"
    assert list(manifest.provenance.origin.files) == ["vit.onnx"]
    assert manifest.card.parameters >= sum(parameter.numel() for parameter in net.parameters())
    assert re.search(r"^\S*Softmax\S* +2 +25 +4 x 6 \+ 1 first +attention_00$", printed, flags=re.M)
    assert "taken as for ImageNet, since nobody said: interpolation bilinear, channels RGB" in printed
    picture = Image.fromarray((np.random.default_rng(0).random((40, 50, 3)) * 255).astype(np.uint8))
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    pixels = preprocess(picture, manifest.preprocessing)
    with torch.inference_mode():
        scores = net(torch.from_numpy(pixels[None])).softmax(-1)[0].numpy()
    with TestClient(create_app(Settings(models=tmp_path / "models"))) as service:
        query = {"top_k": 5, "attention": "all", "heads": "all", "rows": "all", "decimals": 9}
        response = service.post("/v1/classify", params=query, content=buffer.getvalue())
    assert response.status_code == 200, response.text
    answer = response.json()
    assert {one["label"]: one["score"] for one in answer["labels"]} == pytest.approx(
        dict(zip(LABELS, scores, strict=True))
    )
    assert [one["name"] for one in answer["maps"]] == ["rollout"]
    for layer, attention in zip(answer["attention"], net.seen, strict=True):
        np.testing.assert_allclose(np.squeeze(layer["weights"]), attention[0].numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with what differs most, each taken from its ONNX file by the command."""
    folder = tmp_path_factory.mktemp("family")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    for name in FAMILY:
        net = models.lively(getattr(models, name)())
        path = write(net, net.size, folder / f"{name}.onnx", "script")
        command = ["export", "--from-onnx", str(path), "--labels", str(folder / "labels.txt"), "--fit", "stretch"]
        assert main([*command, "--name", name.lower(), "--models", str(folder / "models")]) == 0
    return folder / "models"


FAMILY = ("Swin", "MobileVit", "SeqPool", "Registers", "Distilled", "LastTokens", "Convolutions")


@pytest.mark.parametrize("name", FAMILY)
def test_what_differs_most_is_served(family: Path, name: str) -> None:
    """Windows, learned pooling, registers, two heads, a class token at the end, no attention: scores, attention and an
    exact class map through the service, as the eager net gives them.
    """
    net = models.lively(getattr(models, name)())
    manifest = open_bundle(family / name.lower() / "1").manifest
    picture = Image.fromarray((np.random.default_rng(1).random((*net.size, 3)) * 255).astype(np.uint8))
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    with torch.inference_mode():
        scores = net(torch.from_numpy(preprocess(picture, manifest.preprocessing)[None])).softmax(-1)[0].numpy()
    maps = {"maps": "class", "classes": "1"} if "class" in manifest.maps.available else {}
    whole = {"attention": "all", "heads": "all"} if manifest.attention else {}
    query = {"top_k": 5, "decimals": 9, **whole, **maps}
    with TestClient(create_app(Settings(models=family, default_model=name.lower()))) as service:
        response = service.post("/v1/classify", params=query, content=buffer.getvalue())
    assert response.status_code == 200, response.text
    answer = response.json()
    seen = {one["label"]: one["score"] for one in answer["labels"]}
    assert seen == pytest.approx(dict(zip(LABELS, scores, strict=True)), abs=1e-5)
    expected = [window for layer in net.seen for window in layer[0].reshape(-1, *layer.shape[-3:])]
    for entry, weights in zip(answer["attention"] or [], expected, strict=True):
        np.testing.assert_allclose(entry["weights"], weights.numpy(), atol=1e-5)
    if maps:
        (drawn,) = answer["maps"]
        assert drawn["sum"] + drawn["bias"] == pytest.approx(drawn["logit"], abs=1e-4)


def test_weights_stand_once_under_their_names(export: Callable[..., int], file: Path, tmp_path: Path) -> None:
    """Each initializer of 1 kB or more is in weights.safetensors, bit for bit; model.onnx points at it."""
    assert export(file) == 0
    bundle = taken(tmp_path)
    source = {one.name: numpy_helper.to_array(one) for one in onnx.load(file).graph.initializer}
    held = load_file(bundle.weights)
    for name, array in source.items():
        if array.nbytes >= 1024:
            np.testing.assert_array_equal(held[name], array)
    graph = onnx.load(bundle.graph, load_external_data=False)
    external = {one.name for one in graph.graph.initializer if one.data_location == TensorProto.EXTERNAL}
    assert external == set(held)
    onnx.checker.check_model(str(bundle.graph), full_check=True)
    assert {(one.domain, one.version) for one in graph.opset_import} == {("", 20)}
    for word in (str(ROOT).encode(), str(tmp_path).encode(), b"site-packages"):
        assert word not in bundle.graph.read_bytes()


def test_a_bundle_is_verified_without_the_file(
    export: Callable[..., int], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`saccade verify` holds it to another evaluator, which it names."""
    assert export(file) == 0
    source = taken(tmp_path).manifest.parity.source
    assert "the file's own graph through ONNX Runtime, nothing optimised (logits)" in source
    capsys.readouterr()
    assert main(["verify", "taken", "--models", str(tmp_path / "models")]) == 0
    assert "against onnx's own evaluator on the bundle's graph" in capsys.readouterr().out
    assert taken(tmp_path).manifest.parity.checks["attention"].allowed == 1e-5


def test_a_tampered_weight_is_found(export: Callable[..., int], file: Path, tmp_path: Path) -> None:
    """A bundle from elsewhere is guarded as one of ours: its golden file knows what the model answered."""
    assert export(file) == 0
    path = taken(tmp_path).weights
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)
    assert main(["verify", "taken", "--models", str(tmp_path / "models")]) == 2


def test_external_data_beside_the_file_is_taken_along(export: Callable[..., int], file: Path, tmp_path: Path) -> None:
    """One file of weights beside the graph, as large exports have it; its checksum is in the manifest."""
    (tmp_path / "given").mkdir()
    onnx.save(
        onnx.load(file), tmp_path / "given/vit.onnx", save_as_external_data=True, location="vit.bin", size_threshold=0
    )
    assert export(tmp_path / "given/vit.onnx") == 0
    assert list(taken(tmp_path).manifest.provenance.origin.files) == ["vit.onnx", "vit.bin"]
    np.testing.assert_allclose(
        answers(onnx.load(taken(tmp_path).graph), noise(2, (32, 48)))["logits"],
        next(iter(answers(onnx.load(file), noise(2, (32, 48))).values())), atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("operator", ["Softmax", "Sigmoid"])
def test_a_graph_that_ends_in_probabilities_gives_the_logits_before(
    export: Callable[..., int], file: Path, tmp_path: Path, operator: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says so; a sigmoid makes each label's score its own."""
    proto = onnx.load(file)
    logits = proto.graph.output[0].name
    proto.graph.node.append(helper.make_node(operator, [logits], ["probabilities"], name="end"))
    proto.graph.output[0].name = "probabilities"
    onnx.save(proto, tmp_path / "ends.onnx")
    assert export(tmp_path / "ends.onnx") == 0
    assert f"the output probabilities is a {operator}: the logits are what it is taken of" in capsys.readouterr().out
    manifest = taken(tmp_path).manifest
    assert manifest.scores == ("sigmoid" if operator == "Sigmoid" else "softmax")
    seen = answers(onnx.load(taken(tmp_path).graph), noise(2, (32, 48)))
    np.testing.assert_allclose(seen["logits"], answers(onnx.load(file), noise(2, (32, 48)))[logits], atol=1e-5)
    assert list(seen)[-1] == "probabilities"


def test_channels_last_get_a_transpose(export: Callable[..., int], file: Path, tmp_path: Path) -> None:
    """A graph that takes (batch, H, W, 3), as TensorFlow's do, is served as any other."""
    proto = onnx.load(file)
    name = proto.graph.input[0].name
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("nhwc", TensorProto.FLOAT, ["n", 32, 48, 3]))
    proto.graph.node.insert(0, helper.make_node("Transpose", ["nhwc"], [name], perm=[0, 3, 1, 2], name="first"))
    onnx.save(proto, tmp_path / "last.onnx")
    assert export(tmp_path / "last.onnx") == 0
    pixels = noise(2, (32, 48))
    (expected,) = answers(onnx.load(file), pixels).values()
    np.testing.assert_allclose(answers(onnx.load(taken(tmp_path).graph), pixels)["logits"], expected, atol=1e-5)
    assert taken(tmp_path).manifest.attention[0].grid == (4, 6)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(LABELS),
        json.dumps({str(index): label for index, label in enumerate(LABELS)}),
        "\ufeff" + "\r\n".join(LABELS),
        "\ufeff" + json.dumps(LABELS),
        json.dumps({"model_type": "vit", "id2label": {str(index): label for index, label in enumerate(LABELS)}}),
    ],
    ids=["list", "object", "lines of Windows", "list of Windows", "configuration"],
)
def test_labels_come_as_lines_or_json(
    export: Callable[..., int], file: Path, tmp_path: Path, labels: Path, content: str
) -> None:
    """A list, an object from index to label, or a configuration that holds one."""
    labels.write_text(content)
    assert export(file) == 0
    assert taken(tmp_path).manifest.labels == LABELS


def test_equal_labels_get_their_numbers(
    export: Callable[..., int], file: Path, tmp_path: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ImageNet's two cranes: all of them, until they differ, and it is said."""
    labels.write_text("crane\ncrane (2)\ncrane\ndog\ndog\n")
    assert export(file) == 0
    assert taken(tmp_path).manifest.labels == ("crane (0)", "crane (2) (1)", "crane (2) (2)", "dog (3)", "dog (4)")
    said = capsys.readouterr().out
    assert "equal labels got their numbers behind them: crane (0), crane (2), dog (3), dog (4)" in said


def test_labels_in_the_graphs_metadata_need_no_file(export: Callable[..., int], file: Path, tmp_path: Path) -> None:
    """Some exporters leave them there, as JSON or as Python's repr; nothing is evaluated but literals."""
    proto = onnx.load(file)
    helper.set_model_props(proto, {"names": repr(dict(enumerate(LABELS)))})
    onnx.save(proto, tmp_path / "named.onnx")
    assert export(tmp_path / "named.onnx", named=False) == 0
    assert taken(tmp_path).manifest.labels == LABELS


def refused(
    export: Callable[..., int],
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *words: str,
    named: bool = True,
) -> str:
    """The one sentence on stderr; nothing was written."""
    assert export(path, *words, named=named) == 2
    assert not (tmp_path / "models").exists()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("saccade: ")
    return said.err


BROKEN = {
    "text": (b"not a model\n", "is no ONNX file, or it is cut off"),
    "empty": (b"", "is no ONNX model: it has 0 nodes"),
    "pickle": (pickle.dumps({"weights": [1.0]}), "is a pickle, as torch.save writes them, and none is opened"),
    "archive": (b"PK\x03\x04" + bytes(64), "is a pickle, as torch.save writes them, and none is opened"),
}


@pytest.mark.parametrize("kind", [*BROKEN, "cut off", "missing"])
def test_a_file_that_is_no_model_is_refused(
    export: Callable[..., int], file: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In words, whatever it is instead; nothing is unpickled."""
    content, message = BROKEN.get(kind, (file.read_bytes()[:5000], "it is cut off"))
    if kind == "missing":
        message = "could not read"
    else:
        (tmp_path / "broken.onnx").write_bytes(content)
    assert message in refused(export, tmp_path / "broken.onnx", tmp_path, capsys)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../outside.bin", "is at '../outside.bin', which is out of the model's folder"),
        ("/etc/hostname", "is at '/etc/hostname', which is out of the model's folder"),
        ("C:\\weights.bin", "which is out of the model's folder"),
        ("link.bin", "is in link.bin, and it is a link: copy the file itself beside the graph"),
        ("linked/second.bin", "is in linked/second.bin, and it is a link: copy the file itself beside the graph"),
        ("second.bin", "is in second.bin, and it is a link: copy the file itself beside the graph"),
        ("sub/../../outside.bin", "which is out of the model's folder"),
        ("nothing.bin", "and there is no such file beside it"),
        ("short.bin", "ends at byte 64 of short.bin, which has 3"),
        ("", "which is out of the model's folder"),
    ],
)
def test_external_data_stays_in_the_folder(
    export: Callable[..., int],
    file: Path,
    tmp_path: Path,
    location: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever path a file names, nothing outside of its folder is opened: no parent, no absolute path, no link."""
    (tmp_path / "given").mkdir()
    (tmp_path / "given/linked").symlink_to(tmp_path / "given")
    (tmp_path / "outside.bin").write_bytes(bytes(4096))
    (tmp_path / "given/link.bin").symlink_to(tmp_path / "outside.bin")
    (tmp_path / "given/short.bin").write_bytes(b"abc")
    (tmp_path / "given/second.bin").hardlink_to(tmp_path / "outside.bin")
    proto = onnx.load(file)
    (tensor,) = [one for one in proto.graph.initializer if one.name == "norm.bias"]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "64")):
        tensor.external_data.add(key=key, value=value)
    onnx.save(proto, tmp_path / "given/evil.onnx")
    assert message in refused(export, tmp_path / "given/evil.onnx", tmp_path, capsys)


def test_external_data_hidden_in_an_attribute_is_found(file: Path, tmp_path: Path) -> None:
    """Tensors stand in nodes too."""
    proto = onnx.load(file)
    hidden = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="/etc/hostname")
    proto.graph.node.append(helper.make_node("Constant", [], ["constant"], value=hidden))
    onnx.save(proto, tmp_path / "hidden.onnx")
    with pytest.raises(DataError, match="'hidden' is at '/etc/hostname', which is out of the model's folder"):
        read_model(tmp_path / "hidden.onnx")


def test_a_flipped_bit_is_one_sentence(
    export: Callable[..., int], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that is no text any more; no stack trace, and no banner of ONNX Runtime's."""
    content = file.read_bytes()
    assert content.count(b"norm.bias") > 1
    (tmp_path / "flipped.onnx").write_bytes(content.replace(b"norm.bias", b"norm.bia\xf3", 1))
    assert "it is broken: b'norm.bia\\xf3' in it is no text" in refused(
        export, tmp_path / "flipped.onnx", tmp_path, capsys
    )


def changed(file: Path, to: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    proto = onnx.load(file)
    change(proto)
    onnx.save(proto, to)
    return to


def _second_input(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


def _integers(proto: onnx.ModelProto) -> None:
    name = proto.graph.input[0].name
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("bytes", TensorProto.UINT8, ["n", 3, 32, 48]))
    proto.graph.node.insert(0, helper.make_node("Cast", ["bytes"], [name], to=TensorProto.FLOAT, name="cast"))


def _no_logits(proto: onnx.ModelProto) -> None:
    tokens = next(node for node in proto.graph.node if node.op_type == "LayerNormalization").output[0]
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info(tokens, TensorProto.FLOAT, None))


def _branches(proto: onnx.ModelProto) -> None:
    """The logits as they are, or negative, as their sum says."""
    logits = proto.graph.output[0].name
    branches = [
        helper.make_graph([helper.make_node(operator, [logits], ["taken"])], operator, [],
                          [helper.make_tensor_value_info("taken", TensorProto.FLOAT, None)])
        for operator in ("Identity", "Neg")
    ]  # fmt: skip
    zero = numpy_helper.from_array(np.float32(0), "zero")
    proto.graph.initializer.append(zero)
    proto.graph.node.extend(
        [
            helper.make_node("ReduceSum", [logits], ["sum"], keepdims=0, name="sum"),
            helper.make_node("Greater", ["sum", "zero"], ["more"], name="more"),
            helper.make_node("If", ["more"], ["end"], name="fork", then_branch=branches[0], else_branch=branches[1]),
        ]
    )
    proto.graph.output[0].name = "end"


def _four_pictures(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def _grey(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1


def _of_its_own(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].domain = "my.own"
    proto.opset_import.append(helper.make_opsetid("my.own", 1))


def _ancient(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 5


def _nan(proto: onnx.ModelProto) -> None:
    (tensor,) = [one for one in proto.graph.initializer if one.name == "norm.bias"]
    tensor.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(tensor), np.nan), tensor.name))


BAD = {
    _nan: "the graph has weights that are no numbers: norm.bias has 16 numbers that are NaN or infinite",
    _second_input: "the graph takes 2 inputs (x, mask); a classifier of pictures takes one",
    _integers: "the graph takes bytes as uint8; it must take float32, already normalised",
    _no_logits: "is no (batch, labels): it is (batch, 25, 16)",
    _branches: "If 'fork' could not be followed: it is a branch or a loop that depends on the picture",
    _four_pictures: "the graph takes 4 pictures, no more and no fewer: export it with an open batch, or 1",
    _grey: "the graph takes 1 channels; pictures have 3",
    _of_its_own: "my.own::",
    _ancient: "the graph has opset 5; the oldest that can be read is 7",
}


@pytest.mark.parametrize("change", BAD, ids=lambda change: change.__name__)
def test_a_graph_that_is_no_classifier_of_pictures_is_refused(
    export: Callable[..., int], file: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """With what was seen and what to do; nothing is written."""
    path = changed(file, tmp_path / "bad.onnx", change)
    assert BAD[change] in refused(export, path, tmp_path, capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "64x64"], "the graph takes pictures of 32 x 48, not 64 x 64"),
        (["--grid", "7x9"], "--grid 7x9: the graph itself says 4 x 6"),
        (["--output", "nothing"], "the graph has no output 'nothing'; it has "),
        (["--interpolation", "nearest"], "a crop needs a smooth interpolation"),
        (["--shortest-edge", "20"], "needs shortest_edge of at least 48, not 20"),
        (["--fit", "stretch", "--shortest-edge", "50"], "shortest_edge has no meaning with fit='stretch'"),
        (["--std", "0", "1", "1"], "std must be positive"),
        (["--weights", "w.safetensors"], "--weights says nothing of --from-onnx"),
        (["--data", "d"], "--data says nothing of --from-onnx"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    export: Callable[..., int],
    file: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each with the value seen."""
    assert message in refused(export, file, tmp_path, capsys, *words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("one\ntwo\n", "there are 2 labels and the model gives 5 logits"),
        ("", "holds no labels: it is empty"),
        ('{"a": 1}', "holds no labels: its keys are no numbers from 0"),
        ('{"0": "a", "2": "b"}', "holds no labels: its keys are not the numbers from 0 to 1"),
        ("[1, 2]", "it is neither a list of texts nor an object from index to text"),
        ("[", "holds no labels"),
        (None, "could not read labels"),
    ],
)
def test_labels_that_do_not_match_the_head_are_refused(
    export: Callable[..., int], file: Path, tmp_path: Path, labels: Path, content: str | None, message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Their number and their form."""
    labels.unlink() if content is None else labels.write_text(content)
    assert message in refused(export, file, tmp_path, capsys)


def test_labels_are_counted_before_anything_long(
    export: Callable[..., int], file: Path, tmp_path: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a graph that says how many logits it has, before it is brought into our form, which this one cannot be."""
    labels.write_text("one\ntwo\n")
    path = changed(file, tmp_path / "bad.onnx", _integers)
    assert "there are 2 labels and the model gives 5 logits" in refused(export, path, tmp_path, capsys)


def test_a_graph_without_labels_asks_for_them(
    export: Callable[..., int], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no bundle with made-up labels."""
    assert "names no labels: give --labels" in refused(export, file, tmp_path, capsys, named=False)


def test_an_open_size_is_asked_for(
    export: Callable[..., int], net: models.Classifier, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle has one size, and the graph's is taken where it has one."""

    def open_size(proto: onnx.ModelProto) -> None:
        for dim in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
            dim.dim_param = "any"

    path = changed(file, tmp_path / "open.onnx", open_size)
    assert "leaves height and width of x open: give --size" in refused(export, path, tmp_path, capsys)
    assert export(path, "--size", "32x48") == 0


def test_exactly_one_source_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    """A run or one model from elsewhere; neither and both are refused by the command line."""
    for words in ([], ["run", "--from-onnx", "x.onnx"], ["--from-onnx", "x.onnx", "--from-torch", "m:f"]):
        with pytest.raises(SystemExit) as ended:
            main(["export", "--name", "n", *words])
        assert ended.value.code == 2
    assert main(["export", "run", "--name", "n", "--labels", "x"]) == 2
    assert "--labels says nothing of a run" in capsys.readouterr().err

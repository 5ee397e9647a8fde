"""The `saccade` command: what it prints, and one line with exit code 2 for whatever is wrong."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade import __version__
from saccade.api import Answer, ClassifyOptions
from saccade.cli import main
from saccade.client import Effort
from service.local import Local
from tests.conftest import ROOT, Server

COMMANDS = ["train", "describe", "export", "verify", "evaluate", "calibrate", "quantize", "overlay", "classify"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A folder of its own with one picture in it."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder / "picture.png"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line; nothing on stdout, exit code 2."""
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert (code, output.out) == (2, "")
    assert output.err.startswith("saccade: ")
    assert output.err.count("\n") == 1
    return output.err


def exit_of(*arguments: str) -> object:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return left.value.code


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("--version") == 0
    assert capsys.readouterr().out == f"saccade {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With what it does and every option, and without importing what it would need."""
    assert exit_of(command, "--help") == 0
    assert f"usage: saccade {command}" in capsys.readouterr().out


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("--help") == 0
    shown = capsys.readouterr().out
    assert [command for command in COMMANDS if command not in shown] == []


def test_the_command_runs_as_a_process(models: Path, tmp_path: Path) -> None:
    """No traceback reaches a shell."""
    code = "import sys; from saccade.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "verify", "absent", "--models", str(models)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "there are: tiny-cct@1" in ended.stderr


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp"])
def test_overlay_writes_a_picture_of_the_same_size(
    suffix: str, models: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the format of the file's name, and says what it drew."""
    out = picture.with_name(f"map{suffix}")
    assert main(["overlay", str(picture), "--model", "tiny-cct", "--models", str(models), "--out", str(out)]) == 0
    with Image.open(out) as drawn:
        assert drawn.size == (90, 60)
        assert drawn.format == {".png": "PNG", ".webp": "WEBP"}.get(suffix, "JPEG")
    assert files(picture.parent) == {"picture.png", out.name}
    assert "rollout map of tiny-cct@1" in capsys.readouterr().out


def test_overlay_draws_the_class_that_was_asked_for(
    models: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two classes, two pictures; the model may be given as a folder."""
    folder = str(models / "tiny-resnet" / "1")
    drawn = []
    for label in ("3", "8"):
        out = picture.with_name(f"{label}.png")
        assert (
            main(["overlay", str(picture), "--model", folder, "--map", "class", "--class", label, "--out", str(out)])
            == 0
        )
        drawn.append(out.read_bytes())
    assert drawn[0] != drawn[1]
    assert "class map of tiny-resnet@1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "tiny-cct", "--map", "relevance"], "relevance map of tiny-cct@1 for {top}"),
        (["--model", "tiny-cct", "--map", "grad_attention", "--class", "7"], "grad_attention map of tiny-cct@1 for 7"),
        (["--model", "tiny-cct", "--class", "7"], "class map of tiny-cct@1 for 7"),
        (["--model", "tiny-vit", "--class", "7"], "relevance map of tiny-vit@1 for 7"),
        (["--model", "tiny-resnet", "--map", "grad_cam", "--class", "top1"], "grad_cam map of tiny-resnet@1 for {top}"),
    ],
)
def test_overlay_draws_why_a_class(
    options: list[str], said: str, models: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a map of the gradient, which is meant by --class alone where a model has no class map; as the service's answer
    has it.
    """
    out = picture.with_name("why.png")
    assert main(["overlay", str(picture), "--models", str(models), "--out", str(out), *options]) == 0
    printed = capsys.readouterr().out
    top = printed.split(": ")[1].split()[0]
    assert printed.endswith(f"{said.format(top=top)}\n")
    name, model = said.split(maxsplit=1)[0], options[1]
    with Local(models / model / "1") as local:
        asked = ClassifyOptions(maps=name, classes=("7" if "7" in options else "top1",), decimals=9)
        answer = Answer.model_validate_json(local.asking(asked)(picture.read_bytes(), Effort()))
    (entry,) = answer.maps
    drawn = answer.overlay(name, entry.class_index, picture=picture)
    with Image.open(out) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(drawn))


def test_overlay_refuses_a_class_for_a_map_that_is_of_none(
    models: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a model that can have no map of a class."""
    out = picture.with_name("map.png")
    words = refused(
        capsys, "overlay", str(picture), "--model", "tiny-cct", "--models", str(models), "--out", str(out),
        "--map", "rollout", "--class", "7",
    )  # fmt: skip
    assert "--class belongs to the class map and to maps of the gradient, not to --map rollout" in words


def test_overlay_turns_a_photograph_upright(models: Path, picture: Path) -> None:
    block = Image.Exif()
    block[274] = 6
    lying = picture.with_name("lying.jpg")
    Image.new("RGB", (90, 60)).save(lying, exif=block)
    out = picture.with_name("map.png")
    assert main(["overlay", str(lying), "--model", "tiny-cct", "--models", str(models), "--out", str(out)]) == 0
    with Image.open(out) as drawn:
        assert drawn.size == (60, 90)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"--model": "absent"}, "no model 'absent'"),
        ({"--model": "tiny-cct@9"}, "there are: tiny-cct@1"),
        ({"--models": "no/such/folder"}, "no folder of models at no/such/folder"),
        ({"--map": "saliency"}, "maps must be none, or of pooling, rollout, class, relevance"),
        ({"--map": "none"}, "there are 0: give --map"),
        ({"--map": "rollout,pooling"}, "there are 2"),
        ({"--model": "tiny-resnet", "--map": "rollout"}, "has no map 'rollout'"),
        ({"--model": "tiny-resnet", "--class": "zebra"}, "no label 'zebra'"),
        ({"--model": "tiny-resnet", "--class": "10"}, "outside of 0 to 9"),
        ({"--model": "tiny-resnet", "--class": ""}, "classes"),
        ({"--model": "tiny-resnet", "--class": "1,2"}, "there are 2: give --map and one --class"),
        ({"--model": "tiny-resnet", "--class": "topk"}, "one map is drawn: --class must be top1, an index or a label"),
        ({"--out": "{folder}/map.gif"}, "must end in .png, .jpg, .jpeg or .webp"),
        ({"--out": "{folder}/map"}, "must end in"),
        ({"--out": "{folder}/absent/map.png"}, "could not write"),
        ({"--out": "{folder}/picture.png/map.png"}, "could not write"),
        ({"--out": "{folder}/folder.png"}, "could not write"),
        ({"picture": "{folder}/absent.png"}, "could not read"),
        ({"picture": "{folder}"}, "could not read"),
        ({"picture": "{folder}/text.png"}, "not a picture in one of the formats"),
        ({"picture": "{folder}/cut.png"}, "damaged or cut short"),
    ],
)
def test_overlay_refuses_in_one_line_and_leaves_nothing(
    options: dict[str, str], words: str, models: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever was wrong; no half-written picture, no hidden one."""
    folder = picture.parent
    (folder / "text.png").write_text("hello")
    (folder / "cut.png").write_bytes(picture.read_bytes()[:5000])
    (folder / "folder.png").mkdir()
    before = files(folder)
    values = {"picture": str(picture), "--model": "tiny-cct", "--models": str(models), "--out": "{folder}/map.png"}
    values = {name: value.replace("{folder}", str(folder)) for name, value in {**values, **options}.items()}
    picked = [values.pop("picture"), *(part for option in values.items() for part in option)]
    assert words in refused(capsys, "overlay", *picked)
    assert files(folder) == before


def test_a_picture_that_the_format_cannot_hold_is_refused(
    models: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """WebP ends at 16,383 pixels a side; PNG does not."""
    Image.new("RGB", (17_000, 2)).save(picture)
    asked = ("overlay", picture, "--model", "tiny-cct", "--models", models, "--out")
    assert "WEBP cannot hold 17000 x 2 pixels" in refused(capsys, *asked, picture.with_name("map.webp"))
    assert files(picture.parent) == {"picture.png"}
    assert main([str(argument) for argument in (*asked, picture.with_name("map.png"))]) == 0


def test_classify_prints_the_answer(server: Server, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line of JSON that a script can read, with the options given."""
    asked = ["--model", "tiny-vit", "--top-k", "2", "--attention", "last", "--rows", "pool", "--heads", "all"]
    assert main(["classify", str(picture), "--url", server.url, *asked]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["path"] == str(picture)
    answer = Answer.model_validate(line["answer"])
    assert (answer.model.name, len(answer.labels)) == ("tiny-vit", 2)
    assert answer.attention is not None
    assert [layer.shape for layer in answer.attention] == [(2, 1, 25)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--top-k", "0"], "top_k must be at least 1, not '0'"),
        (["--top-k", "x"], "top_k must be a whole number, not 'x'"),
        (["--maps", "foo"], "maps must be none"),
        (["--attention=-1"], "attention must be none, last, all"),
        (["--attention", "7"], "outside of 0 to"),
        (["--model", "absent"], "no model 'absent'"),
        (["--url", "http://127.0.0.1:9"], "does not answer"),
        (["--url", "http://127.0.0.1:99999"], "127.0.0.1:99999"),
    ],
)
def test_classify_refuses_in_one_line(
    options: list[str], words: str, server: Server, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The service's own sentence, or that nobody answered."""
    assert words in refused(capsys, "classify", picture, "--url", server.url, *options)


SOURCES = (
    ("absent",),
    ("--from-transformers", "./absent"),
    ("--from-torch", "absent:f"),
    ("--from-onnx", "absent.onnx"),
)


@pytest.mark.parametrize("source", SOURCES, ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("name", "models", "words"),
    [
        ("Upper", "models", "'Upper' is no name for a model: it must match"),
        ("fine", "taken", "could not write to taken"),
        ("fine", "taken/models", "could not write to taken/models"),
    ],
)
def test_an_export_that_could_not_be_written_is_refused_before_it_begins(
    source: tuple[str, ...],
    name: str,
    models: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bad name, a folder that nothing can be written into: before the source, which is not there, is looked at."""
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file")
    assert words in refused(capsys, "export", *source, "--name", name, "--models", models)
    assert files(tmp_path) == {"taken"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "absent", "--out", "run"), "no recipe 'absent': give a TOML file or one of"),
        (("train", "absent.toml", "--out", "run"), "no recipe 'absent.toml'"),
        (("train", "not.toml", "--out", "run"), "not.toml"),
        (("train", "typo.toml", "--out", "run"), "typo.toml: colour"),
        (("train", "cifar10-cct", "--out", "run"), "give --data DIR"),
        (("train", "cifar10-cct", "--out", "run", "--data", "absent"), "absent"),
        (("train", "cifar10-cct", "--out", "run", "--download"), "--download needs --data DIR"),
        (
            ("train", "digits-cct", "--out", "run", "--download"),
            "--download fetches CIFAR-10; the recipe's data is digits",
        ),
        (
            ("train", "digits-cct", "--out", "run", "--data", "d"),
            "(digits) is part of scikit-learn: --data d would not",
        ),
        (("export", "absent", "--name", "made", "--models", "models"), "absent"),
        (
            ("export", "--from-transformers", "./absent", "--grid", "4x6", "--name", "made"),
            "./absent is no folder here",
        ),
        (("verify", "absent", "--models", "models"), "no folder of models at models"),
        (("evaluate", "absent", "--models", "models"), "no folder of models at models"),
    ],
)
def test_a_command_with_bad_input_leaves_nothing(
    arguments: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An unknown or misspelt recipe, a missing data set, run or bundle: one line, no folder begun."""
    monkeypatch.chdir(tmp_path)
    recipe = (ROOT / "export" / "recipes" / "digits-cct.toml").read_text()
    Path("typo.toml").write_text(f'colour = "red"\n{recipe}')
    Path("not.toml").write_text("= = =")
    assert words in refused(capsys, *arguments)
    assert files(tmp_path) == {"typo.toml", "not.toml"}


def test_a_damaged_bundle_is_refused(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By every command that opens one, with the two sizes."""
    folder = tmp_path / "models" / "tiny-cct" / "1"
    folder.mkdir(parents=True)
    for path in (models / "tiny-cct" / "1").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with (folder / "model.onnx").open("ab") as graph:
        graph.write(b"more")
    size = (folder / "model.onnx").stat().st_size
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    (tmp_path / "picture.png").write_bytes(picture.getvalue())
    overlay = ("overlay", tmp_path / "picture.png", "--model", "tiny-cct", "--out", tmp_path / "map.png")
    for command in (("verify", "tiny-cct"), ("evaluate", "tiny-cct"), overlay):
        line = refused(capsys, *command, "--models", tmp_path / "models")
        assert f"has {size} bytes; the manifest says {size - 4}" in line
    assert not (tmp_path / "map.png").exists()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "fly",
        "train",
        "train digits-cct",
        "overlay a.png --model",
        "export run --name",
        "classify a.png --colour",
        "evaluate digits --mistakes 0",
    ],
)
def test_a_command_line_that_is_none_is_one_line_too(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts that log stderr get a line, not a page of usage."""
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("saccade")
    assert said.count("\n") == 1

"""The documents are true: commands run, tables hold, answers are real."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic_core import PydanticUndefined

from benchmarks import relevance_picture
from saccade.api import ClassifyOptions
from saccade.bundle import find_bundles, open_bundle
from saccade.cli import _parser, main
from saccade.client import Client
from saccade.errors import SaccadeError
from service.errors import STATUS
from service.settings import Settings
from tests.conftest import ROOT, Server
from tests.container.check import GPU_STEPS, STEPS, promise

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def commands(text: str) -> list[str]:
    """Lines of all `sh` blocks; a backslash joins the next line, a comment is no command."""
    lines = "\n".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def rows(path: Path) -> list[list[str]]:
    """Cells of all tables of a document, heads left out."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if not set(row[0]) <= {"-", " "}]


def settings_rows() -> list[list[str]]:
    """What docs/settings.md must say, one row a setting."""
    schema = Settings.model_json_schema()["properties"]
    result = []
    for name, field in Settings.model_fields.items():
        kinds = [kind for kind in schema[name].get("anyOf", [schema[name]]) if kind.get("type") != "null"]
        kind = kinds[0].get("format") or {"array": "list"}.get(kinds[0]["type"], kinds[0]["type"])
        low, high = kinds[0].get("minimum"), kinds[0].get("maximum")
        bounds = f"{kind}, {low:g} to {high:.10g}" if low is not None else kind
        default = field.default
        assert default is not PydanticUndefined, f"{name} has no default"
        shown = "" if default is None else ",".join(default) if isinstance(default, tuple) else str(default)
        result.append([f"`SACCADE_{name.upper()}`", bounds, shown and f"`{shown}`", str(field.description)])
    return result


def test_every_setting_is_documented_as_it_is() -> None:
    """docs/settings.md shows each variable with its type, bounds, default and consequence."""
    documented = [row for row in rows(ROOT / "docs/settings.md") if row[0].startswith("`SACCADE_")]
    assert documented == settings_rows()


def test_every_error_code_is_documented_with_its_status() -> None:
    """docs/errors.md has each pair of status and code, and none that cannot come."""
    documented = {(int(row[0]), row[1].strip("`")) for row in rows(ROOT / "docs/errors.md") if row[0].isdigit()}
    assert documented == {(status, error.code) for error, status in STATUS.items()} | {(500, SaccadeError.code)}


def test_every_parameter_is_documented_with_its_default() -> None:
    """docs/http-api.md has each query parameter of POST /v1/classify."""

    def shown(default: object) -> str:
        return "" if default is None else ",".join(default) if isinstance(default, tuple) else str(default)

    fields = {name: shown(field.default) for name, field in ClassifyOptions.model_fields.items()}
    documented = {row[0].strip("`"): row[1] for row in rows(ROOT / "docs/http-api.md") if row[0].strip("`") in fields}
    assert documented == fields


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Each relative link and picture of a document is in the repository."""
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_commands_of_the_documents_exist() -> None:
    """Every `make` target is one, every `saccade` command line is taken by its parser, and what `docker` is told to
    run, set and bring up is there.
    """
    seen = {"make": 0, "saccade": 0, "docker": 0}
    profiles = {name for one in COMPOSE["services"].values() for name in one["profiles"]}
    images = {one["image"] for one in COMPOSE["services"].values()}
    written = [line for path in DOCUMENTS for line in commands(path.read_text(encoding="utf-8"))]
    for line in [part for whole in written for part in whole.split(" | ")]:
        words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", word)]
        tool = Path(words[0]).name
        if tool == "make":
            subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        elif tool == "saccade":
            _parser().parse_args(words[1:])
        elif tool == "torchrun":
            _parser().parse_args(words[words.index("saccade.cli") + 1 :])
        elif tool == "docker":
            assert words[1] in ("run", "compose"), line
            assert {word for word in words if word.startswith("saccade:")} <= images, line
            assert set(re.findall(r"--profile[ =](\S+)", line)) <= profiles, line
            assert {name.lower() for name in re.findall(r"SACCADE_([A-Z_]+)=", line)} <= set(Settings.model_fields), (
                line
            )
        else:
            assert tool in ("curl", "git", "cd", "find", "python"), line
        seen[tool] = seen.get(tool, 0) + 1
    assert seen["make"] >= 2
    assert seen["saccade"] >= 3
    assert seen["docker"] >= 3


def test_the_readme_shows_the_real_answer(shipped: Server) -> None:
    """The curl line of the README, sent to the service on the shipped models, gives the answer that stands there."""
    (curl,) = [shlex.split(line) for line in commands(README) if line.startswith("curl")]
    url = httpx.URL(curl[-1])
    picture = (ROOT / curl[curl.index("--data-binary") + 1].removeprefix("@")).read_bytes()
    content_type = {"content-type": "application/x-www-form-urlencoded"}  # what curl says by itself
    response = httpx.post(f"{shipped.url}{url.raw_path.decode()}", content=picture, headers=content_type)
    assert response.status_code == 200, response.text
    answer = response.json()
    (shown,) = [json.loads(block) for block in blocks(README, "json")]
    assert set(shown) == set(answer)
    for key in ("model", "geometry", "attention"):
        assert shown[key] == answer[key]
    assert [label["label"] for label in shown["labels"]] == [label["label"] for label in answer["labels"]]
    assert [label["score"] for label in shown["labels"]] == pytest.approx(
        [label["score"] for label in answer["labels"]], abs=2e-3
    )
    for ours, theirs in zip(shown["maps"], answer["maps"], strict=True):
        assert (ours["name"], ours["grid"]) == (theirs["name"], theirs["grid"])
        np.testing.assert_allclose(ours["values"], theirs["values"], atol=2e-3)


def test_the_list_of_models_has_the_fields_that_the_page_names(shipped: Server) -> None:
    """No more and no fewer."""
    page = (ROOT / "docs/http-api.md").read_text(encoding="utf-8")
    (line,) = [one for one in page.splitlines() if one.startswith("| `GET /v1/models` |")]
    (listed, *_) = httpx.get(f"{shipped.url}/v1/models").json()["models"]
    assert set(re.findall(r'"(\w+)"', line)) == {"models", *listed}


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs/client.md"], ids=lambda path: path.name)
def test_the_python_of_the_documents_runs(
    path: Path, shipped: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, from the folder of the checkout, but for the address."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "cat.jpg").symlink_to(ROOT / "examples/chelsea.jpg")
    (tmp_path / "README.md").symlink_to(ROOT / "README.md")
    found = blocks(path.read_text(encoding="utf-8"), "python")
    assert found
    with Client(shipped.url) as client:
        for block in found:
            names = {"client": client, "paths": ["cat.jpg"]}
            exec(block.replace("http://127.0.0.1:8000", shipped.url), names)  # of our own documents
    assert capsys.readouterr().out.startswith("cat ")
    assert [made.suffix for made in tmp_path.glob("*-map.png")] == [".png"]


def test_the_overlays_of_the_readme_are_drawn_by_their_commands(tmp_path: Path) -> None:
    """`saccade overlay`, as written in the README, draws each over the whole photograph."""
    lines = [shlex.split(line) for line in commands(README) if "saccade overlay" in line]
    assert len(lines) == 2
    with Image.open(ROOT / "examples/chelsea.jpg") as photograph:
        size = photograph.size
    for words in lines:
        place = words.index("--out") + 1
        words[place] = str(tmp_path / words[place])
        subprocess.run([sys.executable, "-m", "saccade.cli", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        with Image.open(words[place]) as drawn:
            assert drawn.size == size


def test_the_picture_of_the_readme_is_what_the_shipped_model_gives() -> None:
    """One photograph, its first two classes, two maps: by `python -m benchmarks.relevance_picture`."""
    parts = relevance_picture.panels()
    assert [said.split()[-1] for said, _ in parts[1:]] == ["“cat”", "“truck”"]
    made = relevance_picture.sheet(parts)
    with Image.open(ROOT / "docs/relevance.jpg") as shown:
        expected, seen = (np.asarray(one.convert("RGB"), np.float32) for one in (made, shown))
    assert seen.shape == expected.shape
    assert np.abs(seen - expected).mean() < 2


def test_the_training_commands_of_the_readme_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From training to a variant, as written; on the digits, which need no download, in place of CIFAR-10."""
    monkeypatch.chdir(tmp_path)
    lines = [shlex.split(line)[1:] for line in commands(README) if Path(line.split()[0]).name == "saccade"]
    ours = [words for words in lines if not any(word.startswith("--from-") for word in words)]  # they have pages
    steps = [words for words in ours if words[0] not in ("overlay", "classify")]
    assert [words[0] for words in steps] == ["train", "export", "calibrate", "verify", "evaluate", "quantize"]
    for words in steps:
        text = (
            " ".join(words).replace(" --data data", "").replace(" --download", "").replace("cifar10-cct", "digits-cct")
        )
        assert main(text.split()) == 0, capsys.readouterr().err
    manifest, variant = (open_bundle(folder).manifest for folder in find_bundles(tmp_path / "models"))
    assert variant.parent is not None
    assert variant.parent.id == manifest.id
    assert [figure.split for figure in manifest.card.evaluation] == ["scikit-learn digits, test"]
    assert manifest.parity is not None


def test_the_figures_of_the_readme_come_from_the_cards() -> None:
    """The README's table has every shipped model, with the figures of its card."""
    table = {row[0].strip("`"): row for row in rows(ROOT / "README.md")}
    for folder in find_bundles(ROOT / "models"):
        manifest = open_bundle(folder).manifest
        (figure,) = [figure for figure in manifest.card.evaluation if figure.split.endswith("test")]
        row = table[manifest.name]
        card, (low, high) = manifest.card, figure.interval95
        assert card.macs is not None
        alone = next(cost for cost in card.cost if (cost.batch, cost.threads) == (1, 1))
        assert row[1] == card.summary
        assert row[2:] == [
            f"{card.parameters / 1e6:.2f} M, {card.macs / 1e9:.3f} G",
            f"{figure.top1:.2%} ({100 * low:.1f} to {100 * high:.1f})".replace("%", " %"),
            f"{figure.raw.ece:.3f} → {figure.served.ece:.3f}",
            f"{alone.milliseconds:.1f} ms",
        ]


def test_the_output_of_the_container_check_is_that_of_all_its_steps() -> None:
    """docs/container.md shows the check as it is now, every promise of it held."""
    shown = (ROOT / "docs/container.md").read_text(encoding="utf-8")
    held = re.findall(r"^ok   (.*) \[.*\]$", shown, flags=re.M)
    assert held == [promise(step) for step in (*STEPS, *GPU_STEPS)]
    assert f"\ncontainer: {len(STEPS)} of {len(STEPS)} passed\n" in shown


def test_the_shipped_models_are_small() -> None:
    """A clone stays small: models/ has at most 25 MB."""
    assert sum(path.stat().st_size for path in (ROOT / "models").rglob("*") if path.is_file()) <= 25_000_000

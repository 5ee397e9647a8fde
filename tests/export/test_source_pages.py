"""docs/from-transformers.md and docs/from-torch.md: their commands run in their order, as they are written."""

import runpy
import shlex
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from saccade.bundle import open_bundle
from saccade.cli import main
from tests.conftest import ROOT
from tests.export import families
from tests.export.pretrained.small_hub import COMMIT, SmallHub
from tests.test_docs import blocks, commands, rows


def run(page: str) -> None:
    """All `saccade` commands of a page, in the working directory."""
    lines = [shlex.split(line) for line in commands((ROOT / "docs" / page).read_text(encoding="utf-8"))]
    steps = [words[1:] for words in lines if words[0] == "saccade"]
    assert [words[0] for words in steps] == ["export", "verify"]
    for words in steps:
        assert main(words) == 0


def test_a_name_at_the_hub_becomes_a_verified_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small hub in the place of the real one, and a small model in the place of a ViT-B; its commit is noted."""
    name = "google/vit-base-patch16-224"
    checkpoint = families.save("ViT", tmp_path / "saved", families.model("ViT", num_hidden_layers=1))
    with SmallHub(name, {path.name: path.read_bytes() for path in checkpoint.iterdir()}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        run("from-transformers.md")
    origin = open_bundle(tmp_path / "models" / "vit-b16" / "1").manifest.provenance.origin
    assert origin is not None
    assert (origin.name, origin.revision) == (name, COMMIT)


def test_the_families_of_the_page_have_the_maps_that_it_says() -> None:
    """Against docs/families.md, which is measured."""
    measured = {row[0]: row[3] for row in rows(ROOT / "docs/families.md")}
    said = {row[0]: row[2] for row in rows(ROOT / "docs/from-transformers.md") if row[0].split(",")[0] in measured}
    del said["family"]  # the tables' heads
    assert {name.split(",")[0] for name in said} == {"ViT", "Swin", "Swin V2", "MobileViT", "ResNet", "ConvNeXt"}
    for cell, maps in said.items():
        assert measured[cell.split(",")[0]] == maps


def test_the_module_of_the_page_becomes_a_verified_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's own code, saved under the name that it gives itself; what it says of the result is so."""
    module, after, timm = blocks((ROOT / "docs/from-torch.md").read_text(encoding="utf-8"), "python")
    assert [block.splitlines()[0] for block in (module, after, timm)] == [
        "# my_net.py",
        "# after training",
        "# my_timm.py",
    ]
    (tmp_path / "my_net.py").write_text(module)
    (tmp_path / "after.py").write_text(after)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_net", raising=False)
    runpy.run_path("after.py")
    run("from-torch.md")
    manifest = open_bundle(tmp_path / "models" / "my-net" / "1").manifest
    assert [layer.grid for layer in manifest.attention] == [(4, 6), (4, 6)]
    assert manifest.maps.available == ("rollout", "class", "relevance", "grad_attention", "legrad")
    assert "blocks.0" in capsys.readouterr().out

"""`saccade classify` on many pictures, as a process: lines in order, errors as lines, and nothing lost by a crash."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.api import Answer
from saccade.bulk import overlay_path
from saccade.bundle import RELEVANCE, update_bundle
from saccade.client import Client
from tests.conftest import NETS, ROOT, Server
from tests.saccade.stub import CLOSE, HANG, Stub, good, refusal, response
from tests.service.reference import copy_bundle

COMMAND = [sys.executable, "-m", "saccade.cli", "classify"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 24 pictures, two of which are none."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    levels = np.random.default_rng(4).integers(0, 256, (24, 12, 10, 3), np.uint8)
    for number, one in enumerate(levels):
        Image.fromarray(one).save(folder / ("below" if number % 3 == 0 else ".") / f"{number:02}.png")
    (folder / "05.png").write_bytes(b"no picture")
    (folder / "13.png").write_bytes((folder / "14.png").read_bytes()[:60])
    return folder


def classify(*arguments: object, code: int = 0, stdin: bytes | None = None, **environment: str) -> str:
    """Runs the command to its end, which must be `code`; what it said on stderr."""
    command = [*COMMAND, *map(str, arguments)]
    ran = subprocess.run(
        command, cwd=ROOT, input=stdin, capture_output=True, check=False, env={**os.environ, **environment}
    )
    assert ran.returncode == code, ran.stderr.decode()
    assert b"Traceback" not in ran.stderr
    return ran.stderr.decode()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_folder_becomes_a_line_each_in_order(server: Server, pictures: Path, tmp_path: Path) -> None:
    """Answers as the service gives them, errors in their place with code and sentence, exit code 1 for the errors."""
    out = tmp_path / "results.jsonl"
    said = classify(pictures, "--url", server.url, "--out", out, "--top-k", 3, "--maps", "rollout", code=1)
    written = lines(out)
    assert [one["path"] for one in written] == sorted(map(str, pictures.rglob("*.png")))
    failed = {Path(one["path"]).name: one["code"] for one in written if "error" in one}
    assert failed == {"05.png": "invalid_image", "13.png": "invalid_image"}
    assert "24 of 24 pictures" in said
    assert "2 errors" in said
    with Client(server.url) as client:
        for one in written:
            if "answer" in one:
                answer = Answer.model_validate(one["answer"])
                expected = client.classify(one["path"], top_k=3, maps="rollout")
                assert (answer.model, answer.geometry) == (expected.model, expected.geometry)
                assert [label.label for label in answer.labels] == [label.label for label in expected.labels]
                np.testing.assert_allclose(answer.maps[0].values, expected.maps[0].values, atol=2e-6)


def test_without_errors_the_exit_code_is_0(server: Server, pictures: Path) -> None:
    assert classify(pictures / "below", "--url", server.url) == ""


def test_a_list_on_stdin_keeps_its_order(server: Server, pictures: Path, tmp_path: Path) -> None:
    """`find -print0 | saccade classify -0 -`, and one that cannot be read is an error as well."""
    out = tmp_path / "results.jsonl"
    paths = [str(pictures / name) for name in ("07.png", "below/00.png", "absent.png", "01.png", "07.png")]
    classify("-0", "-", "--url", server.url, "--out", out, stdin="\0".join(paths).encode(), code=1)
    assert [one["path"] for one in lines(out)] == paths
    assert [one.get("code") for one in lines(out)] == [None, None, "data", None, None]


def test_without_a_service_the_answers_are_the_same(
    server: Server, models: Path, pictures: Path, tmp_path: Path
) -> None:
    """`--local` runs the service's own pipeline in the process."""
    asked = ("--model", "tiny-vit", "--attention", "last", "--heads", "all", "--decimals", 9)
    classify(pictures, "--url", server.url, "--out", tmp_path / "there", *asked, code=1)
    classify(pictures, "--local", "--models", models, "--out", tmp_path / "here", *asked, code=1)
    for ours, theirs in zip(lines(tmp_path / "here"), lines(tmp_path / "there"), strict=True):
        assert (ours["path"], ours.get("error")) == (theirs["path"], theirs.get("error"))
        if "answer" in ours:
            here, there = (Answer.model_validate(one["answer"]) for one in (ours, theirs))
            np.testing.assert_allclose(
                [label.score for label in here.labels], [label.score for label in there.labels], atol=1e-5
            )
            assert here.attention is not None
            assert there.attention is not None
            np.testing.assert_allclose(here.attention[0].weights, there.attention[0].weights, atol=1e-5)


def test_a_local_run_needs_a_model_where_there_are_several(models: Path, pictures: Path) -> None:
    said = classify(pictures, "--local", "--models", models, code=2)
    assert f"give --model, one of {', '.join(sorted(NETS))}" in said


def test_overlays_lie_below_their_folder_as_the_pictures_do(server: Server, pictures: Path, tmp_path: Path) -> None:
    """Each the picture with its map, of the picture's size; none for what is no picture."""
    out, drawn = tmp_path / "results.jsonl", tmp_path / "drawn"
    classify(pictures, "--url", server.url, "--out", out, "--overlay", drawn, code=1)
    good_ones = {one["path"] for one in lines(out) if "answer" in one}
    assert {path for path in drawn.rglob("*") if path.is_file()} == {overlay_path(path, drawn) for path in good_ones}
    for path in good_ones:
        with Image.open(overlay_path(path, drawn)) as shown, Image.open(path) as picture:
            assert (shown.format, shown.size) == ("JPEG", picture.size)


def test_an_overlay_is_what_the_answer_draws(server: Server, tmp_path: Path) -> None:
    """But for what JPEG does to it."""
    out, cat = tmp_path / "results.jsonl", ROOT / "examples/chelsea.jpg"
    classify(cat, "--url", server.url, "--out", out, "--overlay", tmp_path, "--model", "tiny-vit")
    expected = Answer.model_validate(lines(out)[0]["answer"]).overlay(picture=cat)
    with Image.open(overlay_path(str(cat), tmp_path)) as shown:
        assert np.abs(np.asarray(shown, np.float32) - np.asarray(expected, np.float32)).mean() < 3


@pytest.mark.parametrize("where", ["service", "local"])
def test_why_a_class_is_a_line_and_a_picture_like_any_other(
    server: Server, models: Path, tmp_path: Path, where: str
) -> None:
    """With and without a service."""
    cat, out = ROOT / "examples/chelsea.jpg", tmp_path / "results.jsonl"
    place = ["--url", server.url] if where == "service" else ["--local", "--models", models]
    asked = ["--model", "tiny-cct", "--maps", "relevance", "--classes", "7,2", "--decimals", "9"]
    classify(cat, *place, *asked, "--out", out, "--overlay", tmp_path)
    (line,) = lines(out)
    answer = Answer.model_validate(line["answer"])
    assert [(one.name, one.class_index) for one in answer.maps] == [("relevance", 7), ("relevance", 2)]
    with Client(server.url) as client:
        expected = client.classify(cat, model="tiny-cct", maps="relevance", classes=("7", "2"), decimals=9)
    for one, other in zip(answer.maps, expected.maps, strict=True):
        np.testing.assert_allclose(one.values, other.values, atol=1e-4 * np.abs(other.values).max())
    assert overlay_path(str(cat), tmp_path).is_file()


@pytest.mark.parametrize("where", ["service", "local"])
def test_a_relevance_that_cannot_be_opened_stops_it_and_not_the_pictures(
    models: Path, pictures: Path, tmp_path: Path, where: str
) -> None:
    """It is no picture's fault: the lines until then stay, no picture gets one for it, and --resume has the rest. The
    reason is where it can be read: in the service's log, and without a service in the sentence itself.
    """
    bundle, out = copy_bundle(models, "tiny-cct", tmp_path / "models"), tmp_path / "results.jsonl"
    update_bundle(bundle, {}, {RELEVANCE: b"this is no graph"})
    first, second = pictures / "01.png", pictures / "02.png"
    with ExitStack() as stack:
        place = ["--local", "--models", tmp_path / "models"]
        if where == "service":
            server = stack.enter_context(Server(models=tmp_path / "models", port=0, drain_grace_s=0))
            place = ["--url", server.url]
        classify(first, *place, "--out", out)
        for _ in range(2):
            said = classify(first, second, *place, "--maps", "relevance", "--out", out, "--resume", code=2)
            if where == "service":
                assert "relevance.onnx of tiny-cct@1 could not be opened: the service's log says why\n" in said
            else:
                assert re.fullmatch(r"saccade: .*ONNX Runtime does not load .*relevance\.onnx: .*\n", said)
            assert [(one["path"], "answer" in one) for one in lines(out)] == [(str(first), True)]
        classify(first, second, *place, "--out", out, "--resume")
        assert [(one["path"], "answer" in one) for one in lines(out)] == [(str(first), True), (str(second), True)]


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("a.png", "d/a.png.jpg"),
        ("./a.png", "d/a.png.jpg"),
        ("/x/a", "d/__root/x/a.jpg"),
        ("../a.jpg", "d/__up/a.jpg.jpg"),
        ("./b/../a", "d/b/__up/a.jpg"),
        ("__up/__a", "d/____up/____a.jpg"),
    ],
)
def test_no_overlay_leaves_its_folder(path: str, place: str) -> None:
    """Whatever the path: `..` leads nowhere."""
    assert overlay_path(path, Path("d")) == Path(place)


# --- going on


@pytest.mark.parametrize("seed", range(2))
def test_a_command_that_is_killed_at_any_moment_goes_on_where_it_was(
    server: Server, pictures: Path, tmp_path: Path, seed: int
) -> None:
    """Killed again and again, some of the times within a line's writing: in the end each picture has its one line."""
    out = tmp_path / "results.jsonl"
    paths = [str(path) for _ in range(100) for path in sorted(pictures.rglob("*.png"))]
    (tmp_path / "list").write_text("\n".join(paths))
    chance = random.Random(seed)
    kills, within = 0, 0
    while True:
        with (tmp_path / "list").open("rb") as stdin:
            arguments = ["-", "--url", server.url, "--out", str(out), "--resume", "--top-k", "1", "--maps", "none"]
            running = subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, stdin=stdin, stderr=subprocess.PIPE)
        target = size(out) + (0 if kills == 0 else chance.randrange(1, 120_000))
        while running.poll() is None and size(out) < target:
            pass
        if kills == 7 or running.poll() is not None:
            running.communicate()
            break
        running.send_signal(signal.SIGKILL)
        running.communicate()
        kills += 1
        within += 0 < size(out) < WHOLE
        if out.exists() and chance.random() < 0.5:  # what a power cut leaves
            os.truncate(out, max(0, size(out) - chance.randrange(3_000)))
    assert running.returncode == 1
    assert within >= 2
    assert [one["path"] for one in lines(out)] == paths
    assert sum("error" in one for one in lines(out)) == 200


WHOLE = 2400 * 150
"""Bytes, fewer than all of its lines have."""


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_a_finished_file_stays_as_it_is(server: Server, pictures: Path, tmp_path: Path) -> None:
    """Resuming it asks nothing and its exit code still tells of the errors; without --resume it is refused."""
    out = tmp_path / "results.jsonl"
    classify(pictures, "--url", server.url, "--out", out, code=1)
    before = out.read_bytes()
    said = classify(pictures, "--url", "http://127.0.0.1:9", "--out", out, "--resume", code=1)
    assert "24 of 24 pictures, 0/s, 2 errors" in said
    assert "--resume goes on with it" in classify(pictures, "--url", server.url, "--out", out, code=2)
    assert "needs --out" in classify(pictures, "--url", server.url, "--resume", code=2)
    assert out.read_bytes() == before


def test_a_service_that_goes_away_stops_the_command_and_not_the_pictures(pictures: Path, tmp_path: Path) -> None:
    """No line says that a picture failed since nobody was there: --resume has the rest."""
    out = tmp_path / "results.jsonl"
    below = sorted(map(str, (pictures / "below").glob("*.png")))
    with Stub(good(), good(), refusal(503, "not_ready", "retry-after: 3600")) as stub:
        said = classify(*below, "--url", stub.url, "--out", out, "--concurrency", 1, code=2)
    assert "this is not_ready" in said
    assert [one["path"] for one in lines(out)] == below[:2]
    with Stub(good()) as stub:
        classify(*below, "--url", stub.url, "--out", out, "--resume")
        assert len(stub.requests) == len(below) - 2
    assert [one["path"] for one in lines(out)] == below


def test_a_busy_service_is_waited_for(pictures: Path, tmp_path: Path) -> None:
    """429 and a broken connection in the middle leave no trace in the results."""
    out = tmp_path / "results.jsonl"
    with Stub(good(), refusal(429, "overloaded", "retry-after: 0"), CLOSE, good()) as stub:
        # one after the other: what is never reached is not asked again, so the first answer must be there by then
        classify(pictures / "below", "--url", stub.url, "--out", out, "--concurrency", "1")
    assert all("answer" in one for one in lines(out))
    assert len(lines(out)) == 8


def test_interrupted_it_says_so_and_goes_on_later(server: Server, pictures: Path, tmp_path: Path) -> None:
    """Ctrl-C while it waits for the next picture: at once, exit code 130, whole lines."""
    out = tmp_path / "results.jsonl"
    command = [*COMMAND, "-", "--url", server.url, "--out", str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdin is not None
        running.stdin.write(f"{pictures / '01.png'}\n".encode())
        running.stdin.flush()
        while not size(out):
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        assert running.wait() == 130
    assert [one["path"] for one in lines(out)] == [str(pictures / "01.png")]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_before_the_first_answer_it_leaves_no_file(pictures: Path, tmp_path: Path, how: signal.Signals) -> None:
    """Whatever stops it; and one that it was to go on with stays as it was."""
    below, out, half = pictures / "below", tmp_path / "results.jsonl", tmp_path / "half.jsonl"
    half.write_bytes(b'{"path": "%b", "answer": {}}\n' % os.fsencode(below / "00.png"))
    before = half.read_bytes()
    for arguments in (["--out", out], ["--out", out, "--resume"], ["--out", half, "--resume"]):
        with Stub(HANG) as stub:
            command = [*COMMAND, below, "--url", stub.url, *arguments]
            with subprocess.Popen([*map(str, command)], cwd=ROOT, stderr=subprocess.PIPE) as running:
                assert stub.hanging.wait(60)
                running.send_signal(how)
                assert running.wait() == (130 if how == signal.SIGINT else -how)
    assert not out.exists()
    assert half.read_bytes() == before


@pytest.mark.parametrize(
    "body", [b"<html>", b"", b"[1]", b"{", b'{"a":\n1}', b'{"request_id": 1', b'{"request_id":\n}']
)
def test_an_answer_that_is_no_line_of_json_stops_it(pictures: Path, tmp_path: Path, body: bytes) -> None:
    """Nothing goes into the file that could not be read again."""
    out = tmp_path / "results.jsonl"
    with Stub(response(200, body)) as stub:
        assert "is it a Saccade?" in classify(pictures, "--url", stub.url, "--out", out, code=2)
    assert not out.exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("--maps", "relevance", "--classes", "zebra"), "has no label 'zebra'"),
        (("--maps", "relevance", "--model", "tiny-resnet"), "tiny-resnet@1 has no map 'relevance'"),
        (("--url", "http://127.0.0.1:9", "--resume"), "does not answer"),
        (("absent/*.png", "--resume"), "nothing matches absent/*.png"),
    ],
)
def test_a_command_that_is_refused_leaves_no_file(
    server: Server, pictures: Path, tmp_path: Path, asked: tuple[str, ...], words: str
) -> None:
    """A class or a map that the model does not have, a service that is not there, pictures that are not there."""
    out = tmp_path / "results.jsonl"
    found = [] if asked[0].startswith("absent") else [pictures]
    assert words in classify(*found, "--url", server.url, *asked, "--out", out, code=2)
    assert not out.exists()


def test_wrong_arguments_are_refused_before_anything_is_asked(pictures: Path, tmp_path: Path) -> None:
    for wrong in (("--concurrency", "0"), ("--timeout", "0"), ("--timeout", "x"), ("--top-k", "0")):
        said = classify(pictures, "--out", tmp_path / "results.jsonl", *wrong, code=2)
        assert said.count("\n") == 1, said
    assert not (tmp_path / "results.jsonl").exists()


def test_the_key_comes_from_the_environment(small: Path, pictures: Path, tmp_path: Path) -> None:
    """Not from the command line, which other users of the machine can read."""
    (tmp_path / "keys").write_text("open-sesame\n")
    with Server(models=small, port=0, drain_grace_s=0, api_keys_file=tmp_path / "keys") as server:
        assert "wants a key" in classify(pictures / "below", "--url", server.url, code=2, SACCADE_API_KEY="")
        classify(pictures / "below", "--url", server.url, SACCADE_API_KEY="open-sesame")
        assert server.stop() == 0


# --- what stands around it


def run_in_a_shell(line: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """The command, as `"$@"` in a line of the shell."""
    words = [*COMMAND, *map(str, arguments)]
    return subprocess.run(["sh", "-c", line, "sh", *words], cwd=ROOT, capture_output=True, check=False)


@pytest.mark.parametrize("how", ["closed", "full", "a pipe that nobody reads"])
def test_a_standard_error_that_is_gone_changes_nothing(
    server: Server, pictures: Path, tmp_path: Path, how: str
) -> None:
    """All lines, and the exit code that tells of the errors."""
    out = tmp_path / "results.jsonl"
    words = [*COMMAND, str(pictures), "--url", server.url, "--out", str(out)]
    if how == "closed":
        words = ["sh", "-c", '"$@" 2>&-', "sh", *words]
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") if how == "full" else open(writer, "wb", closefd=False) as stderr:
        assert subprocess.run(words, cwd=ROOT, check=False, stderr=stderr).returncode == 1
    os.close(writer)
    assert len(lines(out)) == 24


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('"$@" >/dev/full', "could not write to standard output: No space left"),
        ('"$@" >&-', "no standard output"),
        ('"$@" <&-', "no standard input"),
    ],
)
def test_a_stream_that_is_missing_is_said(server: Server, pictures: Path, line: str, words: str) -> None:
    ran = run_in_a_shell(line, pictures / "below", "-", "--url", server.url)
    assert ran.returncode == 2
    assert words in ran.stderr.decode()
    assert b"Traceback" not in ran.stderr


def test_who_has_seen_enough_may_stop_reading(server: Server, pictures: Path) -> None:
    """`| head`, as of any command."""
    ran = run_in_a_shell('"$@" | head -n 1', *[pictures] * 30, "--url", server.url)
    assert (ran.stderr, ran.stdout.count(b"\n")) == (b"", 1)


def test_a_machine_without_files_left_stops_it(server: Server, pictures: Path, tmp_path: Path) -> None:
    """Too many open files is not the fault of a picture: no line says so, those until then stand, --resume has it."""
    out, first = tmp_path / "results.jsonl", pictures / "01.png"
    classify(first, "--url", server.url, "--out", out)
    asked = [first, *[pictures] * 20, "--url", server.url, "--out", out, "--resume", "--concurrency", 64]
    ran = run_in_a_shell('ulimit -n 24; "$@"', *asked)
    assert ran.returncode == 2, ran.stderr
    assert b"Too many open files" in ran.stderr
    assert lines(out)[0]["path"] == str(first)
    assert not [one for one in lines(out) if one.get("code") == "data"]


def test_a_machine_that_answers_no_call_stops_it(full: str, pictures: Path, tmp_path: Path) -> None:
    """A network that is cut at night costs no picture its line."""
    out = tmp_path / "results.jsonl"
    assert "no connection in time" in classify(pictures, "--url", full, "--timeout", 0.5, "--out", out, code=2)
    assert not out.exists()


def test_links_that_lead_nowhere_are_lines(server: Server, pictures: Path, tmp_path: Path) -> None:
    (pictures / "below/nowhere.png").symlink_to("absent")
    (pictures / "below/circle.png").symlink_to("circle.png")
    out = tmp_path / "results.jsonl"
    classify(pictures / "below", "--url", server.url, "--out", out, code=1)
    assert [Path(one["path"]).name for one in lines(out) if "error" in one] == ["circle.png", "nowhere.png"]


def test_a_picture_that_is_there_many_times_is_drawn_many_times(server: Server, pictures: Path, tmp_path: Path) -> None:
    """Overlapping arguments: one overlay, whole, and a line for each time."""
    out, one = tmp_path / "results.jsonl", pictures / "01.png"
    classify(*[one] * 60, "--url", server.url, "--out", out, "--overlay", tmp_path / "maps")
    assert len(lines(out)) == 60
    (made,) = [path for path in (tmp_path / "maps").rglob("*") if path.is_file()]
    with Image.open(made) as drawn:
        drawn.load()


def test_overlays_below_the_pictures_are_no_pictures(server: Server, pictures: Path, tmp_path: Path) -> None:
    """`classify photos --overlay photos/maps`, again and again."""
    out = tmp_path / "results.jsonl"
    for _ in range(2):
        classify(pictures, "--url", server.url, "--out", out, "--overlay", pictures / "maps", "--resume", code=1)
    assert len(lines(out)) == 24


def test_a_long_name_has_an_overlay_too(server: Server, pictures: Path, tmp_path: Path) -> None:
    """As long as file systems take: shortened, and told apart."""
    names = ["語" * 83 + ".png", "語" * 82 + "文.png"]
    for name in names:
        (pictures / name).write_bytes((pictures / "01.png").read_bytes())
    classify(*[pictures / name for name in names], "--url", server.url, "--overlay", tmp_path / "maps")
    assert len(list((tmp_path / "maps").rglob("*.jpg"))) == 2


def test_a_local_run_waits_for_its_own_queue(models: Path, pictures: Path, tmp_path: Path) -> None:
    """There is nobody to be told to come again."""
    out = tmp_path / "results.jsonl"
    asked = ("--local", "--models", models, "--model", "tiny-cct", "--concurrency", 40)
    classify(*[pictures] * 5, *asked, "--out", out, code=1, SACCADE_QUEUE_IMAGES="3")
    assert len(lines(out)) == 120

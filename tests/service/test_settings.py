"""The table of settings, and who may listen where."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from saccade.errors import SettingsError
from service.app import create_app
from service.settings import Settings, load_settings


def test_settings_come_from_the_environment_with_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """One way to configure a container."""
    monkeypatch.setenv("SACCADE_PORT", "9001")
    monkeypatch.setenv("SACCADE_PROVIDERS", "CUDAExecutionProvider, CPUExecutionProvider")
    monkeypatch.setenv("SACCADE_DRAIN_GRACE_S", "0.5")
    monkeypatch.setenv("PORT", "1")
    settings = load_settings()
    assert settings.port == 9001
    assert settings.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert settings.drain_grace_s == 0.5


def test_settings_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was printed at the start holds until the end."""
    with pytest.raises(ValidationError):
        load_settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"), ("PORT", "-1"), ("PORT", "http"), ("INSTANCES", "-1"), ("INSTANCES", "65"),
        ("INTRA_OP_THREADS", "-1"), ("MAX_BATCH", "-1"), ("QUEUE_IMAGES", "0"), ("TIMEOUT_MS", "0"),
        ("DECODE_THREADS", "-1"), ("MAX_BODY_BYTES", "1023"), ("MAX_PIXELS", "0"), ("MAX_PIXELS", "178000001"),
        ("MAX_RESPONSE_BYTES", "1"), ("DRAIN_GRACE_S", "-1"), ("DRAIN_GRACE_S", "601"), ("DRAIN_GRACE_S", "nan"),
        ("LOG_LEVEL", "LOUD"), ("ALLOW_ANONYMOUS", "perhaps"),
    ],
)  # fmt: skip
def test_a_setting_out_of_bounds_is_named_with_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """The sentence is enough to mend the environment."""
    monkeypatch.setenv(f"SACCADE_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"SACCADE_{name}: ")
    assert repr(value) in str(caught.value)


def test_no_provider_at_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty list is a mistake, not a wish."""
    monkeypatch.setenv("SACCADE_PROVIDERS", " , ")
    with pytest.raises(SettingsError, match="SACCADE_PROVIDERS"):
        load_settings()


def test_each_setting_says_what_follows_from_it() -> None:
    """The table is its own documentation."""
    assert all(len(field.description or "") > 20 for field in Settings.model_fields.values())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_is_open(host: str) -> None:
    """Trying it at home needs no key."""
    create_app(Settings(host=host))


PUBLIC = ["0.0.0.0", "::", "192.0.2.7", "example.org", "localhost.example.org", ""]


@pytest.mark.parametrize("host", PUBLIC)
def test_listening_elsewhere_wants_keys_or_consent(host: str) -> None:
    """Nobody is served to the world by accident; the sentence names both ways out."""
    with pytest.raises(SettingsError) as caught:
        create_app(Settings(host=host))
    for word in ("SACCADE_HOST", "SACCADE_API_KEYS_FILE", "SACCADE_ALLOW_ANONYMOUS", host):
        assert word in str(caught.value)


@pytest.mark.parametrize("host", PUBLIC)
def test_listening_elsewhere_with_keys_or_consent_is_right(host: str, tmp_path: Path) -> None:
    """Either is enough."""
    (tmp_path / "keys").write_text("sesame\n")
    create_app(Settings(host=host, api_keys_file=tmp_path / "keys"))
    create_app(Settings(host=host, allow_anonymous=True))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "holds no key"),
        (b"\n# none\n  \n", "no key"),
        (b"\xff", "utf-8"),
        (b"  # a comment\n", "no key"),
        ("schlüssel".encode(), "not ASCII"),
    ],
)
def test_a_file_without_keys_stops_the_start(tmp_path: Path, content: bytes | None, words: str) -> None:
    """An empty file must not mean that everybody may come in."""
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=words) as caught:
        create_app(Settings(api_keys_file=path))
    assert "SACCADE_API_KEYS_FILE" in str(caught.value)
    assert str(path) in str(caught.value)

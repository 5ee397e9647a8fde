"""All settings, in one frozen table: name, type, bounds, default, and what follows from it.

Read from the environment with the prefix SACCADE_; docs/settings.md shows the same table and a test holds it there.
"""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from saccade.decode import MAX_PIXELS
from saccade.errors import SettingsError


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SACCADE_", env_ignore_empty=True, frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on; any but loopback wants keys or `allow_anonymous`")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one and prints it")
    models: Path = Field(Path("models"), description="Folder of bundles, `<name>/<version>/`; only read")
    default_model: str | None = Field(
        None, description="Model of requests that name none: `name` or `name@version`; absent, the only model there is"
    )
    providers: Annotated[tuple[str, ...], NoDecode] = Field(
        ("CPUExecutionProvider",),
        min_length=1,
        description="ONNX Runtime execution providers, the preferred first, with commas; a missing one stops the start",
    )
    instances: int = Field(
        0,
        ge=0,
        le=64,
        description="Sessions a model, each runs one batch at a time; 0 means one a CPU, or as many up to 4 as leave "
        "at most one CPU over when they share them",
    )
    intra_op_threads: int = Field(
        0, ge=0, le=1024, description="Threads of one session; 0 shares the CPUs of this process among the instances"
    )
    spinning: bool = Field(
        False, description="Threads of a session spin while they wait: for a machine on which nothing else runs"
    )
    max_batch: int = Field(
        0, ge=0, le=1024, description="Most images in one run; 0 means 4 on CPU, where more only needs memory, else 16"
    )
    max_wait_ms: float = Field(
        0.0,
        ge=0,
        le=10_000,
        description="Longest that a free session waits for company; 0 runs at once what came while the last batch ran",
    )
    queue_images: int = Field(
        256,
        ge=1,
        le=1_000_000,
        description="Most images accepted and not yet answered, a model; beyond it callers get 429",
    )
    timeout_ms: int = Field(
        10_000, ge=1, le=3_600_000, description="Deadline of a request that names none; past it, 504"
    )
    run_timeout_s: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="Longest that one run may take; then its callers get 500 and a new session takes over",
    )
    relevance: Literal["first-use", "start", "off"] = Field(
        "first-use",
        description="When relevance.onnx, which gives maps of the gradient, is opened: for the first who asks for one, "
        "at the start, or never",
    )
    max_classes: int = Field(
        10,
        ge=1,
        le=1000,
        description="Most classes of maps of the gradient in one request; beyond it 422. Each is a backward pass, and "
        "takes the memory of an image in a batch",
    )
    decode_threads: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="Threads that decode ahead of the sessions; 0: each session's own thread decodes; absent, 0 where "
        "each CPU but one at most has a session of one thread, else one a CPU",
    )
    max_body_bytes: int = Field(
        20 * 2**20, ge=1024, le=2**31, description="Largest request body; refused with 413 while it arrives"
    )
    max_head_bytes: int = Field(
        2**15,
        ge=8192,
        le=2**20,
        description="Largest request line with its headers, each counted as 32 bytes more; refused with 431 while it "
        "arrives",
    )
    head_timeout_s: float = Field(
        10.0, ge=0.1, le=3600, description="Longest that they may take to arrive; past it, 408"
    )
    transfer_timeout_s: float = Field(
        30.0,
        ge=0.1,
        le=3600,
        description="Longest that a body may take to arrive, past it 408; and that an answer may wait for its caller "
        "to read, past it the connection is cut",
    )
    max_connections: int = Field(
        4096,
        ge=1,
        le=1_000_000,
        description="Most connections at once, fewer where the system gives the process fewer files; the next is "
        "closed at once",
    )
    max_pixels: int = Field(
        MAX_PIXELS,
        ge=1,
        le=178_000_000,
        description="Largest picture, width times height; refused with 413 before decoding",
    )
    max_response_bytes: int = Field(
        32 * 2**20, ge=4096, le=2**31, description="Largest answer; beyond it 413 names a smaller request"
    )
    drain_grace_s: float = Field(
        2.0, ge=0, le=600, description="Seconds after SIGTERM in which readiness says 503 but new work is still taken"
    )
    drain_timeout_s: float = Field(
        60.0, ge=0, le=3600, description="Most seconds to wait, after the grace, for accepted requests to be answered"
    )
    api_keys_file: Path | None = Field(
        None,
        description="File with one key a line; callers send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
    )
    allow_anonymous: bool = Field(
        False, description="Listen on other addresses than loopback without keys; say so visibly"
    )
    log_level: str = Field(
        "INFO",
        pattern="^(DEBUG|INFO|WARNING|ERROR)$",
        description="Least severity of log lines, which are JSON on stderr",
    )

    @field_validator("providers", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @property
    def loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def load_settings(**overrides: object) -> Settings:
    """From the environment and `overrides`. Raises SettingsError naming the variable, the bound and the value."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = "SACCADE_" + str(first["loc"][0]).upper()
        raise SettingsError(f"{name}: {first['msg']}, not {first['input']!r}") from error

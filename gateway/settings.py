"""Every setting of the gateway: flags over `CELLBLOCK_*` variables over a TOML file over defaults."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from gateway.errors import ConfigurationError


class Group(BaseModel):
    """A group of settings; an unknown name in it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(Group):
    """How the gateway listens."""

    host: str = Field("127.0.0.1", description="Address to bind; loopback unless told otherwise.")
    port: int = Field(8888, ge=0, le=65_535, description="Port to bind; 0 takes a free one.")
    max_body_bytes: int = Field(16 << 20, ge=1024, description="Largest request body; more is 413.")
    max_frame_bytes: int = Field(32 << 20, ge=1024, description="Largest WebSocket frame; more closes 1009.")
    ping_interval_s: float = Field(30.0, gt=0, description="Seconds between WebSocket pings.")
    drain_s: float = Field(5.0, ge=0, description="Seconds that a SIGTERM waits for running requests.")
    queue_bytes: int = Field(
        64 << 20, ge=1 << 20, description="Bytes queued for one slow client before output is cut with a mark."
    )
    queue_messages: int = Field(20_000, ge=100, description="Messages queued for one slow client, likewise.")
    allow_origins: tuple[str, ...] = Field(
        (), description="Browser origins, beside the gateway's own, that may call the API."
    )


class SandboxSettings(Group):
    """How cells are made."""

    firejail: Path = Field(Path("/usr/bin/firejail"), description="The firejail program.")
    run_dir: Path | None = Field(
        None, description="Short directory for the cells' sockets; chosen per state directory when unset."
    )
    profile_dirs: tuple[Path, ...] = Field(
        (), description="Directories searched before the shipped profiles."
    )
    environment_roots: tuple[Path, ...] = Field(
        (Path("/srv"), Path("/opt"), Path("/usr")),
        description="Kernel environments must lie below one of these.",
    )
    service_user: str = Field(
        "cellblock", description="The user that the gateway becomes when started as root."
    )
    pool_prefix: str = Field("cell", pattern=r"^[a-z]{2,12}$", description="Name prefix of the pool users.")
    pool_first_uid: int = Field(23_001, ge=1000, description="First uid of the pool.")
    pool_size: int = Field(256, ge=1, le=10_000, description="Pool users: the most cells on this machine.")
    start_timeout_s: float = Field(20.0, gt=0, description="Seconds for a cell to come up and be proved.")
    keep_s: float = Field(
        60.0, ge=0, description="Seconds that cells outlive their gateway; 0 ends them at once."
    )


class KernelsSettings(Group):
    """Which kernels, how many, and for how long."""

    spec_dirs: tuple[Path, ...] = Field(
        (), description="Directories searched before the shipped kernelspecs."
    )
    jupyter_path: bool = Field(False, description="Also offer the kernelspecs on Jupyter's own data path.")
    allowed: tuple[str, ...] = Field(
        (), description="Names that may be started; empty allows every one found."
    )
    default: str = Field("python3", description="Kernelspec used when a request names none.")
    max_kernels: int = Field(100, ge=1, description="Kernels of this gateway.")
    max_kernels_per_owner: int = Field(20, ge=1, description="Kernels of one principal.")
    ready_timeout_s: float = Field(
        40.0, gt=0, description="Seconds for a kernel to answer after its cell is up."
    )
    max_pending: int = Field(1000, ge=1, description="Requests waiting for one kernel; more are refused.")
    max_message_bytes: int = Field(32 << 20, ge=1 << 20, description="Largest message taken from a kernel.")
    cull_interval_s: float = Field(5.0, gt=0, description="Seconds between looks at idle and old kernels.")
    cull_connected: bool = Field(False, description="Cull idle kernels that still have a socket attached.")
    env_allowed: tuple[str, ...] = Field(
        (), description="Names beside KERNEL_* that a request may set in a kernel's environment."
    )


class ExecutionsSettings(Group):
    """Bounds on executions, whatever a profile or request says."""

    max_timeout_s: float = Field(3600.0, gt=0, description="Longest execution that anyone may ask for.")
    max_output_bytes: int = Field(50 << 20, ge=1024, description="Most output kept for one REST execution.")


class LogSettings(Group):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )
    format: Literal["auto", "json", "console"] = Field(
        "auto", description="JSON lines, or coloured text; auto is text on a terminal."
    )


def default_state_dir() -> Path:
    """Return where a gateway keeps everything unless told otherwise: root's, or the user's own."""
    return Path("/var/lib/cellblock") if os.geteuid() == 0 else Path.home() / ".local" / "share" / "cellblock"


class Settings(BaseSettings):
    """All settings. Nested names join with two underscores in the environment: CELLBLOCK_SERVER__PORT."""

    model_config = SettingsConfigDict(
        env_prefix="CELLBLOCK_", env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    state_dir: Path = Field(
        default_factory=default_state_dir,
        description="Everything that a gateway keeps: store, secrets, runtime facts.",
    )
    server: ServerSettings = Field(default_factory=ServerSettings, description="How the gateway listens.")
    sandbox: SandboxSettings = Field(default_factory=SandboxSettings, description="How cells are made.")
    kernels: KernelsSettings = Field(
        default_factory=KernelsSettings, description="Which kernels, and how many."
    )
    executions: ExecutionsSettings = Field(
        default_factory=ExecutionsSettings, description="Bounds on executions."
    )
    log: LogSettings = Field(default_factory=LogSettings, description="What is logged.")

    @property
    def store_path(self) -> Path:
        """Where the SQLite store lies."""
        return self.state_dir / "gateway" / "cellblock.db"

    @property
    def pepper_path(self) -> Path:
        """Where the key of the API keys' hashes lies."""
        return self.state_dir / "gateway" / "pepper"

    @property
    def warden_socket(self) -> Path:
        """Where the warden listens."""
        return self.state_dir / "warden" / "warden.sock"


def load(config: Path | None = None, **overrides: Any) -> Settings:
    """Return the settings; `overrides` (nested dicts) win over the environment, which wins over the file.

    Raises:
        ConfigurationError: a value is wrong or unknown, or the file cannot be read; the message names it.
    """
    if config is not None and not config.is_file():
        raise ConfigurationError(f"The settings file {config} does not exist or is not a file.")

    class Sourced(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=config))

    try:
        return Sourced(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"The setting {place} is wrong: {first['msg']}.") from error
    except ValueError as error:
        raise ConfigurationError(f"The settings file {config} is not valid TOML: {error}.") from error


def as_toml(settings: Settings) -> str:
    """Write settings as the TOML file that would give them; what is unset stays out."""
    tables: list[str] = []
    top: list[str] = []
    for name, value in settings.model_dump(mode="json").items():
        if isinstance(value, dict):
            lines = [f"{key} = {_toml(item)}" for key, item in value.items() if item is not None]
            tables.append("\n".join([f"[{name}]", *lines]))
        else:
            top.append(f"{name} = {_toml(value)}")
    return "\n\n".join(["\n".join(top), *tables]) + "\n"


def _toml(value: Any) -> str:
    # strings, numbers, booleans and arrays of strings are written alike in JSON and TOML
    return json.dumps(value, ensure_ascii=False)

"""Every setting of the gateway: flags over `CELLBLOCK_*` variables over a TOML file over defaults."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from gateway.errors import ConfigurationError
from gateway.models import ModuleName, PrincipalName, Scope
from gateway.models.notices import NoticeKind

Bound = Annotated[int, Field(ge=1)] | Literal["unlimited"]


class Group(BaseModel):
    """A group of settings; an unknown name in it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TlsSettings(Group):
    """The gateway's own TLS; without a certificate it speaks plain HTTP."""

    cert: Path | None = Field(None, description="Certificate chain (PEM); turns TLS on, together with `key`.")
    key: Path | None = Field(
        None, description="Its private key (PEM), which other users must not be able to read."
    )
    client_ca: Path | None = Field(
        None, description="CA certificates (PEM): clients must show a certificate of theirs."
    )
    min_version: Literal["1.2", "1.3"] = Field("1.2", description="Oldest TLS that is spoken.")
    check_interval_s: float = Field(5.0, gt=0, description="Seconds between looks for new files.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.cert is None) != (self.key is None) or (self.client_ca and self.cert is None):
            raise ValueError("cert and key belong together, and client_ca needs them")
        return self


class ServerSettings(Group):
    """How the gateway listens."""

    host: str = Field("127.0.0.1", description="Address to bind; loopback unless told otherwise.")
    port: int = Field(8888, ge=0, le=65_535, description="Port to bind; 0 takes a free one.")
    max_body_bytes: int = Field(16 << 20, ge=1024, description="Largest request body; more is 413.")
    max_frame_bytes: int = Field(32 << 20, ge=1024, description="Largest WebSocket frame; more closes 1009.")
    ping_interval_s: float = Field(30.0, gt=0, description="Seconds between WebSocket pings.")
    drain_s: float = Field(5.0, ge=0, description="Seconds that a SIGTERM waits for running requests.")
    queue_bytes: int = Field(
        16 << 20, ge=1 << 20, description="Bytes queued for one slow client before output is cut with a mark."
    )
    queue_messages: int = Field(20_000, ge=100, description="Messages queued for one slow client, likewise.")
    allow_origins: tuple[str, ...] = Field(
        (), description="Browser origins, beside the gateway's own, that may call the API."
    )
    hosts: tuple[str, ...] = Field(
        (),
        description="Host names it answers for; empty means any, and on loopback the loopback names.",
    )
    behind_proxy: bool = Field(
        False,
        description="A proxy in front ends TLS: bind any address, count no connections per address.",
    )
    max_connections: int = Field(1000, ge=1, description="Open connections; more are closed at once.")
    max_connections_per_address: int = Field(
        250, ge=1, description="Open connections of one client address, likewise."
    )
    max_header_bytes: int = Field(
        32 << 10, ge=1024, description="Largest head of a request: its line and headers together."
    )
    header_timeout_s: float = Field(
        10.0, gt=0, description="Seconds for a TLS handshake, and for a whole head."
    )
    body_timeout_s: float = Field(
        60.0, gt=0, description="Seconds for a request body; uploads: one more per 64 KiB."
    )
    keepalive_s: float = Field(75.0, gt=0, description="Seconds that an idle connection stays open.")
    ready_cache_s: float = Field(
        60.0, ge=1, description="Seconds for which a cell that came up answers `/readyz`."
    )
    tls: TlsSettings = Field(default_factory=TlsSettings, description="The gateway's own TLS.")


class SandboxSettings(Group):
    """How cells are made."""

    firejail: Path = Field(Path("/usr/bin/firejail"), description="The firejail program.")
    bubblewrap: Path = Field(
        Path("/usr/bin/bwrap"), description="The bubblewrap program, for profiles that name it as backend."
    )
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
    require_cgroups: bool = Field(
        False, description="Refuse to start where cells cannot have control groups of their own."
    )
    start_timeout_s: float = Field(20.0, gt=0, description="Seconds for a cell to come up and be proved.")
    answer_timeout_s: float = Field(
        10.0, gt=0, description="Seconds for the warden to answer; a start has `start_timeout_s` besides."
    )
    keep_s: float = Field(
        60.0, ge=0, description="Seconds that cells outlive their gateway; 0 ends them at once."
    )


class PoolSettings(Group):
    """How many kernels of one kernelspec are ready before anybody asks for one."""

    size: int = Field(1, ge=0, le=1000, description="Kernels that are always ready.")
    max_size: int = Field(
        4, ge=1, le=1000, description="At most so many, while that many were asked for in `demand_s`."
    )
    demand_s: float = Field(60.0, gt=0, description="Seconds for which a request counts as demand.")
    preload: tuple[ModuleName, ...] = Field(
        (), max_length=64, description="Python modules that they have loaded."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.size > self.max_size:
            raise ValueError("size exceeds max_size")
        return self


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
    max_starting: int = Field(
        8, ge=1, description="Kernels that start at the same time; more wait their turn."
    )
    start_queue_s: float = Field(30.0, ge=0, description="Longest wait for that turn; then 429.")
    max_pending: int = Field(1000, ge=1, description="Requests waiting for one kernel; more are refused.")
    max_message_bytes: int = Field(8 << 20, ge=1 << 20, description="Largest message taken from a kernel.")
    replay_bytes: int = Field(
        8 << 20,
        ge=64 << 10,
        description="Kept of what one kernel says, for clients that come back or come late.",
    )
    cull_interval_s: float = Field(5.0, gt=0, description="Seconds between looks at idle and old kernels.")
    cull_connected: bool = Field(False, description="Cull idle kernels that still have a socket attached.")
    env_allowed: tuple[str, ...] = Field(
        (), description="Names beside KERNEL_* that a request may set in a kernel's environment."
    )
    secrets_allowed: tuple[str, ...] = Field(
        (), description="Names beside KERNEL_* that a request may give a kernel as secrets."
    )
    pools: dict[str, PoolSettings] = Field(
        {}, description="Kernels that are started before anybody asks for them, by kernelspec."
    )


class ExecutionsSettings(Group):
    """Bounds on executions, whatever a profile or request says."""

    max_timeout_s: float = Field(3600.0, gt=0, description="Longest execution that anyone may ask for.")
    max_output_bytes: int = Field(50 << 20, ge=1024, description="Most output kept for one REST execution.")
    journal_bytes: int = Field(
        4 << 20, ge=64 << 10, description="Events kept of one job; then the oldest are let go of."
    )
    max_jobs: int = Field(100, ge=1, description="Jobs of one principal that run or wait; more are 429.")
    kept_jobs: int = Field(
        1000, ge=1, description="Ended jobs kept of one principal; then the oldest are let go of."
    )
    kept_bytes: int = Field(256 << 20, ge=1 << 20, description="Bytes of them, compressed, likewise.")
    kept_s: float = Field(3600.0, gt=0, description="Seconds that an ended job is kept.")
    keepalive_s: float = Field(5.0, gt=0, description="Seconds of silence before a stream says so.")


class ToolsSettings(Group):
    """Bounds on calls of code in a cell to tools of the client's."""

    max_calls: int = Field(1000, ge=1, description="Calls of one job.")
    max_calls_per_minute: int = Field(300, ge=1, description="Calls of one job in any 60 seconds.")
    max_waiting: int = Field(32, ge=1, description="Calls of one job that wait for an answer.")
    argument_bytes: int = Field(256 << 10, ge=1024, description="Arguments of one call, as JSON.")
    result_bytes: int = Field(1 << 20, ge=1024, description="Result of one call, as JSON.")
    timeout_s: float = Field(300.0, gt=0, description="Seconds for an answer; then the code gets an error.")
    max_depth: int = Field(
        3, ge=1, description="Jobs that help to answer calls of jobs, one inside the other (`parent_call`)."
    )


class McpSettings(Group):
    """What agents are offered as tools, over MCP and at /api/tools."""

    extended: bool = Field(False, description="Offer the extended tools over MCP too.")
    session_ttl_s: float = Field(
        1800.0, gt=0, description="Idle seconds after which a session ends, when its maker names none."
    )
    text_chars: int = Field(
        20_000, ge=1000, le=1 << 20, description="Each text of a result is cut to so many characters."
    )
    image_bytes: int = Field(
        512 << 10, ge=1024, description="Images of one result, as base64; those past it are left out."
    )
    file_bytes: int = Field(
        1 << 20, ge=1024, le=64 << 20, description="Largest file that a call writes, or reads as a resource."
    )
    read_bytes: int = Field(
        128 << 10, ge=1024, le=64 << 20, description="What one call of read_file reads; the rest by more."
    )
    progress_s: float = Field(
        3.0, ge=0.1, le=5.0, description="Seconds between reports of progress, to clients that ask for them."
    )


class ProcessesSettings(Group):
    """Bounds on commands and processes beside a kernel."""

    output_bytes: int = Field(
        1 << 20, ge=64 << 10, description="Kept of one process's output; what is older is let go of."
    )
    kept: int = Field(32, ge=1, le=64, description="Ended processes of one kernel that are remembered.")
    max_running: int = Field(
        16, ge=1, le=64, description="Processes that run beside one kernel at a time; more is 429."
    )


class FilesSettings(Group):
    """Bounds on what travels to and from the homes of cells."""

    max_upload_bytes: int = Field(
        256 << 20, ge=1024, description="Largest file or archive that is taken; a home may take less."
    )
    max_edit_bytes: int = Field(8 << 20, ge=1024, description="Largest file that is edited in place.")
    max_entries: int = Field(10_000, ge=1, le=20_000, description="Entries of one listing or archive.")
    max_archive_bytes: int = Field(1 << 30, ge=1024, description="What one archive may hold, unpacked.")
    workspace_bytes: int = Field(
        256 << 20, ge=16 << 20, description="What a workspace may hold; given when it is made."
    )
    workspace_inodes: int = Field(20_000, ge=64, description="Files and directories in it, likewise.")
    max_transfers: int = Field(
        8, ge=1, description="Uploads and downloads of one principal at the same time; more is 429."
    )


class OidcSettings(Group):
    """JWTs of an OpenID Connect issuer, beside the gateway's own keys."""

    issuer: str | None = Field(None, description="Issuer URL, as in `iss`; turns JWTs on.")
    audience: str | None = Field(None, description="What `aud` must name; needed with an issuer.")
    jwks_url: str | None = Field(
        None, description="Where its keys are; discovered from the issuer when unset."
    )
    algorithms: tuple[Literal["RS256", "ES256", "EdDSA"], ...] = Field(
        ("RS256", "ES256"), min_length=1, description="Signatures that are taken: RS256, ES256, EdDSA."
    )
    principal_claim: str = Field("sub", min_length=1, description="The claim that names the principal.")
    scopes_claim: str = Field(
        "scope", min_length=1, description="The claim that grants: words in a string, or a list of strings."
    )
    scopes: dict[str, tuple[Scope, ...]] = Field(
        {f"cellblock:{scope}": (scope,) for scope in Scope},
        description="What each word of that claim grants; other words grant nothing.",
    )
    leeway_s: float = Field(10.0, ge=0, le=300, description="Clock difference that is forgiven.")
    keys_max_age_s: float = Field(
        3600.0, gt=0, description="Seconds after which the issuer's keys are fetched anew."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.issuer is None) != (self.audience is None):
            raise ValueError("issuer and audience belong together")
        for url in (self.issuer, self.jwks_url):
            if url is not None and not url.startswith(("https://", "http://127.0.0.1:", "http://localhost:")):
                raise ValueError("an issuer is reached over https")
        return self


class AuthSettings(Group):
    """Whose credentials are taken, beside the gateway's own keys."""

    oidc: OidcSettings = Field(default_factory=OidcSettings, description="JWTs of an OpenID Connect issuer.")


class PrincipalQuota(Group):
    """One principal's own quotas; what is unset is as for everybody."""

    kernels: Bound | None = None
    starts_per_minute: Bound | None = None
    executions_per_minute: Bound | None = None
    concurrent_executions: Bound | None = None
    cpu_s_per_day: Bound | None = None
    output_bytes_per_day: Bound | None = None
    storage_bytes: Bound | None = None
    sockets: Bound | None = None


class QuotaSettings(Group):
    """How much each principal may use; "unlimited" is a value everywhere. Days are UTC's."""

    starts_per_minute: Bound = Field(120, description="Kernels started or restarted in any 60 seconds.")
    executions_per_minute: Bound = Field(
        1200, description="Executions begun in any 60 seconds, over all doors."
    )
    concurrent_executions: Bound = Field(
        "unlimited", description="Kernels that execute at the same time; those of one kernel run one by one."
    )
    cpu_s_per_day: Bound = Field("unlimited", description="CPU seconds of all kernels together, per day.")
    output_bytes_per_day: Bound = Field("unlimited", description="Bytes that executions send, per day.")
    storage_bytes: Bound = Field(1 << 30, description="Bytes kept in workspaces.")
    sockets: Bound = Field(100, description="Open WebSockets.")
    principals: dict[PrincipalName, PrincipalQuota] = Field(
        {}, description="Other quotas for some principals, by name: these, and `kernels`."
    )


class AuditSettings(Group):
    """What the audit trail keeps, and for how long."""

    keep_code: bool = Field(
        False, description="Keep the code itself (its first 64 KiB), and not only its SHA-256."
    )
    retention_days: int = Field(
        90, ge=0, le=36_500, description="Days after which records are removed; 0 keeps them for ever."
    )
    file_bytes: int = Field(
        16 << 20, ge=4096, description="Size at which a new file is begun; one is begun every day besides."
    )
    queue_bytes: int = Field(
        16 << 20, ge=1 << 16, description="Records waiting for the disk; past that new work is refused 503."
    )
    refusals_per_s: int = Field(
        5, ge=1, le=1000, description="Equal refusals written one by one; more are folded into a count."
    )


class E2bSettings(Group):
    """Sandboxes for E2B's SDKs."""

    templates: dict[str, str] = Field(
        {"code-interpreter-v1": "python3", "base": "python3"},
        description="The kernelspec of each template that a client may name.",
    )
    timeout_s: float = Field(
        300.0, gt=0, description="Seconds that a sandbox lives when the request does not say."
    )
    max_timeout_s: float = Field(86_400.0, gt=0, description="Longest that a sandbox lives, paused or not.")
    home_bytes: int = Field(
        64 << 20, ge=16 << 20, description="What a sandbox's home may hold; it counts as a workspace."
    )


class LogSettings(Group):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )
    format: Literal["auto", "json", "console"] = Field(
        "auto", description="JSON lines, or coloured text; auto is text on a terminal."
    )


class TelemetrySettings(Group):
    """Where traces go."""

    otlp_endpoint: str | None = Field(
        None, description="URL of an OpenTelemetry collector (OTLP over HTTP); turns traces on."
    )
    service_name: str = Field("cellblock", min_length=1, description="What this gateway is called in traces.")
    sample_ratio: float = Field(
        1.0, ge=0, le=1, description="Part of the requests that are traced, where the client does not say."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.otlp_endpoint is not None:
            parts = urlsplit(self.otlp_endpoint)
            if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
                raise ValueError("an endpoint is an http or https URL, without credentials")
        return self


class WebhookSettings(Group):
    """One address that is told of what happens."""

    url: str = Field(description="Where notices go: https, or http on loopback.")
    secret_file: Path = Field(
        description="Holds the secret that signs them: whsec_ and base64, not to be read by others."
    )
    events: tuple[NoticeKind, ...] = Field(
        tuple(NoticeKind), min_length=1, description="What it is told of; everything when left out."
    )
    principals: tuple[PrincipalName, ...] | None = Field(
        None, description="Whose notices it gets; everybody's when left out."
    )
    timeout_s: float = Field(5.0, gt=0, le=60, description="Seconds for one try.")
    max_attempts: int = Field(6, ge=1, le=20, description="Tries of one notice.")
    queue: int = Field(1000, ge=1, le=100_000, description="Notices that wait; the oldest give way.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        parts = urlsplit(self.url)
        loopback = parts.hostname in {"127.0.0.1", "localhost", "::1"}
        if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
            raise ValueError("a webhook is reached over https, or over http on loopback")
        if not parts.hostname or parts.username is not None or parts.password is not None:
            raise ValueError("a webhook's URL has a host and no credentials")
        return self


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
    tools: ToolsSettings = Field(
        default_factory=ToolsSettings, description="Bounds on calls to tools of the client's."
    )
    mcp: McpSettings = Field(default_factory=McpSettings, description="What agents are offered as tools.")
    processes: ProcessesSettings = Field(
        default_factory=ProcessesSettings, description="Bounds on commands and processes beside a kernel."
    )
    files: FilesSettings = Field(
        default_factory=FilesSettings, description="Bounds on files that are read and written."
    )
    auth: AuthSettings = Field(default_factory=AuthSettings, description="Whose credentials are taken.")
    quotas: QuotaSettings = Field(
        default_factory=QuotaSettings, description="How much each principal may use."
    )
    audit: AuditSettings = Field(default_factory=AuditSettings, description="What the audit trail keeps.")
    e2b: E2bSettings = Field(default_factory=E2bSettings, description="Sandboxes for E2B's SDKs.")
    log: LogSettings = Field(default_factory=LogSettings, description="What is logged.")
    telemetry: TelemetrySettings = Field(default_factory=TelemetrySettings, description="Where traces go.")
    webhooks: tuple[WebhookSettings, ...] = Field((), description="Addresses that are told of what happens.")

    @property
    def store_path(self) -> Path:
        """Where the SQLite store lies."""
        return self.state_dir / "gateway" / "cellblock.db"

    @property
    def pepper_path(self) -> Path:
        """Where the key of the API keys' hashes lies."""
        return self.state_dir / "gateway" / "pepper"

    @property
    def audit_dir(self) -> Path:
        """Where the audit trail's files lie."""
        return self.state_dir / "gateway" / "audit"

    @property
    def audit_key_path(self) -> Path:
        """Where the key of the audit trail's hashes lies."""
        return self.state_dir / "gateway" / "audit-key"

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
    return "\n\n".join(_tables(settings.model_dump(mode="json"), ())) + "\n"


def _tables(values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    lines = [f"{_key(name)} = {_toml(value)}" for name, value in values.items() if _is_plain(value)]
    if lines:
        yield "\n".join([f"[{'.'.join(map(_key, path))}]", *lines] if path else lines)
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _tables(value, (*path, name))


def _is_plain(value: Any) -> bool:
    return value is not None and not isinstance(value, dict)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{_key(name)} = {_toml(item)}" for name, item in value.items() if item is not None)
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # strings, numbers and booleans are written alike in JSON and TOML
    return json.dumps(value, ensure_ascii=False)

"""Bodies of E2B's API of sandboxes, as its SDKs send and read them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from gateway.errors import BadRequest
from gateway.models.sandboxes import Env, Metadata

# Of E2B's in-sandbox service: SDKs offer what a service of this version can do.
ENVD_VERSION = "0.5.7"
State = Literal["running", "paused"]


class Body(BaseModel):
    """What an SDK sends: newer ones send more, which is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class NewSandbox(Body):
    """The body of POST /v2/sandboxes."""

    template_id: str = Field(alias="templateID", max_length=256)
    timeout: int | None = Field(None, ge=0)
    metadata: Metadata = Field(default_factory=dict)
    env_vars: Env = Field(default_factory=dict, alias="envVars")
    auto_pause: bool = Field(False, alias="autoPause")
    allow_internet_access: bool | None = None
    network: Any = None
    mcp: Any = None
    iam: Any = None
    volume_mounts: Any = Field(None, alias="volumeMounts")

    def check(self) -> None:
        """Refuse what would be promised and not kept. Raises BadRequest."""
        wanted = {
            "allow_internet_access": (self.allow_internet_access, "cells have no network"),
            "network": (self.network, "cells have no network"),
            "mcp": (self.mcp, "there is no MCP gateway in a cell"),
            "iam": (self.iam, "there are no identities for cells"),
            "volumeMounts": (self.volume_mounts, "there are no volumes"),
            "autoPause": (self.auto_pause, "a sandbox ends when its time is over"),
        }
        for name, (value, why) in wanted.items():
            if value:
                raise BadRequest(f"{name} is not offered here: {why}.", reason=name)


class SandboxTimeout(Body):
    """The body of POST /sandboxes/{id}/timeout."""

    timeout: int = Field(ge=0)


class SandboxRefresh(Body):
    """The body of POST /sandboxes/{id}/refreshes."""

    duration: int | None = Field(None, ge=0)


class SandboxConnect(Body):
    """The body of POST /v2/sandboxes/{id}/connect and of /resume."""

    timeout: int | None = Field(None, ge=0)


class View(BaseModel):
    """What an SDK reads."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)


class CreatedSandbox(View):
    """A sandbox for whoever may use it. Some requests of the SDKs carry the one token, some the other."""

    template_id: str = Field(alias="templateID")
    sandbox_id: str = Field(alias="sandboxID")
    client_id: str = Field("cellblock", alias="clientID")
    envd_version: str = Field(ENVD_VERSION, alias="envdVersion")
    envd_access_token: str = Field(alias="envdAccessToken")
    traffic_access_token: str = Field(alias="trafficAccessToken")


class SandboxView(View):
    """A sandbox in a list, and alone."""

    template_id: str = Field(alias="templateID")
    alias: str
    sandbox_id: str = Field(alias="sandboxID")
    client_id: str = Field("cellblock", alias="clientID")
    started_at: str = Field(alias="startedAt")
    end_at: str = Field(alias="endAt")
    envd_version: str = Field(ENVD_VERSION, alias="envdVersion")
    cpu_count: int = Field(alias="cpuCount")
    memory_mb: int = Field(alias="memoryMB")
    disk_size_mb: int = Field(alias="diskSizeMB")
    state: State
    metadata: dict[str, str]


class SandboxViews(RootModel[list[SandboxView]]):
    """Sandboxes."""


class MetricView(View):
    """What a sandbox uses now; the CPU's share is its mean so far."""

    timestamp: str
    timestamp_unix: int = Field(alias="timestampUnix")
    cpu_count: int = Field(alias="cpuCount")
    cpu_used_pct: float = Field(alias="cpuUsedPct")
    mem_used: int = Field(alias="memUsed")
    mem_total: int = Field(alias="memTotal")
    mem_cache: int = Field(0, alias="memCache")
    disk_used: int = Field(alias="diskUsed")
    disk_total: int = Field(alias="diskTotal")


class MetricViews(RootModel[list[MetricView]]):
    """One moment's numbers."""


class ExecuteCode(Body):
    """The body of POST /execute."""

    code: str = Field(max_length=8 << 20)
    context_id: str | None = Field(None, max_length=64)
    language: str | None = Field(None, max_length=64)
    env_vars: Env | None = None


class NewContext(Body):
    """The body of POST /contexts."""

    language: str | None = Field(None, max_length=64)
    cwd: str | None = Field(None, max_length=2048, pattern=r"^[^\x00]*$")


class ContextView(View):
    """A context."""

    id: str
    language: str
    cwd: str


class ContextViews(RootModel[list[ContextView]]):
    """The contexts of a sandbox, the first one first."""

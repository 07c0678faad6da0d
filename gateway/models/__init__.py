"""The nouns of the gateway, without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from gateway.models.base import Frozen as Frozen
from gateway.models.base import Model as Model

Channel = Literal["shell", "control", "stdin", "iopub"]
CHANNELS: tuple[Channel, ...] = ("shell", "control", "stdin", "iopub")

ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", max_length=200)]

# how a kernel's cell came up: for this very kernel, or before anybody had asked for one
Start = Literal["cold", "warm"]

PrincipalName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]


def timestamp(moment: datetime) -> str:
    """Format a UTC moment as Jupyter clients parse it: always six digits and a Z (jupyter_server's model)."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class ExecutionState(StrEnum):
    """What a kernel is doing, in Jupyter's words."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    RESTARTING = "restarting"
    DEAD = "dead"


class DeathReason(StrEnum):
    """Why a kernel ended."""

    KILLED = "killed"
    OOM = "oom"
    CPU = "cpu"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    CULLED = "culled"
    SHUTDOWN = "shutdown"


class Scope(StrEnum):
    """What a credential may do; `admin` includes the others and sees what is everybody's."""

    KERNELS = "kernels"
    EXECUTE = "execute"
    FILES = "files"
    ADMIN = "admin"


DEFAULT_SCOPES = frozenset({Scope.KERNELS, Scope.EXECUTE, Scope.FILES})


class Principal(Frozen):
    """Who is asking: an owner's name, the credential that proved it, and what that credential may do."""

    name: PrincipalName
    key_id: str
    scopes: frozenset[Scope]
    expires_at: datetime | None = None

    def has(self, scope: Scope) -> bool:
        """Tell whether the credential includes a scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


class Limits(Frozen):
    """What one cell may use. Bytes, seconds and counts; None means no limit of that kind."""

    memory_bytes: int = Field(1 << 30, ge=64 << 20, description="Memory of the whole cell, tmpfs included.")
    pids: int = Field(128, ge=24, le=4096, description="Processes and threads of the whole cell.")
    cpus: float = Field(1.0, gt=0, le=256, description="CPU time per second, in cores.")
    home_bytes: int = Field(256 << 20, ge=1 << 20, description="Size of the private home.")
    tmp_bytes: int = Field(256 << 20, ge=1 << 20, description="Size of /tmp.")
    shm_bytes: int = Field(256 << 20, ge=1 << 20, description="Size of /dev/shm.")
    home_inodes: int = Field(
        20_000, ge=64, description="Files and directories of each: home, /tmp, /dev/shm."
    )
    open_files: int = Field(512, ge=64, le=65_536, description="Descriptors per process.")
    file_bytes: int = Field(256 << 20, ge=1 << 20, description="Size of one file.")
    timeout_s: float = Field(300.0, gt=0, description="Longest execution, when the request names none.")
    max_timeout_s: float = Field(3600.0, gt=0, description="Longest execution that a request may ask for.")
    interrupt_grace_s: float = Field(2.0, ge=0, le=60, description="Wait between interrupt and kill.")
    idle_timeout_s: float | None = Field(3600.0, gt=0, description="Idle seconds before culling.")
    max_lifetime_s: float | None = Field(86_400.0, gt=0, description="Seconds before the kernel is ended.")
    relay_bytes: int = Field(
        16 << 20,
        ge=1 << 20,
        description="Output of one execution that clients are sent, a quarter of it text; then its tail.",
    )
    output_bytes: int = Field(4 << 20, ge=1024, description="Output kept for one REST execution.")


class KernelSpec(Frozen):
    """A kernelspec that may be started: Jupyter's kernel.json, where it lies, and what cell it asks for."""

    name: str
    argv: tuple[str, ...]
    display_name: str
    language: str
    interrupt_mode: Literal["signal", "message"] = "signal"
    env: Mapping[str, str] = Field(default_factory=dict)
    metadata: Mapping[str, Any] = Field(default_factory=dict)
    resource_dir: str
    profile: str = "default"
    environment: str | None = None
    needs: tuple[str, ...] = ()


class Kernel(Model):
    """A kernel as the REST API shows it: Jupyter's fields first, then ours."""

    id: str
    name: str
    last_activity: str
    execution_state: ExecutionState
    connections: int
    reason: DeathReason | None = None
    owner: str
    profile: str
    started_at: str
    executions: int
    paused: bool = False
    limits: Limits
    workspace: str | None = None
    start: Start | None = None


class Usage(Model):
    """What a kernel's cell uses: bytes, seconds and counts; None where this machine cannot tell."""

    memory_bytes: int
    memory_peak_bytes: int | None = None
    cpu_s: float
    throttled_s: float | None = None
    pids: int
    home_bytes: int | None = None
    home_inodes: int | None = None


class Execution(Model):
    """An execution that has not ended: queued ones have not been seen by the kernel."""

    id: str
    kernel_id: str
    state: Literal["queued", "running"]
    timeout_s: float
    asked_at: str


class WorkspaceChoice(Frozen):
    """A home that persists: its name, what it may hold when it is made, and what all of its owner's may.

    A shared one is had by other kernels of its owner's as well, if they say the same.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    size_bytes: int
    inodes: int
    budget_bytes: int | None = None
    shared: bool = False


class WorkspaceFacts(Model):
    """A workspace as the API shows it; sizes are None where workspaces are plain directories."""

    name: str
    size_bytes: int | None
    used_bytes: int | None
    in_use: bool


class KernelRecord(Frozen):
    """What the store keeps of a kernel, for the next gateway to adopt it."""

    id: str
    owner: str
    spec: str
    created_at: datetime
    limits: Limits
    env: Mapping[str, str] = Field(default_factory=dict)
    secret_names: tuple[str, ...] = Field((), description="Secrets that it was started with; never values.")
    workspace: WorkspaceChoice | None = None


class SessionRecord(Frozen):
    """A Jupyter session: a path of its owner's, bound to a kernel."""

    id: str
    owner: str
    path: str
    name: str
    type: str
    kernel_id: str
    kernel_name: str
    created_at: datetime


class KeyRecord(Frozen):
    """An API key as stored: the secret only as a keyed hash (hex)."""

    id: str
    principal: PrincipalName
    scopes: frozenset[Scope]
    secret_hash: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class UsageDay(Frozen):
    """What a principal used on one day (UTC)."""

    principal: str
    day: date
    cpu_s: float = 0.0
    output_bytes: int = 0


class ExecuteRequest(Model):
    """The body of POST /api/kernels/{id}/execute."""

    code: str = Field(max_length=8 << 20)
    timeout_s: float | None = Field(None, gt=0, description="Seconds; capped by the kernel's limits.")
    silent: bool = False
    store_history: bool = True
    stop_on_error: bool = True
    artifacts: bool = Field(False, description="List the files that the execution made or changed.")


class ExecutionError(Model):
    """An exception raised by the code: nbformat's fields."""

    ename: str
    evalue: str
    traceback: list[str]


class ExecutionStatus(StrEnum):
    """How an execution ended."""

    OK = "ok"
    ERROR = "error"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    ABORTED = "aborted"
    DEAD = "dead"


class Artifact(Model):
    """A file that was made or changed; `sha256` is None where there were too many bytes to read."""

    path: str
    href: str
    size: int
    change: Literal["made", "changed"]
    sha256: str | None


class Artifacts(Model):
    """What an execution left in the home; `truncated` says that not all was looked at, or listed."""

    files: list[Artifact]
    truncated: bool


class ExecutionResult(Model):
    """What one execution gave. `outputs` are nbformat 4 outputs; `reason` names a kernel's death."""

    status: ExecutionStatus
    reason: DeathReason | None = None
    stdout: str = ""
    stderr: str = ""
    outputs: list[dict[str, Any]] = Field(default_factory=list)
    error: ExecutionError | None = None
    execution_count: int | None = None
    duration_s: float
    truncated: bool = False
    artifacts: Artifacts | None = None


Door = Literal["rest", "websocket", "rpc", "mcp", "e2b", "gateway", "cli"]


class Origin(Frozen):
    """Where a request came from: who, by which credential and door, from where, under which request id."""

    principal: PrincipalName
    key_id: str
    door: Door
    address: str | None = None
    request_id: str | None = None
    traceparent: str | None = Field(None, description="W3C's name of the request's span, where it is traced.")


class ExecutionRecord(Frozen):
    """One ended execution, whatever its door; `output_bytes` counts what the kernel sent for it.

    `queue_s` is how long it waited until the kernel began with it, None when it never did; `cut_bytes` of
    its output were not passed on.
    """

    id: str
    kernel_id: str
    owner: str
    origin: Origin
    code_sha256: str
    code: str
    status: ExecutionStatus
    reason: DeathReason | None
    started_at: datetime
    duration_s: float
    output_bytes: int
    queue_s: float | None = None
    cut_bytes: int = 0


class AuditAction(StrEnum):
    """What the audit trail records."""

    GATEWAY_START = "gateway.start"
    GATEWAY_STOP = "gateway.stop"
    GATEWAY_TRIAL = "gateway.trial"
    KERNEL_CREATE = "kernel.create"
    KERNEL_DELETE = "kernel.delete"
    KERNEL_INTERRUPT = "kernel.interrupt"
    KERNEL_RESTART = "kernel.restart"
    KERNEL_PAUSE = "kernel.pause"
    KERNEL_RESUME = "kernel.resume"
    KERNEL_SHUTDOWN = "kernel.shutdown"
    KERNEL_DEBUG = "kernel.debug"
    KERNEL_CULL = "kernel.cull"
    KERNEL_DIE = "kernel.die"
    KERNEL_ADOPT = "kernel.adopt"
    CHANNELS_OPEN = "channels.open"
    CHANNELS_CLOSE = "channels.close"
    EXECUTION_END = "execution.end"
    EXECUTION_INTERRUPT = "execution.interrupt"
    EXECUTION_CANCEL = "execution.cancel"
    COMMAND_RUN = "command.run"
    PROCESS_START = "process.start"
    PROCESS_INPUT = "process.input"
    PROCESS_SIGNAL = "process.signal"
    PROCESS_LIST = "process.list"
    JOB_CREATE = "job.create"
    JOB_CANCEL = "job.cancel"
    TOOL_CALL = "tool.call"
    TOOL_ANSWER = "tool.answer"
    CONTEXT_KEEP = "context.keep"
    AGENT_CALL = "agent.call"
    SESSION_CREATE = "session.create"
    SESSION_CHANGE = "session.change"
    SESSION_DELETE = "session.delete"
    SANDBOX_CREATE = "sandbox.create"
    SANDBOX_CONNECT = "sandbox.connect"
    SANDBOX_CHANGE = "sandbox.change"
    SANDBOX_PAUSE = "sandbox.pause"
    SANDBOX_RESUME = "sandbox.resume"
    SANDBOX_DELETE = "sandbox.delete"
    SANDBOX_END = "sandbox.end"
    KEY_CREATE = "key.create"
    KEY_REVOKE = "key.revoke"
    FILE_LIST = "file.list"
    FILE_READ = "file.read"
    FILE_WRITE = "file.write"
    FILE_DELETE = "file.delete"
    AUTH_REFUSED = "auth.refused"
    ACCESS_REFUSED = "access.refused"
    LIMIT_REFUSED = "limit.refused"
    REQUEST_FAILED = "request.failed"
    POLICY_NOTED = "policy.noted"
    POLICY_REFUSED = "policy.refused"
    AUDIT_PRUNE = "audit.prune"


class AuditOutcome(StrEnum):
    """How it went: done, refused by the gateway, or tried and failed."""

    OK = "ok"
    REFUSED = "refused"
    ERROR = "error"


def _bounded(text: str) -> str:
    # cut rather than refused: an event that has happened is never lost to its own form
    return text[:512].encode("utf-8", "replace").decode()


AuditText = Annotated[str, AfterValidator(_bounded)]


class AuditEvent(Frozen):
    """One thing that happened, for the audit trail. Texts are cut at 512 characters; never a secret's value.

    Without a `door`, the trail takes who, key, door, address and request from the request being served.
    """

    action: AuditAction
    outcome: AuditOutcome = AuditOutcome.OK
    who: AuditText | None = None
    key_id: AuditText | None = None
    address: AuditText | None = None
    door: Door | None = None
    request_id: AuditText | None = None
    kernel_id: AuditText | None = None
    target: AuditText | None = Field(None, description="What it was done to, where that is no kernel.")
    reason: AuditText | None = Field(None, description="A short code: of the error, the death, the status.")
    code_sha256: AuditText | None = None
    code: str | None = Field(None, max_length=64 << 10)
    duration_s: float | None = Field(None, allow_inf_nan=False)
    output_bytes: int | None = None
    extra: Mapping[AuditText, AuditText | int | float | bool | None] = Field(
        default_factory=dict, max_length=16
    )


class AuditRecord(AuditEvent):
    """An event as the trail has it: numbered without gaps, and chained to the record before it by `hash`."""

    seq: int
    at: str
    prev_hash: str
    hash: str


class AuditHead(Frozen):
    """The newest record of a trail; `seq` 0 and 64 zeros where there is none yet."""

    seq: int = 0
    hash: str = "0" * 64


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is at a path of a home, links not followed. Sizes in bytes, times in ns since 1970.

    `path` is relative to the home; bytes in it that are no UTF-8 are surrogates, as `os.fsdecode` has it.
    `version` changes whenever the content may have changed.
    """

    path: str
    type: Literal["file", "directory", "link", "other"]
    size: int
    mode: int
    modified_ns: int
    version: str


@dataclass(frozen=True, slots=True)
class Walk:
    """What is in a directory, and below it: each directory's entries by name, the upper levels first."""

    entries: tuple[FileFacts, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Who listens through a socket: a principal, and the `session_id` by which it may come back."""

    principal: str
    session: str | None


@dataclass(slots=True)
class Message:
    """One Jupyter message on one channel; the four JSON parts stay the kernel's own bytes.

    `msg_id`, `msg_type` and `parent_id` are what the headers said, checked to be short strings.
    `authored` means "made by the gateway, not by the kernel": only then may it tell of the kernel's death.
    `offset` tells where it stands in what the kernel's clients were told, in bytes; 0 is nowhere.
    """

    channel: Channel
    header: bytes
    parent_header: bytes
    metadata: bytes
    content: bytes
    msg_id: str
    msg_type: str
    parent_id: str = ""
    buffers: list[bytes] = field(default_factory=list)
    authored: bool = False
    offset: int = field(default=0, compare=False)
    _size: int = field(default=-1, init=False, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Count the bytes that carry the message; it is asked for often, and counted once."""
        if self._size < 0:
            self._size = (
                len(self.header)
                + len(self.parent_header)
                + len(self.metadata)
                + len(self.content)
                + sum(map(len, self.buffers))
            )
        return self._size

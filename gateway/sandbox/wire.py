"""What the gateway and the warden say to each other, as models: one JSON object per SEQPACKET packet."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, TypeAdapter

from gateway.models import Frozen, Limits

MAX_PACKET = 160 << 10

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Uuid = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
CellId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
Argument = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
EnvValue = Annotated[str, StringConstraints(max_length=64 << 10, pattern=r"^[^\x00]*$")]


class Connection(Frozen):
    """A kernel's connection file, as jupyter_client reads it; ports over ipc are file name suffixes."""

    transport: Literal["ipc"] = "ipc"
    ip: str
    key: str
    signature_scheme: Literal["hmac-sha256"] = "hmac-sha256"
    shell_port: int = 1
    iopub_port: int = 2
    stdin_port: int = 3
    control_port: int = 4
    hb_port: int = 5
    kernel_name: str = ""


class LaunchOrder(Frozen):
    """Start one cell. `{connection_file}` in `argv` stands for the connection file's path."""

    kernel_id: Uuid
    profile: Name
    argv: tuple[Argument, ...] = Field(min_length=1, max_length=64)
    environment: str | None = Field(None, max_length=1024)
    env: dict[EnvName, EnvValue] = Field(default_factory=dict, max_length=256)
    limits: Limits


class CellFacts(Frozen):
    """A live, proved cell. `age_s` counts from its launch."""

    cell: CellId
    kernel_id: Uuid
    connection: Connection
    landlock: int
    age_s: float


class Ending(Frozen):
    """How a cell ended. `exit_code` is None where the kernel was killed by the warden."""

    exit_code: int | None
    oom: bool
    stderr: str


class Hello(Frozen):
    """Open a conversation: how long cells are to outlive this gateway."""

    op: Literal["hello"] = "hello"
    keep_s: float = Field(ge=0, le=86_400)


class Launch(Frozen):
    """Start a cell; the kernel's pidfd comes back with its facts."""

    op: Literal["launch"] = "launch"
    order: LaunchOrder


class OnCell(Frozen):
    """Do something to one cell: seal it, interrupt its kernel, end it, or hand over its facts and pidfd."""

    op: Literal["seal", "interrupt", "end", "adopt"]
    cell: CellId


class Plain(Frozen):
    """List the live cells' ids, or end everything and exit."""

    op: Literal["list", "stop"]


class Request(Frozen):
    """One request; `id` comes back with the answer."""

    id: int
    body: Annotated[Hello | Launch | OnCell | Plain, Field(discriminator="op")]


REQUEST: TypeAdapter[Request] = TypeAdapter(Request)

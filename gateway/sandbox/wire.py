"""What the gateway and the warden say to each other, as models: one JSON object per SEQPACKET packet."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, TypeAdapter

from gateway.models import Frozen, Limits, ModuleName

MAX_PACKET = 160 << 10

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Uuid = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
OwnerHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
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


class WorkspaceOrder(Frozen):
    """A workspace as a cell's home: whose it is, by a hash, and what it gets where it has to be made."""

    owner: OwnerHash
    name: Name
    size_bytes: int = Field(ge=16 << 20, le=1 << 40)
    inodes: int = Field(ge=64, le=10_000_000)
    budget_bytes: int | None = Field(None, ge=0)
    shared: bool = False


class Place(Frozen):
    """Where clients of an ended cell's kernel still look for it, and the key that they know."""

    cell: CellId
    key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Share(Frozen):
    """A directory of the user's own that a cell is shown where it is, and starts in."""

    path: Annotated[str, StringConstraints(max_length=1024, pattern=r"^/[^\x00]*$")]
    writable: bool


class LaunchOrder(Frozen):
    """Start one cell. `{connection_file}` in `argv` stands for the connection file's path.

    A `pooled` cell's kernel is nobody's until it is claimed; it loads the modules of `preload` beforehand.
    `age_s` is the kernel's age, where the cell is not its first; `place` is the ended cell's that this one
    is to stand in for. A tied cell ends with the conversation that asks for it; whoever that is connects to
    its sockets by name, so that nothing but sockets can be made beside them.
    """

    kernel_id: Uuid
    profile: Name
    argv: tuple[Argument, ...] = Field(min_length=1, max_length=64)
    environment: str | None = Field(None, max_length=1024)
    env: dict[EnvName, EnvValue] = Field(default_factory=dict, max_length=256)
    limits: Limits
    workspace: WorkspaceOrder | None = None
    share: Share | None = None
    place: Place | None = None
    tied: bool = False
    pooled: bool = False
    preload: tuple[ModuleName, ...] = Field((), max_length=64)
    age_s: float = Field(0.0, ge=0)


class CellFacts(Frozen):
    """A live, proved cell. `age_s` is its kernel's, by a clock that nobody sets.

    `attended` tells that its attendant's socket was handed out, so that it may be at work; `pooled` that its
    kernel is nobody's yet.
    """

    cell: CellId
    kernel_id: Uuid
    connection: Connection
    landlock: int
    age_s: float
    attended: bool = False
    pooled: bool = False


class WardenFacts(Frozen):
    """What a warden is: root's or a user's, its control groups (None: none), a hash of its settings."""

    privileged: bool
    cgroups: str | None
    settings: str


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


class Claim(Frozen):
    """Give a pooled cell to a kernel, once: its id, its age, and limits that are at most the cell's."""

    op: Literal["claim"] = "claim"
    cell: CellId
    kernel_id: Uuid
    limits: Limits
    age_s: float = Field(0.0, ge=0)


class OnCell(Frozen):
    """Do something to one cell: seal, freeze or end it, interrupt its kernel, or hand over facts of it.

    For `attend` this end of its attendant's socket comes back.
    """

    op: Literal["seal", "interrupt", "pause", "resume", "usage", "end", "adopt", "attend"]
    cell: CellId


# percent-encoded bytes: a name in a home need not be text
HomePath = Annotated[str, StringConstraints(max_length=8192, pattern=r"^[!-~]*$")]


class OpenFile(Frozen):
    """Open a file of a home; its descriptor comes back. `spool` makes one without a name."""

    op: Literal["open"] = "open"
    cell: CellId
    path: HomePath = ""
    mode: Literal["read", "append", "spool"]
    executable: bool = False


class PlaceFile(Frozen):
    """Give a spooled file, whose descriptor comes along, its name."""

    op: Literal["place"] = "place"
    cell: CellId
    path: HomePath
    replace: bool
    version: str | None = Field(None, max_length=100)


class WalkHome(Frozen):
    """List a directory; the entries come back in a memory file, one JSON array of them a line."""

    op: Literal["walk"] = "walk"
    cell: CellId
    path: HomePath
    depth: int = Field(ge=1, le=64)
    limit: int = Field(ge=1, le=20_000)


class OnPath(Frozen):
    """Look at a path, make a directory there, or remove what is there: of much, as much as goes at once."""

    op: Literal["stat", "mkdir", "remove", "empty"]
    cell: CellId
    path: HomePath


class MoveFile(Frozen):
    """Rename within a home."""

    op: Literal["move"] = "move"
    cell: CellId
    path: HomePath
    to: HomePath
    replace: bool


FileOrder = OpenFile | PlaceFile | WalkHome | OnPath | MoveFile


class ListWorkspaces(Frozen):
    """List an owner's workspaces."""

    op: Literal["list_workspaces"] = "list_workspaces"
    owner: OwnerHash


class DeleteWorkspace(Frozen):
    """Delete a workspace that no cell has."""

    op: Literal["delete_workspace"] = "delete_workspace"
    owner: OwnerHash
    name: Name


WorkspaceRequest = ListWorkspaces | DeleteWorkspace


class Plain(Frozen):
    """List the live cells' ids, or end everything and exit."""

    op: Literal["list", "stop"]


class Request(Frozen):
    """One request; `id` comes back with the answer."""

    id: int
    body: Annotated[
        Hello | Launch | Claim | OnCell | FileOrder | WorkspaceRequest | Plain, Field(discriminator="op")
    ]


REQUEST: TypeAdapter[Request] = TypeAdapter(Request)

"""What the use cases need of the world, as protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import date, datetime
from typing import IO, Literal, Protocol, Self

from pydantic import SecretStr

from gateway.models import (
    AuditEvent,
    AuditHead,
    AuditRecord,
    DeathReason,
    Execution,
    ExecutionRecord,
    ExecutionState,
    FileFacts,
    Kernel,
    KernelRecord,
    KernelSpec,
    KeyRecord,
    Limits,
    Message,
    Origin,
    Page,
    Principal,
    SessionRecord,
    Usage,
    UsageDay,
    Walk,
    WorkspaceChoice,
    WorkspaceFacts,
)
from gateway.models.jobs import JobRecord
from gateway.models.sandboxes import SandboxRecord
from gateway.ports.processes import KernelProcesses as KernelProcesses
from gateway.ports.processes import ToolDesk as ToolDesk

# a place among the starts that are under way, entered at most once
Turn = AbstractAsyncContextManager[None]


class Clock(Protocol):
    """Time: monotonic seconds for durations, UTC for what people read."""

    def monotonic(self) -> float:
        """Return monotonic seconds."""
        ...

    def now(self) -> datetime:
        """Return the moment in UTC."""
        ...


class Subscriber(Protocol):
    """Somebody who receives a kernel's messages. Neither method may block or raise."""

    def deliver(self, message: Message) -> None:
        """Take one message: any iopub message, or a reply to a request of this subscriber's."""
        ...

    def ended(self, reason: DeathReason) -> None:
        """Learn that the kernel is gone for good; nothing will be delivered any more."""
        ...


class KernelHandle(Protocol):
    """One live kernel, wherever it runs."""

    @property
    def id(self) -> str:
        """The public kernel id (UUID)."""
        ...

    @property
    def owner(self) -> str:
        """The name of the principal whose kernel this is."""
        ...

    @property
    def spec_name(self) -> str:
        """The kernelspec's name."""
        ...

    @property
    def state(self) -> ExecutionState:
        """What the kernel is doing."""
        ...

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        ...

    @property
    def connections(self) -> int:
        """How many sockets are attached."""
        ...

    @property
    def death(self) -> DeathReason | None:
        """Why the kernel died last, if it is dead or was restarted after a death."""
        ...

    @property
    def generation(self) -> int:
        """Since which of its starts it runs, as this gateway counts them: it knows nothing of before."""
        ...

    def idle_for_s(self) -> float:
        """Return seconds since the last activity of a user's; 0 while busy."""
        ...

    def age_s(self) -> float:
        """Return seconds since the kernel was created."""
        ...

    def model(self) -> Kernel:
        """Return the kernel as the REST API shows it."""
        ...

    def attach(
        self,
        subscriber: Subscriber,
        *,
        counts: bool = True,
        page: Page | None = None,
        current: bool = False,
    ) -> list[Message]:
        """Deliver this kernel's messages to a subscriber; `counts` says if it is a client's connection.

        Return what `page` missed, which comes before whatever is delivered from now on; with `current` the
        output of what runs now is among it from its start.
        """
        ...

    def confirm(self, subscriber: Subscriber, offset: int) -> None:
        """Note that a subscriber's page has every message up to an offset: it is not kept for it any more."""
        ...

    def detach(self, subscriber: Subscriber) -> None:
        """Stop delivering to a subscriber; what its page has not confirmed, and what comes, is kept for it.

        Detaching twice is harmless.
        """
        ...

    def send(
        self,
        message: Message,
        subscriber: Subscriber,
        *,
        timeout_s: float | None = None,
        origin: Origin | None = None,
    ) -> None:
        """Send a client's message to the kernel; replies come to this subscriber, its record has `origin`.

        One without an origin is the gateway's own: neither recorded nor counted.

        An execute_request gets a deadline of `timeout_s`: `limits.timeout_s` when None, and at most
        `limits.max_timeout_s`.
        When the kernel dies, or is dead already, the request is answered by error, reply and status idle.

        Raises:
            LimitReached: too many requests are waiting for this kernel.
        """
        ...

    def timed_out(self, msg_id: str) -> bool:
        """Tell whether this execution was interrupted by its deadline.

        Known at least until the subscriber that sent the request detaches.
        """
        ...

    async def interrupt(self) -> None:
        """Interrupt what runs. Raises KernelDead."""
        ...

    async def restart(self, turn: Turn) -> None:
        """Start afresh under the same id; for a cold start `turn` is held.

        Raises Conflict, SandboxUnavailable, KernelStartFailed, and what `turn` raises.
        """
        ...

    async def pause(self) -> None:
        """Freeze every process of the kernel's, and the clocks of its deadlines. Raises KernelDead."""
        ...

    async def resume(self) -> None:
        """Let a paused kernel go on. Raises KernelDead."""
        ...

    async def usage(self) -> Usage:
        """Return what the kernel's cell uses. Raises KernelDead."""
        ...

    def executions(self) -> list[Execution]:
        """List the executions that have not ended, oldest first."""
        ...

    async def interrupt_execution(self, execution_id: str) -> None:
        """Interrupt a running execution, or take back a queued one. Raises NotFound, KernelDead."""
        ...

    async def cancel_execution(self, execution_id: str) -> None:
        """End an execution, by a restart of the kernel if need be. Raises NotFound, Conflict."""
        ...

    async def shutdown(self, reason: DeathReason) -> None:
        """End the kernel and everything it ever started."""
        ...

    def files(self) -> KernelFiles:
        """Return the way to the files of its home. Raises KernelDead."""
        ...

    def processes(self) -> KernelProcesses:
        """Return the way to the processes of its cell. Raises KernelDead."""
        ...

    def serve_tools(self, desk: ToolDesk) -> AbstractContextManager[None]:
        """Have a desk answer what code in the cell asks of tools, while the body runs; the newest one does.

        Outside of any, code that asks is told that there are no tools.
        """
        ...

    def touch(self) -> None:
        """Note activity of its owner's: its idle time begins anew."""
        ...


class OpenFile(Protocol):
    """An open regular file of a home; to be closed, as a context manager or by `close`."""

    @property
    def facts(self) -> FileFacts:
        """What the file was when it was opened."""
        ...

    async def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on, fewer only at the end of the file."""
        ...

    async def write(self, data: bytes) -> None:
        """Write at the end. Raises InsufficientStorage, PayloadTooLarge."""
        ...

    async def room(self) -> int:
        """Return how many bytes the file system that the file is on still takes."""
        ...

    def reader(self) -> IO[bytes]:
        """Return a reader of the same bytes that blocks, for a thread; it is to be closed."""
        ...

    def close(self) -> None:
        """Let go of the file. Closing twice is harmless."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class KernelFiles(Protocol):
    """The files of one cell's home. Paths are relative to it; none leads out of it or through a link.

    All raise BadRequest (a path that no home may have, or through a link), NotFound, KernelDead,
    InsufficientStorage, and Conflict where what is there stands against it.
    """

    async def stat(self, path: str) -> FileFacts:
        """Return what is at a path."""
        ...

    async def walk(self, path: str, *, depth: int, limit: int) -> Walk:
        """List a directory, `depth` levels of it, at most `limit` entries."""
        ...

    async def open(self, path: str, mode: Literal["read", "append"]) -> OpenFile:
        """Open a regular file, to read it or to write at its end; for that it is made if need be."""
        ...

    async def spool(self, *, executable: bool = False) -> OpenFile:
        """Open a new file without a name, to write and read; it is gone when closed, unless placed."""
        ...

    async def place(
        self, file: OpenFile, path: str, *, replace: bool = True, version: str | None = None
    ) -> FileFacts:
        """Give a spooled file its name at once and whole; missing directories are made.

        Raises PreconditionFailed when something is there and `replace` is false, or when what is there is
        not of this `version`.
        """
        ...

    async def mkdir(self, path: str) -> FileFacts:
        """Make a directory, and those above it. One that is there already is Conflict."""
        ...

    async def move(self, path: str, to: str, *, replace: bool = False) -> FileFacts:
        """Rename within the home. Raises Conflict when something is there and `replace` is false."""
        ...

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, or a directory: an empty one, or with all that is in it."""
        ...


class ExecutionGate(Protocol):
    """Who may execute now, whatever the door. Neither method may block."""

    def admit(self, owner: str, kernel_id: str) -> None:
        """Count an execution that begins. Raises LimitReached when a quota of its owner's is used up."""
        ...

    def release(self, owner: str, kernel_id: str, output_bytes: int) -> None:
        """Count an admitted execution's end, once, and what it sent."""
        ...


class ExecutionObserver(Protocol):
    """Somebody who must know of every execution that ended. May not block or raise."""

    def ended(self, record: ExecutionRecord) -> None:
        """Take the record of an execution, once, whatever became of it."""
        ...


class Audit(Protocol):
    """The trail of who did what. What has happened is never refused or dropped."""

    def record(self, event: AuditEvent) -> None:
        """Take an event. Neither blocks nor raises."""
        ...

    def admit(self) -> None:
        """Let something new begin. Raises AuditUnavailable when its record could not be kept."""
        ...

    async def written(self) -> None:
        """Wait until all that was recorded so far is in the trail. Raises AuditUnavailable."""
        ...


class KernelHost(Protocol):
    """Where kernels live."""

    async def specs(self) -> Mapping[str, KernelSpec]:
        """Return the kernelspecs that may be started, by name."""
        ...

    def default_spec(self) -> str:
        """Return the name used when a request names none."""
        ...

    def profile_limits(self, profile: str) -> Limits:
        """Return the limits that a profile's kernels get."""
        ...

    async def start(
        self,
        *,
        kernel_id: str,
        owner: str,
        spec: KernelSpec,
        env: Mapping[str, str],
        secrets: Mapping[str, SecretStr],
        limits: Limits,
        turn: Turn,
        workspace: WorkspaceChoice | None = None,
    ) -> KernelHandle:
        """Start a kernel and wait until it answers; `secrets` are kept in memory alone.

        `turn` is held while it is started cold: a warm one waits for nobody.

        Raises:
            SandboxUnavailable: no confined cell can be had.
            KernelStartFailed: the kernel did not come up in its cell.
            LimitReached: this host runs as many kernels as it may.
        """
        ...

    def trial(self, spec: KernelSpec, limits: Limits) -> AbstractAsyncContextManager[KernelHandle]:
        """Give a kernel of the gateway's own, ended with the body: it is in no list and takes no place.

        Raises:
            SandboxUnavailable: no confined cell can be had.
            KernelStartFailed: the kernel did not come up in its cell.
        """
        ...

    async def workspaces(self, owner: str) -> Sequence[WorkspaceFacts]:
        """Return an owner's workspaces by name."""
        ...

    async def delete_workspace(self, owner: str, name: str) -> None:
        """Delete a workspace. Raises NotFound, and Conflict while a kernel has it."""
        ...

    def get(self, kernel_id: str) -> KernelHandle | None:
        """Return a live kernel by id."""
        ...

    def all(self) -> Sequence[KernelHandle]:
        """Return every kernel of this host, oldest first."""
        ...

    async def remove(self, kernel_id: str, reason: DeathReason) -> None:
        """End a kernel and forget it. Unknown ids are ignored."""
        ...


class Store(Protocol):
    """What must survive the process. Every method raises StoreUnavailable when the store does not answer."""

    async def add_key(self, key: KeyRecord) -> None:
        """Keep a new API key."""
        ...

    async def key(self, key_id: str) -> KeyRecord | None:
        """Return a key by id, revoked and expired ones included."""
        ...

    async def keys(self) -> list[KeyRecord]:
        """Return all keys, oldest first."""
        ...

    async def revoke_key(self, key_id: str, at: datetime) -> bool:
        """Mark a key revoked; tell whether there was such a key not yet revoked."""
        ...

    async def put_kernel(self, kernel: KernelRecord) -> None:
        """Keep or replace a kernel's record."""
        ...

    async def kernels(self) -> list[KernelRecord]:
        """Return all kernel records, oldest first."""
        ...

    async def delete_kernel(self, kernel_id: str) -> None:
        """Forget a kernel."""
        ...

    async def put_session(self, session: SessionRecord) -> None:
        """Keep or replace a session. Raises Conflict when its owner has another session at that path."""
        ...

    async def session(self, session_id: str) -> SessionRecord | None:
        """Return a session by id."""
        ...

    async def session_at(self, owner: str, path: str) -> SessionRecord | None:
        """Return the session that an owner has at a path."""
        ...

    async def sessions(self, owner: str | None = None) -> list[SessionRecord]:
        """Return an owner's sessions, or everybody's, oldest first."""
        ...

    async def delete_session(self, session_id: str) -> None:
        """Forget a session."""
        ...

    async def audit_head(self) -> AuditHead:
        """Return the newest record of the audit trail's copy."""
        ...

    async def add_audit(self, records: Sequence[AuditRecord]) -> None:
        """Keep copies of records of the audit trail. Raises Conflict when one is there already."""
        ...

    async def delete_audit(self, through: int) -> None:
        """Forget the copies of the records up to and including a number."""
        ...

    async def usage_on(self, day: date) -> list[UsageDay]:
        """Return what every principal used on a day (UTC)."""
        ...

    async def add_usage(self, usage: Sequence[UsageDay]) -> None:
        """Add to what is kept of principals' days, all or nothing; days long past are forgotten."""
        ...

    async def add_job(self, job: JobRecord) -> None:
        """Keep a new execution. Raises Conflict when its owner has used its idempotency key already."""
        ...

    async def put_job(self, job: JobRecord) -> None:
        """Keep what became of an execution, if it is still there."""
        ...

    async def job(self, job_id: str) -> JobRecord | None:
        """Return an execution by id."""
        ...

    async def job_by_key(self, owner: str, idempotency_key: str) -> JobRecord | None:
        """Return the execution that an owner asked for with a key."""
        ...

    async def jobs(self, owner: str | None = None) -> list[JobRecord]:
        """Return an owner's executions, or everybody's, newest first and without their bodies."""
        ...

    async def delete_job(self, job_id: str) -> None:
        """Forget an execution."""
        ...

    async def lose_jobs(self, at: datetime) -> int:
        """Mark what was on its way as lost: its gateway is gone. Return how many that were."""
        ...

    async def trim_jobs(self, now: datetime, owner: str | None = None, *, most: int, most_bytes: int) -> None:
        """Forget ended executions: expired ones and, of an owner's, the oldest past a number or size."""
        ...

    async def put_sandbox(self, sandbox: SandboxRecord) -> None:
        """Keep or replace a sandbox's record."""
        ...

    async def sandboxes(self) -> list[SandboxRecord]:
        """Return all sandboxes' records, oldest first."""
        ...

    async def delete_sandbox(self, sandbox_id: str) -> None:
        """Forget a sandbox."""
        ...

    async def close(self) -> None:
        """Let go of the store."""
        ...


class Authenticator(Protocol):
    """Turns a credential into a principal."""

    async def authenticate(self, token: str) -> Principal:
        """Return whose token this is. Raises Unauthorized."""
        ...

    async def valid(self, principal: Principal) -> bool:
        """Tell whether the credential behind a principal still holds (not expired, not revoked)."""
        ...

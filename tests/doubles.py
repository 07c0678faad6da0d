"""Doubles of the ports, in memory: they keep the contracts, so that what is above is tested without cells.

A `MemoryKernel` executes a language of its own: `wait` runs until it is interrupted, `print X` writes X to
stdout, `raise X` raises X, `1+1` is 2, and any other code has itself as its result.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from gateway.errors import (
    AuditUnavailable,
    BadRequest,
    Conflict,
    GatewayError,
    KernelDead,
    LimitReached,
    NotFound,
    SandboxUnavailable,
    StoreUnavailable,
)
from gateway.models import (
    AuditEvent,
    AuditHead,
    Channel,
    DeathReason,
    Execution,
    ExecutionState,
    Kernel,
    KernelRecord,
    KernelSpec,
    KeyRecord,
    Limits,
    Message,
    Origin,
    Page,
    Principal,
    Scope,
    SessionRecord,
    Usage,
    UsageDay,
    timestamp,
)
from gateway.models.jobs import JobRecord, JobStatus
from gateway.models.processes import CellProcess, Chunk, Command, Process, ProcessOutput, Snapshot
from gateway.protocol.messages import content, make

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import date

    from gateway.models import WorkspaceChoice, WorkspaceFacts
    from gateway.models.sandboxes import SandboxRecord
    from gateway.ports import Clock, ExecutionGate, KernelHandle, KernelHost, Store, Subscriber, Turn


def principal(name: str, *scopes: Scope) -> Principal:
    """Return a principal with the default scopes, or with just those given."""
    return Principal(
        name=name, key_id=f"key-{name}", scopes=frozenset(scopes or (Scope.KERNELS, Scope.EXECUTE))
    )


def kernelspec(name: str = "python3", **changes: Any) -> KernelSpec:
    """Return a kernelspec that nothing stands behind."""
    fields: dict[str, Any] = {
        "name": name,
        "argv": ("python", "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        "display_name": f"The {name} kernel",
        "language": "python",
        "resource_dir": "/nonexistent",
    }
    return KernelSpec(**fields | changes)


class ManualClock:
    """A clock that only moves when told."""

    def __init__(self) -> None:
        self._seconds = 1000.0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._seconds += seconds

    def monotonic(self) -> float:
        """Return monotonic seconds."""
        return self._seconds

    def now(self) -> datetime:
        """Return the moment in UTC."""
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._seconds)


class MemoryAudit:
    """A trail in memory; with a `failure` it admits nothing and writes nothing."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.failure: AuditUnavailable | None = None

    def record(self, event: AuditEvent) -> None:
        """Take an event."""
        self.events.append(event)

    def admit(self) -> None:
        """Let something new begin."""
        if self.failure is not None:
            raise self.failure

    async def written(self) -> None:
        """Be done, a turn of the loop later."""
        await asyncio.sleep(0)
        self.admit()


class MemoryProcesses:
    """Processes in memory: `say X` writes X and ends, `exit N` ends so, `wait` runs until it is signalled."""

    def __init__(self) -> None:
        self.known: dict[str, Process] = {}
        self.texts: dict[str, str] = {}
        self.signals: list[int] = []
        self.written: list[bytes] = []
        self.stubborn = self.paused = False

    async def start(self, command: Command, *, stdin: bool) -> Process:
        """Start one, a turn of the loop later."""
        await asyncio.sleep(0)
        self._check()
        word, _, rest = (command.command or "").partition(" ")
        if word not in {"say", "exit", "wait"}:
            raise BadRequest("It cannot be run.", reason="cannot_run")
        process = Process(
            id=f"{len(self.texts):012x}", pid=100, argv=(word, rest), state="running", started_at="then"
        )
        self.texts[process.id] = rest if word == "say" else ""
        self.known[process.id] = process
        if word != "wait":
            self._end(process.id, int(rest) if word == "exit" else 0)
        return process

    async def listing(self) -> list[Process]:
        """Return those that are known."""
        return list(self.known.values())

    async def read(self, process_id: str, *, cursor: int, wait_s: float) -> ProcessOutput:
        """Return all of the text after a cursor."""
        self._find(process_id)
        text = self.texts[process_id][cursor:]
        if not text and self.known[process_id].state == "running":
            await asyncio.sleep(min(wait_s, 0.01))
        return ProcessOutput(
            chunks=[Chunk(stream="stdout", text=text)] if text else [],
            cursor=cursor + len(text),
            process=self._find(process_id),
        )

    async def write(self, process_id: str, data: bytes, *, eof: bool = False) -> None:
        """Note what is written."""
        self._find(process_id)
        self.written.append(data)

    async def signal(self, process_id: str, number: int) -> None:
        """Note a signal, and end who is not stubborn."""
        self._check()
        self._find(process_id)
        self.signals.append(number)
        if not self.stubborn or number == 9:
            self._end(process_id, -number)

    async def remove(self, process_id: str) -> None:
        """Forget one."""
        self._check()
        self._find(process_id)
        del self.known[process_id]

    async def tree(self) -> list[CellProcess]:
        """Return nothing."""
        return []

    async def kill(self, pid: int, number: int) -> None:
        """Note a signal."""
        self.signals.append(number)

    async def snapshot(self, *, packages: bool = False) -> Snapshot:
        """Refuse: there is no system."""
        raise SandboxUnavailable("There is no attendant.", reason="attendant_gone")

    def _find(self, process_id: str) -> Process:
        if process_id not in self.known:
            raise NotFound("Process does not exist.")
        return self.known[process_id]

    def _end(self, process_id: str, code: int) -> None:
        update = {"state": "ended", "exit_code": code, "ended_at": "later"}
        self.known[process_id] = self.known[process_id].model_copy(update=update)

    def _check(self) -> None:
        if self.paused:
            raise Conflict("The kernel is paused.", reason="paused")


class MemoryKernel:
    """A kernel that answers from memory, a turn of the loop later, one execution at a time."""

    def __init__(
        self,
        kernel_id: str,
        owner: str,
        spec: KernelSpec,
        limits: Limits,
        clock: Clock,
        *,
        env: Mapping[str, str] | None = None,
        gate: ExecutionGate | None = None,
    ) -> None:
        self.gate = gate
        self.cpu_s = 1.0
        self.total = "2"
        self.id = kernel_id
        self.owner = owner
        self.spec_name = spec.name
        self.limits = limits
        self.env = dict(env or {})
        self.secrets: dict[str, SecretStr] = {}
        self.state = ExecutionState.IDLE
        self.death: DeathReason | None = None
        self.sent: list[tuple[Message, float | None]] = []
        self.origins: list[Origin | None] = []
        self.paused = False
        self.interrupts = 0
        self.restarts = 0
        self.beside = MemoryProcesses()
        self.generation = 1
        self._profile = spec.profile
        self._clock = clock
        self._created = self._active = clock.monotonic()
        self._started_at = clock.now()
        self._executions = 0
        self._subscribers: dict[int, tuple[Subscriber, bool]] = {}
        self._waiting: deque[tuple[Message, Subscriber]] = deque()
        self._running: tuple[Message, Subscriber] | None = None
        self._late: set[str] = set()

    @property
    def connections(self) -> int:
        """How many sockets are attached."""
        return sum(counts for _, counts in self._subscribers.values())

    @property
    def subscribers(self) -> int:
        """How many subscribers are attached, sockets or not."""
        return len(self._subscribers)

    def idle_for_s(self) -> float:
        """Return seconds since the last activity; 0 while busy."""
        return 0.0 if self.state is ExecutionState.BUSY else self._clock.monotonic() - self._active

    def age_s(self) -> float:
        """Return seconds since the kernel was created."""
        return self._clock.monotonic() - self._created

    def model(self) -> Kernel:
        """Return the kernel as the REST API shows it."""
        return Kernel(
            id=self.id,
            name=self.spec_name,
            last_activity=timestamp(self._started_at + timedelta(seconds=self._active - self._created)),
            execution_state=self.state,
            connections=self.connections,
            reason=self.death,
            owner=self.owner,
            profile=self._profile,
            started_at=timestamp(self._started_at),
            executions=self._executions,
            limits=self.limits,
        )

    def attach(
        self,
        subscriber: Subscriber,
        *,
        counts: bool = True,
        page: Page | None = None,
        current: bool = False,
    ) -> list[Message]:
        """Deliver messages to a subscriber; nothing is kept for anybody."""
        self._subscribers[id(subscriber)] = (subscriber, counts)
        return []

    def confirm(self, subscriber: Subscriber, offset: int) -> None:
        """Take no note."""

    def detach(self, subscriber: Subscriber) -> None:
        """Stop delivering to a subscriber."""
        self._subscribers.pop(id(subscriber), None)

    def send(
        self,
        message: Message,
        subscriber: Subscriber,
        *,
        timeout_s: float | None = None,
        origin: Origin | None = None,
    ) -> None:
        """Take a client's message; `timeout_s` and `origin` are only noted, see `expire`."""
        if len(self._waiting) >= 100:
            raise LimitReached("Too many requests wait for this kernel.")
        if self.gate is not None and message.msg_type == "execute_request":
            self.gate.admit(self.owner, self.id)
        self.sent.append((message, timeout_s))
        self.origins.append(origin)
        self._active = self._clock.monotonic()
        if message.channel == "stdin":
            return
        self._waiting.append((message, subscriber))
        asyncio.get_running_loop().call_soon(self._advance)

    def timed_out(self, msg_id: str) -> bool:
        """Tell whether this execution was interrupted by its deadline."""
        return msg_id in self._late

    async def interrupt(self) -> None:
        """End what runs with a KeyboardInterrupt."""
        if self.state is ExecutionState.DEAD:
            raise KernelDead("The kernel is dead.", reason=self.death)
        self.interrupts += 1
        if self._running is not None:
            self._finish("KeyboardInterrupt")

    async def pause(self) -> None:
        """Only note it."""
        self.paused = True

    async def resume(self) -> None:
        """Only note it."""
        self.paused = False

    async def usage(self) -> Usage:
        """Return figures that nobody measured."""
        return Usage(memory_bytes=1, cpu_s=self.cpu_s, pids=1)

    def processes(self) -> MemoryProcesses:
        """Return the processes beside it."""
        if self.state is ExecutionState.DEAD:
            raise KernelDead("The kernel is dead.")
        return self.beside

    def touch(self) -> None:
        """Note activity."""
        self._active = self._clock.monotonic()

    def executions(self) -> list[Execution]:
        """Return none: what runs here has ended before anybody could ask."""
        return []

    async def interrupt_execution(self, execution_id: str) -> None:
        """Interrupt what runs, or take back what waits. Raises NotFound."""
        if self._running is not None and self._running[0].msg_id == execution_id:
            await self.interrupt()
            return
        for waiting in self._waiting:
            if waiting[0].msg_id == execution_id:
                self._waiting.remove(waiting)
                self._release(waiting[0])
                self._reply(*waiting, "execute_reply", {"status": "aborted"})
                self._publish(waiting[0], "status", {"execution_state": "idle"})
                return
        raise NotFound(f"Execution does not exist: {execution_id}")

    async def cancel_execution(self, execution_id: str) -> None:
        """Raise NotFound."""
        raise NotFound(f"Execution does not exist: {execution_id}")

    async def restart(self, turn: Turn | None = None) -> None:
        """Answer what is in flight, and be as new."""
        async with turn or nullcontext():
            self.restarts += 1
        self.generation += 1
        self._answer_all(DeathReason.KILLED)
        self.state = ExecutionState.IDLE
        self._executions = 0

    async def shutdown(self, reason: DeathReason) -> None:
        """End for good."""
        self.die(reason)
        for subscriber, _ in list(self._subscribers.values()):
            subscriber.ended(reason)
        self._subscribers.clear()

    def die(self, reason: DeathReason) -> None:
        """Die as a crashed kernel does: what is in flight is answered, and the kernel stays to be seen."""
        self.state = ExecutionState.DEAD
        self.death = reason
        self._answer_all(reason)

    def expire(self) -> None:
        """Let the deadline of what runs pass."""
        assert self._running is not None
        self._late.add(self._running[0].msg_id)
        self._finish("KeyboardInterrupt")

    def _advance(self) -> None:
        if self._running is not None or not self._waiting:
            return
        message, subscriber = self._waiting.popleft()
        if self.state is ExecutionState.DEAD:
            self._answer_dead(message, subscriber, self.death or DeathReason.KILLED)
        elif message.msg_type != "execute_request":
            self._publish(message, "status", {"execution_state": "busy"})
            reply = message.msg_type.replace("_request", "_reply")
            self._reply(message, subscriber, reply, {"status": "ok"})
            self._publish(message, "status", {"execution_state": "idle"})
        else:
            self._execute(message, subscriber)
        self._advance()

    def _execute(self, message: Message, subscriber: Subscriber) -> None:
        self.state = ExecutionState.BUSY
        self._running = (message, subscriber)
        self._executions += 1
        code = str(content(message)["code"])
        self._publish(message, "status", {"execution_state": "busy"})
        self._publish(message, "execute_input", {"code": code, "execution_count": self._executions})
        word, _, rest = code.partition(" ")
        if word == "wait":
            return
        if word == "print":
            self._publish(message, "stream", {"name": "stdout", "text": rest + "\n"})
        elif word != "raise":
            text = self.total if code == "1+1" else code
            result = {"execution_count": self._executions, "data": {"text/plain": text}, "metadata": {}}
            self._publish(message, "execute_result", result)
        self._finish(rest if word == "raise" else None)

    def _finish(self, ename: str | None) -> None:
        assert self._running is not None
        message, subscriber = self._running
        error: dict[str, Any] = {"ename": ename, "evalue": "", "traceback": []}
        reply: dict[str, Any] = {"status": "ok", "execution_count": self._executions, "user_expressions": {}}
        if ename is not None:
            self._publish(message, "error", error)
            reply = {"status": "error", "execution_count": self._executions} | error
        self._reply(message, subscriber, "execute_reply", reply)
        self._running = None
        self._release(message)
        self.state = ExecutionState.IDLE
        self._active = self._clock.monotonic()
        self._publish(message, "status", {"execution_state": "idle"})
        asyncio.get_running_loop().call_soon(self._advance)

    def _answer_all(self, reason: DeathReason) -> None:
        in_flight = [*([self._running] if self._running else []), *self._waiting]
        self._running = None
        self._waiting.clear()
        for message, subscriber in in_flight:
            self._answer_dead(message, subscriber, reason)

    def _answer_dead(self, message: Message, subscriber: Subscriber, reason: DeathReason) -> None:
        error = {"ename": "KernelDied", "evalue": f"The kernel died: {reason}.", "traceback": []}
        kind = message.msg_type.replace("_request", "_reply")
        self._release(message)
        self._publish(message, "error", error, reason)
        self._reply(message, subscriber, kind, {"status": "error"} | error, reason)
        self._publish(message, "status", {"execution_state": "idle"}, reason)

    def _release(self, message: Message) -> None:
        if self.gate is not None and message.msg_type == "execute_request":
            self.gate.release(self.owner, self.id, len(str(content(message)["code"])))

    def _publish(
        self, parent: Message, kind: str, body: Mapping[str, Any], reason: DeathReason | None = None
    ) -> None:
        message = self._message("iopub", parent, kind, body, reason)
        for subscriber, _ in list(self._subscribers.values()):
            subscriber.deliver(message)

    def _reply(
        self,
        parent: Message,
        subscriber: Subscriber,
        kind: str,
        body: Mapping[str, Any],
        reason: DeathReason | None = None,
    ) -> None:
        if id(subscriber) in self._subscribers:
            subscriber.deliver(self._message(parent.channel, parent, kind, body, reason))

    def _message(
        self,
        channel: Channel,
        parent: Message,
        kind: str,
        body: Mapping[str, Any],
        reason: DeathReason | None,
    ) -> Message:
        metadata = {} if reason is None else {"cellblock": {"reason": reason}}
        message = make(channel, kind, body, parent=parent, session=self.id, metadata=metadata)
        message.authored = reason is not None
        return message


class MemoryHost:
    """A host of memory kernels. `hold` keeps starts waiting, `failure` makes them fail."""

    def __init__(
        self,
        clock: Clock,
        *,
        specs: Sequence[KernelSpec] = (kernelspec(),),
        limits: Limits | None = None,
        gate: ExecutionGate | None = None,
    ) -> None:
        self.clock = clock
        self.gate = gate
        self.kernels: dict[str, MemoryKernel] = {}
        self.removed: list[tuple[str, DeathReason]] = []
        self.stubborn: set[str] = set()
        self.failure: GatewayError | None = None
        self.hold: asyncio.Event | None = None
        self.starts = self.trials = 0
        self.total = "2"
        self.trial_kernels: list[MemoryKernel] = []
        self._specs = {spec.name: spec for spec in specs}
        self._limits = limits or Limits()

    async def specs(self) -> Mapping[str, KernelSpec]:
        """Return the kernelspecs, by name."""
        return self._specs

    def default_spec(self) -> str:
        """Return the first kernelspec's name."""
        return next(iter(self._specs))

    def profile_limits(self, profile: str) -> Limits:
        """Return the same limits for every profile."""
        return self._limits

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
        """Start a kernel after a turn of the loop, or when `hold` is set."""
        async with turn:
            self.starts += 1
            await asyncio.sleep(0)
            if self.hold is not None:
                await self.hold.wait()
        if self.failure is not None:
            raise self.failure
        kernel = MemoryKernel(kernel_id, owner, spec, limits, self.clock, env=env, gate=self.gate)
        kernel.secrets = dict(secrets)
        self.kernels[kernel_id] = kernel
        return kernel

    @asynccontextmanager
    async def trial(self, spec: KernelSpec, limits: Limits) -> AsyncIterator[KernelHandle]:
        """Give a kernel that is in no list, after a turn of the loop, or when `hold` is set."""
        self.trials += 1
        await asyncio.sleep(0)
        if self.hold is not None:
            await self.hold.wait()
        if self.failure is not None:
            raise self.failure
        kernel = MemoryKernel("trial", "", spec, limits, self.clock)
        kernel.total = self.total
        self.trial_kernels.append(kernel)
        try:
            yield kernel
        finally:
            await kernel.shutdown(DeathReason.SHUTDOWN)

    async def workspaces(self, owner: str) -> Sequence[WorkspaceFacts]:
        """Return none: what is in memory does not persist."""
        return []

    async def delete_workspace(self, owner: str, name: str) -> None:
        """Refuse: there is none."""
        raise NotFound(f"There is no workspace '{name}'.")

    def get(self, kernel_id: str) -> KernelHandle | None:
        """Return a kernel by id."""
        return self.kernels.get(kernel_id)

    def all(self) -> Sequence[KernelHandle]:
        """Return every kernel, oldest first."""
        return list(self.kernels.values())

    async def remove(self, kernel_id: str, reason: DeathReason) -> None:
        """End a kernel and forget it; those in `stubborn` refuse."""
        await asyncio.sleep(0)
        if kernel_id in self.stubborn:
            raise OSError("The kernel does not end.")
        kernel = self.kernels.pop(kernel_id, None)
        if kernel is not None:
            self.removed.append((kernel_id, reason))
            await kernel.shutdown(reason)


class MemoryStore:
    """A store in memory; with `broken` set it does not answer. Every method gives the loop a turn first."""

    def __init__(self) -> None:
        self.broken = False
        self.looks = 0
        self._keys: dict[str, KeyRecord] = {}
        self._kernels: dict[str, KernelRecord] = {}
        self._sessions: dict[str, SessionRecord] = {}
        self._usage: dict[tuple[date, str], UsageDay] = {}
        self._sandboxes: dict[str, SandboxRecord] = {}
        self._jobs: dict[str, JobRecord] = {}

    async def add_job(self, job: JobRecord) -> None:
        """Keep a new job. Raises Conflict on a key that its owner has used."""
        await self._turn()
        if job.idempotency_key and await self.job_by_key(job.owner, job.idempotency_key):
            raise Conflict("The idempotency key is in use.")
        self._jobs[job.id] = job

    async def put_job(self, job: JobRecord) -> None:
        """Keep what became of a job that is there."""
        await self._turn()
        if job.id in self._jobs:
            self._jobs[job.id] = job

    async def job(self, job_id: str) -> JobRecord | None:
        """Return a job by id."""
        await self._turn()
        return self._jobs.get(job_id)

    async def job_by_key(self, owner: str, idempotency_key: str) -> JobRecord | None:
        """Return the job that an owner asked for with a key."""
        await self._turn()
        wanted = owner, idempotency_key
        return next((j for j in self._jobs.values() if (j.owner, j.idempotency_key) == wanted), None)

    async def jobs(self, owner: str | None = None) -> list[JobRecord]:
        """Return an owner's jobs, or everybody's, newest first."""
        await self._turn()
        return [job for job in reversed(self._jobs.values()) if owner in {None, job.owner}]

    async def delete_job(self, job_id: str) -> None:
        """Forget a job."""
        await self._turn()
        self._jobs.pop(job_id, None)

    async def lose_jobs(self, at: datetime) -> int:
        """Mark what was on its way as lost."""
        await self._turn()
        lost = [job for job in self._jobs.values() if not job.status.ended]
        for job in lost:
            self._jobs[job.id] = job.model_copy(update={"status": JobStatus.LOST, "ended_at": at})
        return len(lost)

    async def trim_jobs(self, now: datetime, owner: str | None = None, *, most: int, most_bytes: int) -> None:
        """Forget jobs that have expired, and an owner's oldest past a number; sizes are not looked at."""
        await self._turn()
        ended = [job for job in await self.jobs(owner) if job.status.ended]
        for job in [job for job in ended if job.expires_at <= now] + (ended[most:] if owner else []):
            self._jobs.pop(job.id, None)

    async def add_key(self, key: KeyRecord) -> None:
        """Keep a new API key."""
        await self._turn()
        self._keys[key.id] = key

    async def key(self, key_id: str) -> KeyRecord | None:
        """Return a key by id."""
        await self._turn()
        return self._keys.get(key_id)

    async def keys(self) -> list[KeyRecord]:
        """Return all keys, oldest first."""
        await self._turn()
        return list(self._keys.values())

    async def revoke_key(self, key_id: str, at: datetime) -> bool:
        """Mark a key revoked; tell whether it was not yet."""
        await self._turn()
        key = self._keys.get(key_id)
        if key is None or key.revoked_at is not None:
            return False
        self._keys[key_id] = key.model_copy(update={"revoked_at": at})
        return True

    async def put_kernel(self, kernel: KernelRecord) -> None:
        """Keep or replace a kernel's record."""
        await self._turn()
        self._kernels[kernel.id] = kernel

    async def kernels(self) -> list[KernelRecord]:
        """Return all kernel records, oldest first."""
        await self._turn()
        return list(self._kernels.values())

    async def delete_kernel(self, kernel_id: str) -> None:
        """Forget a kernel."""
        await self._turn()
        self._kernels.pop(kernel_id, None)

    async def put_session(self, session: SessionRecord) -> None:
        """Keep or replace a session. Raises Conflict on a path that its owner's other session has."""
        await self._turn()
        for other in self._sessions.values():
            if (other.owner, other.path) == (session.owner, session.path) and other.id != session.id:
                raise Conflict(f"There is a session at {session.path} already.")
        self._sessions[session.id] = session

    async def session(self, session_id: str) -> SessionRecord | None:
        """Return a session by id."""
        await self._turn()
        return self._sessions.get(session_id)

    async def session_at(self, owner: str, path: str) -> SessionRecord | None:
        """Return the session that an owner has at a path."""
        await self._turn()
        mine = (each for each in self._sessions.values() if (each.owner, each.path) == (owner, path))
        return next(mine, None)

    async def sessions(self, owner: str | None = None) -> list[SessionRecord]:
        """Return an owner's sessions, or everybody's, oldest first."""
        await self._turn()
        return [session for session in self._sessions.values() if owner in {None, session.owner}]

    async def delete_session(self, session_id: str) -> None:
        """Forget a session."""
        await self._turn()
        self._sessions.pop(session_id, None)

    async def put_sandbox(self, sandbox: SandboxRecord) -> None:
        """Keep or replace a sandbox's record."""
        await self._turn()
        self._sandboxes[sandbox.id] = sandbox

    async def sandboxes(self) -> list[SandboxRecord]:
        """Return all sandboxes, oldest first."""
        await self._turn()
        return list(self._sandboxes.values())

    async def delete_sandbox(self, sandbox_id: str) -> None:
        """Forget a sandbox."""
        await self._turn()
        self._sandboxes.pop(sandbox_id, None)

    async def audit_head(self) -> AuditHead:
        """Return the head of a trail of which no copy is kept."""
        self.looks += 1
        await self._turn()
        return AuditHead()

    async def usage_on(self, day: date) -> list[UsageDay]:
        """Return what every principal used on a day."""
        await self._turn()
        return [used for (when, _), used in self._usage.items() if when == day]

    async def add_usage(self, usage: Sequence[UsageDay]) -> None:
        """Add to what is kept."""
        await self._turn()
        for used in usage:
            old = self._usage.get((used.day, used.principal))
            cpu_s, output_bytes = (old.cpu_s, old.output_bytes) if old else (0.0, 0)
            total = {"cpu_s": cpu_s + used.cpu_s, "output_bytes": output_bytes + used.output_bytes}
            self._usage[used.day, used.principal] = used.model_copy(update=total)

    async def close(self) -> None:
        """Let go of nothing."""

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if self.broken:
            raise StoreUnavailable("The store does not answer.")


if TYPE_CHECKING:  # the doubles keep the ports' shapes, or mypy says so
    _clock: Clock = ManualClock()
    _host: KernelHost = MemoryHost(_clock)
    _kernel: KernelHandle = MemoryKernel("", "", kernelspec(), Limits(), _clock)
    _store: Store = MemoryStore()

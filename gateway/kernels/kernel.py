"""One kernel: starting → idle ⇄ busy → dead, with restarts, pauses and deadlines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator, Mapping
from datetime import datetime
from typing import Any

import structlog
from pydantic import SecretStr

from gateway.errors import Conflict, GatewayError, KernelDead, KernelStartFailed, SandboxUnavailable
from gateway.kernels.advice import Advice
from gateway.kernels.conversation import Conversation
from gateway.kernels.files import CellFiles, owner_hash
from gateway.kernels.lives import Lives
from gateway.kernels.pool import WarmPool
from gateway.kernels.processes import CellProcesses
from gateway.kernels.requests import Pending
from gateway.kernels.running import Listener, RunningCell, Wiring
from gateway.kernels.toolcalls import Desks
from gateway.models import (
    AuditAction,
    AuditEvent,
    DeathReason,
    Execution,
    ExecutionState,
    Kernel,
    KernelSpec,
    Limits,
    Message,
    Origin,
    Page,
    Start,
    Usage,
    WorkspaceChoice,
    timestamp,
)
from gateway.policy import CodePolicy
from gateway.ports import (
    Audit,
    Clock,
    ExecutionGate,
    ExecutionObserver,
    Subscriber,
    ToolDesk,
    Turn,
)
from gateway.protocol.messages import make
from gateway.sandbox.wire import CellFacts, Ending, LaunchOrder, WorkspaceOrder
from gateway.telemetry import Metrics

log = structlog.get_logger()

# how often, and after how long each, a cell is told to go on whose pause has failed
UNFREEZE_TRIES, UNFREEZE_S = 30, 1.0


class LocalKernel:
    """A kernel in a cell of this machine: a `ports.KernelHandle`. Owns its running cell and its tasks."""

    def __init__(
        self,
        *,
        kernel_id: str,
        owner: str,
        spec: KernelSpec,
        env: Mapping[str, str],
        secrets: Mapping[str, SecretStr],
        secret_names: tuple[str, ...],
        limits: Limits,
        workspace: WorkspaceChoice | None,
        created_at: datetime,
        wiring: Wiring,
        pool: WarmPool | None,
        clock: Clock,
        metrics: Metrics,
        max_pending: int,
        replay_bytes: int,
        observer: ExecutionObserver,
        gate: ExecutionGate,
        audit: Audit,
        policy: CodePolicy,
    ) -> None:
        self._audit = audit
        self._pool = pool
        self._id = kernel_id
        self._owner = owner
        self._spec = spec
        self._env = dict(env)
        self._secrets = dict(secrets)
        # of a kernel that was adopted: they went with the gateway that was told them
        self._lost = tuple(name for name in secret_names if name not in secrets)
        self._limits = limits
        self._workspace = workspace
        self._wiring = wiring
        self._clock = clock
        self._metrics = metrics
        self._created_at = created_at
        self._born = clock.monotonic()
        self._lives = Lives(clock)
        self._generation = 0
        self._start: Start | None = None
        self._phase = ExecutionState.STARTING
        self._paused = False
        self._death: DeathReason | None = None
        self._expected: DeathReason | None = None
        self._running: RunningCell | None = None
        self._lifecycle = asyncio.Lock()
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = log.bind(kernel=kernel_id, owner=owner)
        self._conversation = Conversation(
            kernel_id=kernel_id,
            owner=owner,
            limits=limits,
            session=wiring.session,
            max_pending=max_pending,
            replay_bytes=replay_bytes,
            clock=clock,
            observer=observer,
            gate=gate,
            audit=audit,
            advice=Advice(policy, audit, kernel_id),
            metrics=metrics,
            transmit=self._transmit,
            on_overrun=lambda pending: self._spawn(self._enforce(pending)),
        )
        self._desks = Desks()
        self._listener = Listener(
            on_message=self._conversation.receive,
            on_too_large=self._conversation.cut,
            on_exit=self._exited,
            on_lost=self._broken,
            desks=self._desks,
        )

    # -- what it is ---------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The public kernel id."""
        return self._id

    @property
    def owner(self) -> str:
        """The owner's name."""
        return self._owner

    @property
    def spec_name(self) -> str:
        """The kernelspec's name."""
        return self._spec.name

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self._limits

    @property
    def death(self) -> DeathReason | None:
        """Why the kernel died last."""
        return self._death

    @property
    def generation(self) -> int:
        """Since which of its starts the kernel runs."""
        return self._generation

    @property
    def connections(self) -> int:
        """How many client sockets are attached."""
        return self._conversation.connections

    @property
    def state(self) -> ExecutionState:
        """What the kernel is doing."""
        if self._phase is not ExecutionState.IDLE:
            return self._phase
        return ExecutionState.BUSY if self._conversation.busy else ExecutionState.IDLE

    def idle_for_s(self) -> float:
        """Return seconds since the last activity of a user's; 0 while busy, unless it is paused."""
        if self.state is ExecutionState.BUSY and not self._paused:
            return 0.0
        return self._clock.monotonic() - self._conversation.active_at

    def age_s(self) -> float:
        """Return seconds since the kernel was created, by an earlier gateway perhaps."""
        # what the wall clock says may jump, and would end kernels before their time
        return self._clock.monotonic() - self._born

    def model(self) -> Kernel:
        """Return the kernel as the REST API shows it."""
        return Kernel(
            id=self._id,
            name=self._spec.name,
            last_activity=timestamp(self._conversation.last_activity),
            execution_state=self.state,
            connections=self.connections,
            reason=self._death,
            owner=self._owner,
            profile=self._spec.profile,
            started_at=timestamp(self._created_at),
            executions=self._conversation.executions,
            paused=self._paused,
            limits=self._limits,
            workspace=self._workspace.name if self._workspace else None,
            start=self._start,
        )

    async def usage(self) -> Usage:
        """Return what the cell uses now, and at most so far. Raises KernelDead."""
        return await self._live().usage()

    # -- its life -----------------------------------------------------------------------------------------

    async def start(self, turn: Turn) -> Start:
        """Have a cell and wait until the kernel answers; tell how it was started.

        Raises SandboxUnavailable, KernelStartFailed, and what `turn` raises.
        """
        async with self._lifecycle:
            return await self._launch(turn)

    async def adopt(self, facts: CellFacts, pidfd: int) -> None:
        """Take over a kernel that an earlier gateway left running. Raises KernelStartFailed."""
        self._born = self._clock.monotonic() - facts.age_s
        running = RunningCell(
            self._wiring, facts, pidfd, self._listener, limits=self._limits, clock=self._clock
        )
        self._running = running
        self._conversation.inherit()
        try:
            await running.reconnect()
        except BaseException:
            self._running = None
            running.close()
            raise
        self._be_up(running)
        # until this comes back the kernel is at work for its former gateway's clients
        probe = make("shell", "kernel_info_request", {}, parent=None, session=self._wiring.session)
        self._conversation.probe(probe)
        self._conversation.open()
        if facts.attended:
            # what an earlier gateway has started waits with its output, and what it was asked for an answer
            self._spawn(self._meet(running, briefly=True))

    async def interrupt(self) -> None:
        """Interrupt what runs. Raises KernelDead."""
        running = self._live()
        if self._spec.interrupt_mode == "message":
            request = make("control", "interrupt_request", {}, parent=None, session=self._wiring.session)
            running.send(request)
        else:
            await running.interrupt()

    async def restart(self, turn: Turn) -> None:
        """Start afresh under the same id; see `ports.KernelHandle.restart`."""
        self._check_secrets()
        await self._replace(DeathReason.KILLED, turn=turn)
        self._death = None

    async def pause(self) -> None:
        """Freeze the whole cell, and with it the clocks of its deadlines. Raises KernelDead."""
        async with self._lifecycle:
            running = self._live()
            self._conversation.freeze()
            self._paused = True
            try:
                await running.pause()
            except BaseException:
                self._go_on()
                # a warden that did not answer in time may do it all the same, later
                self._spawn(self._unfreeze(running))
                raise

    async def _unfreeze(self, running: RunningCell) -> None:
        for _ in range(UNFREEZE_TRIES):
            await asyncio.sleep(UNFREEZE_S)
            async with self._lifecycle:
                if running is not self._running or self._paused:
                    return
                with contextlib.suppress(GatewayError):
                    await running.resume()
                    return

    async def resume(self) -> None:
        """Let a paused cell go on. Raises KernelDead."""
        async with self._lifecycle:
            running = self._live()
            await running.resume()
            self._go_on()

    async def shutdown(self, reason: DeathReason) -> None:
        """End the kernel and all that it started; its subscribers are told."""
        self._closed = True
        self._expected = reason
        if self._running:
            # also ends a start that is under way
            await self._running.end()
        async with self._lifecycle:
            if self._running:
                await self._running.end()
            self._settle(reason)
        await self._cancel_tasks()
        self._conversation.say_ended(reason)

    def _workspace_order(self) -> WorkspaceOrder | None:
        if self._workspace is None:
            return None
        return WorkspaceOrder(owner=owner_hash(self._owner), **self._workspace.model_dump())

    def files(self) -> CellFiles:
        """Return the way to the files of its home. Raises KernelDead."""
        if self._running is None:
            raise KernelDead("The kernel is not running, and its home is gone.", reason=self._death)
        return CellFiles(self._wiring.link, self._running.facts.cell)

    def processes(self) -> CellProcesses:
        """Return the way to the processes of its cell. Raises KernelDead."""
        return self._live().processes

    @contextlib.contextmanager
    def serve_tools(self, desk: ToolDesk) -> Iterator[None]:
        """Have a desk answer what code in the cell asks of tools; see `ports.KernelHandle.serve_tools`."""
        with self._desks.with_one(desk):
            if self._running:
                self._spawn(self._meet(self._running))
            try:
                yield
            finally:
                if self._running:
                    self._running.processes.tools.withdraw(desk)

    async def _meet(self, running: RunningCell, *, briefly: bool = False) -> None:
        """Talk to a cell's attendant, so that calls of tools are heard; without one there are none.

        Briefly: only as long as there is something to hear.
        """
        try:
            await running.processes.open()
        except GatewayError as error:
            self._log.info("no attendant", cell=running.facts.cell, error=error.message)
        else:
            if briefly and not running.processes.busy and not self._desks:
                running.processes.rest()

    def touch(self) -> None:
        """Note activity of its owner's: its idle time begins anew."""
        self._conversation.touch()

    async def leave(self) -> None:
        """Let go of the kernel without ending it, so that the next gateway may adopt it."""
        self._closed = True
        await self._cancel_tasks()
        if self._running:
            self._running.close()
        self._conversation.drop()

    async def _launch(self, turn: Turn) -> Start:
        self._check_open()
        self._check_secrets()
        self._expected = None
        revealed = {name: secret.get_secret_value() for name, secret in self._secrets.items()}
        order = LaunchOrder(
            kernel_id=self._id,
            profile=self._spec.profile,
            argv=self._spec.argv,
            environment=self._spec.environment,
            env={**self._spec.env, **self._env, **revealed},
            limits=self._limits,
            workspace=self._workspace_order(),
            age_s=self.age_s(),
        )
        begun = self._clock.monotonic()
        running = await self._claim(order)
        start: Start = "warm" if running else "cold"
        if running is None:
            async with turn:
                running = await self._launch_cold(order)
        self._running, self._start = running, start
        self._metrics.kernel_start_seconds.observe(self._clock.monotonic() - begun)
        self._be_up(running)
        facts = running.facts
        self._log.info("kernel ready", cell=facts.cell, landlock=facts.landlock, start=start)
        self._conversation.open()
        return start

    async def _claim(self, order: LaunchOrder) -> RunningCell | None:
        if self._pool is None:
            return None
        running = await self._pool.claim(self._spec, order, self._listener, secrets=self._secrets)
        if running and self._closed:
            await running.end()
            self._check_open()
        return running

    async def _launch_cold(self, order: LaunchOrder) -> RunningCell:
        running = await RunningCell.launch(self._wiring, order, self._listener, self._clock)
        self._running = running
        try:
            async with running.or_end(secret.get_secret_value() for secret in self._secrets.values()):
                self._check_open()
                await running.ready()
        except BaseException:
            self._running = None
            raise
        return running

    async def _replace(self, reason: DeathReason, *, turn: Turn | None = None) -> None:
        """End the cell, answer for it, launch another. On failure the kernel is dead, and that is raised.

        A restart that was asked for, which has a turn, forgets the output of before; one that came over the
        user does not.
        """
        async with self._lifecycle:
            self._check_open()
            running, self._running = self._running, None
            self._phase = ExecutionState.RESTARTING
            self._death = reason
            if reason is DeathReason.TIMEOUT:
                self._mourn(reason)
            self._conversation.close()
            if running:
                await running.end()
            await self._begin_again(reason, turn=turn, or_else=DeathReason.CRASHED)

    async def _begin_again(self, reason: DeathReason, *, turn: Turn | None, or_else: DeathReason) -> None:
        """Answer for the cell that has ended, and launch another; where that fails the kernel is dead."""
        self._go_on()
        if turn:
            self._conversation.forget()
        self._conversation.refuse_all(reason)
        if not turn:
            # JupyterLab takes it for a death, says so, and connects anew; who asked for it knows
            self._conversation.say_state(ExecutionState.RESTARTING)
        try:
            await self._launch(turn or contextlib.nullcontext())
        except BaseException:
            self._settle(or_else)
            raise
        self._conversation.say_state(ExecutionState.IDLE)

    def _be_up(self, running: RunningCell) -> None:
        self._phase = ExecutionState.IDLE
        self._generation += 1
        self._lives.begun()
        if self._desks:
            self._spawn(self._meet(running))
        if not running.alive:
            # it died while nobody was told
            self._exited(running)

    def _exited(self, running: RunningCell) -> None:
        if running is self._running and self._phase is ExecutionState.IDLE and not self._closed:
            self._spawn(self._bury(running))

    def _broken(self, running: RunningCell, reason: str) -> None:
        """End a kernel that broke off one of its connections: it could not be served, only waited for."""
        if running is self._running and self._phase is ExecutionState.IDLE and not self._closed:
            self._log.warning("kernel broke its connection", reason=reason)
            self._conversation.notice(f"{reason} The kernel is ended.", None)
            self._spawn(self._bury(running))

    async def _bury(self, running: RunningCell) -> None:
        async with self._lifecycle:
            if self._running is not running:
                return
            ending = await running.end()
            reason = self._expected or reason_of(ending)
            self._log.warning("kernel died", reason=reason.value, exit_code=ending.exit_code)
            self._lives.ended()
            if not self._starts_afresh():
                self._settle(reason)
                return
            self._running = None
            self._phase = ExecutionState.RESTARTING
            self._conversation.close()
            try:
                await self._begin_again(reason, turn=None, or_else=reason)
            except GatewayError as error:
                if not self._closed:
                    self._log.error("restart after a death failed", error=error.message)
            else:
                self._note_death(reason)

    def _starts_afresh(self) -> bool:
        """Tell whether a dead kernel is started again by itself, as Jupyter's are: for clients attached."""
        meant_to_end = self._expected is not None or self._closed or self._lost
        return bool(self._conversation.connections and not meant_to_end and not self._lives.spent)

    def _settle(self, reason: DeathReason) -> None:
        """Be dead: nothing runs, everything that was asked is answered, everybody attached knows."""
        already = self._phase is ExecutionState.DEAD
        self._running = None
        self._phase = ExecutionState.DEAD
        self._conversation.close()
        self._go_on()
        if not already:
            self._note_death(reason)
        self._conversation.refuse_all(reason)
        if not already:
            self._conversation.say_state(ExecutionState.DEAD)

    def _note_death(self, reason: DeathReason) -> None:
        self._death = reason
        self._metrics.kernel_deaths.labels(reason.value).inc()
        if not self._closed:
            self._mourn(reason)

    def _mourn(self, reason: DeathReason) -> None:
        """Record a death that nobody asked for: what is asked for is recorded where it is asked."""
        self._audit.record(
            AuditEvent(
                action=AuditAction.KERNEL_DIE,
                door="gateway",
                kernel_id=self._id,
                reason=reason.value,
                extra={"owner": self._owner},
            )
        )

    def _go_on(self) -> None:
        self._paused = False
        self._conversation.thaw()

    # -- executions ---------------------------------------------------------------------------------------

    def executions(self) -> list[Execution]:
        """List the executions that have not ended, oldest first."""
        return self._conversation.listing()

    async def interrupt_execution(self, execution_id: str) -> None:
        """Interrupt a running execution, or take back a queued one. Raises NotFound, KernelDead."""
        pending = self._conversation.pending(execution_id)
        if pending.held:
            self._conversation.cancel(pending)
        else:
            await self.interrupt()

    async def cancel_execution(self, execution_id: str) -> None:
        """End an execution: interrupt it, and when it does not stop within the grace, restart the kernel.

        Raises:
            NotFound: there is no such execution.
            Conflict: the kernel is paused; resume it, or delete it.
        """
        pending = self._conversation.pending(execution_id)
        if self._paused and not pending.held:
            raise Conflict("The kernel is paused: resume it, or delete it.")
        await self.interrupt_execution(execution_id)
        if not await self._stopped(pending):
            await self._replace(DeathReason.KILLED)

    async def _enforce(self, pending: Pending) -> None:
        """Interrupt an execution that ran out of time; when that does not end it, kill and restart."""
        text = f"The time limit of {pending.timeout_s:g} s is over: interrupting."
        self._conversation.notice(text, pending.message)
        self._log.warning("execution timed out", timeout_s=pending.timeout_s)
        try:
            # neither a warden that does not answer nor a death meanwhile keeps who waits for this
            with contextlib.suppress(SandboxUnavailable, KernelDead):
                await self.interrupt()
            if not await self._stopped(pending):
                await self._replace(DeathReason.TIMEOUT)
        except GatewayError as error:
            # who is deleted meanwhile is not to be restarted
            if not self._closed:
                self._log.error("restart after a timeout failed", error=error.message)

    async def _stopped(self, pending: Pending) -> bool:
        """Wait for the grace, and tell whether an execution has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.interrupt_grace_s):
                await pending.over.wait()
        return pending.over.is_set()

    # -- messages -----------------------------------------------------------------------------------------

    def timed_out(self, msg_id: str) -> bool:
        """Tell whether this execution was interrupted by its deadline."""
        return self._conversation.timed_out(msg_id)

    def attach(
        self,
        subscriber: Subscriber,
        *,
        counts: bool = True,
        page: Page | None = None,
        current: bool = False,
    ) -> list[Message]:
        """Deliver messages to a subscriber from now on; return what its page missed."""
        return self._conversation.attach(subscriber, counts=counts, page=page, current=current)

    def confirm(self, subscriber: Subscriber, offset: int) -> None:
        """Note that a subscriber's page has every message up to an offset."""
        self._conversation.confirm(subscriber, offset)

    def detach(self, subscriber: Subscriber) -> None:
        """Stop delivering to a subscriber; what it asked goes on within its deadline."""
        self._conversation.detach(subscriber)

    def send(
        self,
        message: Message,
        subscriber: Subscriber,
        *,
        timeout_s: float | None = None,
        origin: Origin | None = None,
    ) -> None:
        """Send a client's message; see `ports.KernelHandle.send`."""
        if self._phase is ExecutionState.DEAD:
            self._conversation.refuse(message, subscriber, self._death or DeathReason.CRASHED)
            return
        self._conversation.send(message, subscriber, timeout_s=timeout_s, origin=origin)
        if message.msg_type == "shutdown_request":
            self._expected = DeathReason.SHUTDOWN

    def _transmit(self, message: Message) -> None:
        if self._running and self._phase is ExecutionState.IDLE:
            self._running.send(message)

    # -- small things -------------------------------------------------------------------------------------

    def _live(self) -> RunningCell:
        if self._phase is ExecutionState.DEAD or self._running is None:
            reason = self._death.value if self._death else None
            raise KernelDead("The kernel is dead; restart or delete it.", reason=reason)
        return self._running

    def _check_open(self) -> None:
        if self._closed:
            raise KernelStartFailed("The kernel was ended while it started.", reason="shutdown")

    def _check_secrets(self) -> None:
        if self._lost:
            raise Conflict(
                f"The secrets of this kernel ({', '.join(self._lost)}) went with an earlier gateway, which "
                "kept them in memory alone: start another kernel.",
                reason="secrets",
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel_tasks(self) -> None:
        mine = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)


def reason_of(ending: Ending) -> DeathReason:
    """Tell from a cell's ending why its kernel died."""
    killed, out_of_cpu = 128 + 9, 128 + 24
    if ending.oom and ending.exit_code in {killed, None}:
        return DeathReason.OOM
    if ending.exit_code == out_of_cpu:
        return DeathReason.CPU
    return DeathReason.KILLED if ending.exit_code in {killed, None} else DeathReason.CRASHED

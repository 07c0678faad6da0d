"""One kernel: starting → idle ⇄ busy → dead, with restarts, deadlines, and an answer for everybody."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import Coroutine, Mapping
from datetime import datetime, timedelta
from typing import Any

import structlog

from gateway.errors import GatewayError, KernelDead, KernelStartFailed, LimitReached
from gateway.kernels import answers
from gateway.kernels.requests import Pending, Requests
from gateway.kernels.running import RunningCell, Wiring
from gateway.models import (
    DeathReason,
    ExecutionRecord,
    ExecutionState,
    ExecutionStatus,
    Kernel,
    KernelSpec,
    Limits,
    Message,
    Origin,
    timestamp,
)
from gateway.ports import Clock, ExecutionObserver, Subscriber
from gateway.protocol.messages import MalformedMessage, content, make
from gateway.sandbox.wire import CellFacts, Ending, LaunchOrder
from gateway.telemetry import Metrics

log = structlog.get_logger()

REMEMBERED_TIMEOUTS = 1000


class Nobody:
    """The subscriber of requests whose own has left."""

    def deliver(self, message: Message) -> None:
        """Take a message and do nothing."""

    def ended(self, reason: DeathReason) -> None:
        """Take the news and do nothing."""


NOBODY = Nobody()


class LocalKernel:
    """A kernel in a cell of this machine: a `ports.KernelHandle`. Owns its running cell and its tasks."""

    def __init__(
        self,
        *,
        kernel_id: str,
        owner: str,
        spec: KernelSpec,
        env: Mapping[str, str],
        limits: Limits,
        created_at: datetime,
        wiring: Wiring,
        clock: Clock,
        metrics: Metrics,
        max_pending: int,
        observer: ExecutionObserver,
    ) -> None:
        self._id = kernel_id
        self._owner = owner
        self._spec = spec
        self._env = dict(env)
        self._limits = limits
        self._wiring = wiring
        self._clock = clock
        self._metrics = metrics
        self._max_pending = max_pending
        self._observer = observer
        self._created_at = created_at
        self._phase = ExecutionState.STARTING
        self._death: DeathReason | None = None
        self._expected: DeathReason | None = None
        self._running: RunningCell | None = None
        self._requests = Requests(on_deadline=self._deadline, on_done=self._record)
        self._held: list[Message] = []
        self._subscribers: dict[Subscriber, bool] = {}
        self._timed_out: deque[str] = deque(maxlen=REMEMBERED_TIMEOUTS)
        self._executions = 0
        self._active_at = clock.monotonic()
        self._last_activity = clock.now()
        self._lifecycle = asyncio.Lock()
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = log.bind(kernel=kernel_id, owner=owner)

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
    def connections(self) -> int:
        """How many client sockets are attached."""
        return sum(self._subscribers.values())

    @property
    def state(self) -> ExecutionState:
        """What the kernel is doing."""
        if self._phase is not ExecutionState.IDLE:
            return self._phase
        return ExecutionState.BUSY if self._requests.busy else ExecutionState.IDLE

    def idle_for_s(self) -> float:
        """Return seconds since the last activity of a user's; 0 while busy."""
        return 0.0 if self.state is ExecutionState.BUSY else self._clock.monotonic() - self._active_at

    def age_s(self) -> float:
        """Return seconds since the kernel was created, by an earlier gateway perhaps."""
        return max(0.0, (self._clock.now() - self._created_at).total_seconds())

    def model(self) -> Kernel:
        """Return the kernel as the REST API shows it."""
        return Kernel(
            id=self._id,
            name=self._spec.name,
            last_activity=timestamp(self._last_activity),
            execution_state=self.state,
            connections=self.connections,
            reason=self._death,
            owner=self._owner,
            profile=self._spec.profile,
            started_at=timestamp(self._created_at),
            executions=self._executions,
            limits=self._limits,
        )

    def timed_out(self, msg_id: str) -> bool:
        """Tell whether this execution was interrupted by its deadline."""
        return msg_id in self._timed_out

    # -- its life -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Launch the cell and wait until the kernel answers. Raises SandboxUnavailable, KernelStartFailed."""
        async with self._lifecycle:
            await self._launch()

    async def adopt(self, facts: CellFacts, pidfd: int) -> None:
        """Take over a kernel that an earlier gateway left running. Raises KernelStartFailed."""
        running = RunningCell(
            self._wiring, facts, pidfd, on_message=self._receive, on_exit=self._exited, on_lost=self._lost
        )
        self._running = running
        try:
            await running.reconnect()
        except BaseException:
            self._running = None
            running.close()
            raise
        self._be_up(running)
        # until this comes back the kernel is at work for its former gateway's clients: timed like any other
        probe = make("shell", "kernel_info_request", {}, parent=None, session=self._wiring.session)
        self._requests.add(Pending(probe, NOBODY, timeout_s=self._limits.timeout_s))
        running.send(probe)

    async def interrupt(self) -> None:
        """Interrupt what runs. Raises KernelDead."""
        if self._phase is ExecutionState.DEAD or self._running is None:
            raise KernelDead("The kernel is dead; restart or delete it.", reason=self._reason)
        if self._spec.interrupt_mode == "message":
            request = make("control", "interrupt_request", {}, parent=None, session=self._wiring.session)
            self._running.send(request)
        else:
            await self._running.interrupt()

    async def restart(self) -> None:
        """Start afresh under the same id. Raises SandboxUnavailable, KernelStartFailed."""
        await self._replace(DeathReason.KILLED)
        self._death = None

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
        for subscriber in list(self._subscribers):
            subscriber.ended(reason)
        self._subscribers.clear()

    async def leave(self) -> None:
        """Let go of the kernel without ending it, so that the next gateway may adopt it."""
        self._closed = True
        await self._cancel_tasks()
        if self._running:
            self._running.close()
        for pending in self._requests.drain():
            pending.stop_clock()

    async def _launch(self) -> None:
        self._check_open()
        self._expected = None
        order = LaunchOrder(
            kernel_id=self._id,
            profile=self._spec.profile,
            argv=self._spec.argv,
            environment=self._spec.environment,
            env={**self._spec.env, **self._env},
            limits=self._limits,
        )
        begun = self._clock.monotonic()
        running = await RunningCell.launch(
            self._wiring, order, on_message=self._receive, on_exit=self._exited, on_lost=self._lost
        )
        self._running = running
        try:
            self._check_open()
            await running.ready()
        except BaseException as error:
            self._running = None
            ending = await running.end()
            if isinstance(error, KernelStartFailed) and ending.stderr:
                error.message += f" It said: {ending.stderr[-500:]}"
            raise
        self._metrics.kernel_start_seconds.observe(self._clock.monotonic() - begun)
        self._be_up(running)
        self._touch()
        self._log.info("kernel ready", cell=running.facts.cell, landlock=running.facts.landlock)
        held, self._held = self._held, []
        for message in held:
            running.send(message)

    async def _replace(self, reason: DeathReason) -> None:
        """End the cell, answer for it, launch another. On failure the kernel is dead, and that is raised."""
        async with self._lifecycle:
            self._check_open()
            running, self._running = self._running, None
            self._phase = ExecutionState.RESTARTING
            self._death = reason
            if running:
                await running.end()
            self._answer_all(reason)
            self._broadcast(answers.status(ExecutionState.RESTARTING, None, self._wiring.session))
            try:
                await self._launch()
            except BaseException:
                self._settle(DeathReason.CRASHED)
                raise
            self._broadcast(answers.status(ExecutionState.IDLE, None, self._wiring.session))

    def _be_up(self, running: RunningCell) -> None:
        self._phase = ExecutionState.IDLE
        if not running.alive:
            # it died before anybody was told
            self._exited(running)

    def _exited(self, running: RunningCell) -> None:
        if running is self._running and self._phase is ExecutionState.IDLE and not self._closed:
            self._spawn(self._bury(running))

    async def _bury(self, running: RunningCell) -> None:
        async with self._lifecycle:
            if self._running is not running:
                return
            ending = await running.end()
            reason = self._expected or reason_of(ending)
            self._log.warning("kernel died", reason=reason.value, exit_code=ending.exit_code)
            self._settle(reason)

    def _settle(self, reason: DeathReason) -> None:
        """Be dead: nothing runs, everything that was asked is answered, everybody attached knows."""
        already = self._phase is ExecutionState.DEAD
        self._running = None
        self._phase = ExecutionState.DEAD
        self._held.clear()
        if not already:
            self._death = reason
            self._metrics.kernel_deaths.labels(reason.value).inc()
        self._answer_all(reason)
        if not already:
            self._broadcast(answers.status(ExecutionState.DEAD, None, self._wiring.session))

    def _answer_all(self, reason: DeathReason) -> None:
        for pending in self._requests.drain():
            pending.reason = DeathReason.TIMEOUT if pending.timed_out else reason
            self._answer(pending.message, pending.subscriber, pending.reason)
            self._record(pending)

    def _answer(self, request: Message, subscriber: Subscriber, reason: DeathReason) -> None:
        text = answers.explain(reason, self._limits)
        for message in answers.for_dead(request, reason, text, self._wiring.session):
            if message.channel == "iopub":
                self._broadcast(message)
                if subscriber not in self._subscribers:
                    subscriber.deliver(message)
            else:
                subscriber.deliver(message)

    # -- deadlines ----------------------------------------------------------------------------------------

    def _deadline_s(self, wanted_s: float | None) -> float:
        return min(wanted_s or self._limits.timeout_s, self._limits.max_timeout_s)

    def _deadline(self, pending: Pending) -> None:
        self._timed_out.append(pending.message.msg_id)
        self._spawn(self._enforce(pending))

    async def _enforce(self, pending: Pending) -> None:
        """Interrupt an execution that ran out of time; when that does not end it, kill and restart."""
        msg_id = pending.message.msg_id
        text = f"The time limit of {pending.timeout_s:g} s is over: interrupting."
        self._broadcast(answers.notice(text, pending.message, self._wiring.session))
        self._log.warning("execution timed out", timeout_s=pending.timeout_s)
        with contextlib.suppress(GatewayError):
            await self.interrupt()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.interrupt_grace_s):
                await pending.over.wait()
        if self._requests.get(msg_id) is pending:
            try:
                await self._replace(DeathReason.TIMEOUT)
            except GatewayError as error:
                self._log.error("restart after a timeout failed", error=error.message)

    # -- messages -----------------------------------------------------------------------------------------

    def attach(self, subscriber: Subscriber, *, counts: bool = True) -> None:
        """Deliver messages to a subscriber from now on."""
        self._subscribers[subscriber] = counts

    def detach(self, subscriber: Subscriber) -> None:
        """Stop delivering to a subscriber; what it asked goes on within its deadline."""
        self._subscribers.pop(subscriber, None)
        self._requests.disown(subscriber, NOBODY)

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
            self._answer(message, subscriber, self._death or DeathReason.CRASHED)
            return
        executes = message.msg_type == "execute_request"
        if message.channel in {"shell", "control"}:
            if len(self._requests) >= self._max_pending or self._requests.get(message.msg_id):
                raise LimitReached("Too many requests are waiting for this kernel.", retry_after_s=1)
            deadline_s = self._deadline_s(timeout_s) if executes else None
            asked = self._clock.monotonic()
            self._requests.add(Pending(message, subscriber, deadline_s, origin, asked))
            if message.msg_type == "shutdown_request":
                self._expected = DeathReason.SHUTDOWN
        if executes:
            self._executions += 1
            self._touch()
        if self._running is None or self._phase is not ExecutionState.IDLE:
            self._held.append(message)
            return
        try:
            self._running.send(message)
        except LimitReached:
            if pending := self._requests.get(message.msg_id):
                self._requests.done(pending)
            raise

    def _receive(self, message: Message) -> None:
        """Route one checked message of the kernel's; called by the channels' readers."""
        pending = self._requests.get(message.parent_id) if message.parent_id else None
        if message.channel == "iopub":
            self._broadcast(message)
            if pending:
                pending.output_bytes += message.size
            if message.msg_type == "status" and pending:
                self._note_status(message, pending)
        elif pending:
            pending.subscriber.deliver(answers.timed_out(message) if pending.timed_out else message)
            if message.channel == pending.message.channel:
                pending.status = answers.status_of(message) if pending.timeout_s else pending.status
                self._requests.replied(pending)
        if pending and pending.timeout_s is not None:
            self._touch()

    def _lost(self) -> None:
        """Say that output was lost to its size, and be idle for those requests whose idle went with it."""
        text = "A message was too large and was dropped, with output around it."
        parent = next((pending.message for pending in self._requests), None)
        self._broadcast(answers.notice(text, parent, self._wiring.session))
        for pending in self._requests:
            if pending.replied:
                self._broadcast(answers.status(ExecutionState.IDLE, pending.message, self._wiring.session))
                self._requests.idle(pending)

    def _record(self, pending: Pending) -> None:
        """Tell the observer of an execution that has ended; the gateway's own requests have no origin."""
        if pending.timeout_s is None or pending.origin is None:
            return
        if pending.timed_out:
            pending.status, pending.reason = ExecutionStatus.TIMEOUT, DeathReason.TIMEOUT
        duration_s = self._clock.monotonic() - pending.asked
        code = answers.code_of(pending.message)
        self._observer.ended(
            ExecutionRecord(
                id=pending.message.msg_id,
                kernel_id=self._id,
                owner=self._owner,
                origin=pending.origin,
                code_sha256=hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest(),
                code=code,
                status=pending.status,
                reason=pending.reason,
                started_at=self._clock.now() - timedelta(seconds=duration_s),
                duration_s=duration_s,
                output_bytes=pending.output_bytes,
            )
        )

    def _note_status(self, message: Message, pending: Pending) -> None:
        try:
            state = content(message).get("execution_state")
        except MalformedMessage:
            return
        if state == "busy":
            self._requests.begun(pending)
        elif state == "idle":
            self._requests.idle(pending)

    def _broadcast(self, message: Message) -> None:
        for subscriber in list(self._subscribers):
            subscriber.deliver(message)

    # -- small things -------------------------------------------------------------------------------------

    @property
    def _reason(self) -> str | None:
        return self._death.value if self._death else None

    def _check_open(self) -> None:
        if self._closed:
            raise KernelStartFailed("The kernel was ended while it started.", reason="shutdown")

    def _touch(self) -> None:
        self._active_at = self._clock.monotonic()
        self._last_activity = self._clock.now()

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

"""Executions: code in, one result out, whatever the door."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from gateway.errors import BadRequest, Conflict, GatewayError, NotFound
from gateway.models import AuditAction, ExecutionResult, ExecutionStatus, Origin, Scope
from gateway.origin import current
from gateway.protocol.messages import MalformedMessage, make
from gateway.protocol.outputs import Collector
from gateway.services.auditing import recorded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from gateway.models import DeathReason, ExecuteRequest, Execution, Message, Principal
    from gateway.ports import Audit, Clock, KernelHandle
    from gateway.services.kernels import KernelService
    from gateway.settings import Settings

log = structlog.get_logger(__name__)

# How long a cancelled caller is kept for the interrupt to take; it goes on without the caller after that.
_ABANDON_WAIT_S = 1.0
# How often it is interrupted, and how long it has to heed that.
_INTERRUPTS, _HEED_S = 3, 2.0


class ExecutionService:
    """Runs code in kernels and folds what comes back into results."""

    def __init__(self, kernels: KernelService, clock: Clock, settings: Settings, audit: Audit) -> None:
        self._kernels = kernels
        self._audit = audit
        self._clock = clock
        self._settings = settings.executions
        self._abandoned: set[asyncio.Task[None]] = set()

    async def run(
        self,
        principal: Principal,
        kernel_id: str,
        request: ExecuteRequest,
        *,
        origin: Origin | None = None,
        on_message: Callable[[Message], None] | None = None,
        execution_id: str | None = None,
        metadata: Mapping[str, object] | None = None,
        own: bool = False,
        settled: bool = True,
    ) -> ExecutionResult:
        """Execute code and wait for its end; `on_message` sees each of its messages as they come.

        `execution_id` is the id that it shall have, a new one; `metadata` goes with the request. Its record
        has `origin`, or that of the request being served; with `own` it is the gateway's own doing, which
        prepares a kernel, and is neither counted nor recorded. Its record is written when this returns; where
        `settled` is off the caller sees to that by `settle`, before it tells anybody of the result.

        The kernel's handle keeps the deadline and answers for a kernel that dies, so an end always comes.
        When the caller is cancelled, the execution is interrupted.

        Raises Forbidden, NotFound, BadRequest (code that is not text), LimitReached (too many requests wait),
        AuditUnavailable (before, or instead of a result whose record cannot be kept), and what `on_message`
        raises.
        """
        handle = self._kernels.get(principal, kernel_id, scope=Scope.EXECUTE)
        message = _message(request, execution_id, metadata)
        collector = Collector(
            message.msg_id,
            max_bytes=min(handle.limits.output_bytes, self._settings.max_output_bytes),
            started=self._clock.monotonic(),
        )
        listener = _Listener(handle, message.msg_id, collector, on_message)
        with ExitStack() as attached:
            attached.callback(handle.detach, listener)
            handle.attach(listener, counts=False)
            whose = None if own else origin or current() or _by(principal)
            handle.send(message, listener, timeout_s=request.timeout_s, origin=whose)
            try:
                await listener.finished.wait()
            except asyncio.CancelledError:
                await self._abandon(listener, attached.pop_all())
                raise
            if listener.failure is not None:
                await self._abandon(listener, attached.pop_all())
                raise listener.failure
        if settled:
            await self.settle()
        result = collector.result(self._clock.monotonic())
        if listener.death is not None:
            return result.model_copy(update={"status": ExecutionStatus.DEAD, "reason": listener.death})
        return result

    async def settle(self) -> None:
        """Wait until what has ended so far is recorded. Raises AuditUnavailable."""
        await self._audit.written()

    def list(self, principal: Principal, kernel_id: str) -> list[Execution]:
        """List the executions of a kernel that have not ended. Raises Forbidden, NotFound."""
        return self._kernels.get(principal, kernel_id, scope=Scope.EXECUTE).executions()

    async def interrupt(self, principal: Principal, kernel_id: str, execution_id: str) -> None:
        """Interrupt a running execution, or take back a queued one.

        Raises Forbidden, NotFound, KernelDead, AuditUnavailable.
        """
        handle = self._kernels.get(principal, kernel_id, scope=Scope.EXECUTE)
        self._audit.admit()
        action = AuditAction.EXECUTION_INTERRUPT
        with recorded(self._audit, action, principal, kernel_id=handle.id, target=execution_id):
            await handle.interrupt_execution(execution_id)

    async def cancel(self, principal: Principal, kernel_id: str, execution_id: str) -> None:
        """End an execution, by a restart of the kernel if need be.

        Raises Forbidden, NotFound, KernelDead, Conflict (the kernel is paused), AuditUnavailable.
        """
        handle = self._kernels.get(principal, kernel_id, scope=Scope.EXECUTE)
        self._audit.admit()
        action = AuditAction.EXECUTION_CANCEL
        with recorded(self._audit, action, principal, kernel_id=handle.id, target=execution_id):
            await handle.cancel_execution(execution_id)

    async def _abandon(self, listener: _Listener, attached: ExitStack) -> None:
        # In a task of its own, so that a second cancellation of the caller does not stop it.
        task = asyncio.create_task(listener.interrupt(attached))
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)
        await asyncio.wait({task}, timeout=_ABANDON_WAIT_S)


class _Listener:
    """The private subscriber of one execution: folds its messages as they come, so that nothing queues."""

    def __init__(
        self,
        handle: KernelHandle,
        msg_id: str,
        collector: Collector,
        on_message: Callable[[Message], None] | None,
    ) -> None:
        self._handle = handle
        self._msg_id = msg_id
        self._collector = collector
        self._on_message = on_message
        self.over = asyncio.Event()
        self.finished = asyncio.Event()
        self.failure: Exception | None = None
        self.death: DeathReason | None = None

    def deliver(self, message: Message) -> None:
        """Fold one message; those of other executions are passed over."""
        if message.parent_id != self._msg_id or self.over.is_set():
            return
        try:
            if self._on_message is not None:
                self._on_message(message)
        except Exception as error:  # noqa: BLE001 - run() raises it; the kernel's reader must not see it
            self._on_message = None
            self.failure = error
            self.finished.set()
        if self._collector.feed(message, trusted=message.authored):
            if self._handle.timed_out(self._msg_id):
                self._collector.mark_timeout()
            self.over.set()
            self.finished.set()

    def ended(self, reason: DeathReason) -> None:
        """Note that the kernel is gone for good."""
        if not self.finished.is_set():
            self.death = reason
        self.over.set()
        self.finished.set()

    async def interrupt(self, attached: ExitStack) -> None:
        """Interrupt an execution that nobody waits for any more, or take it back, then detach."""
        self._on_message = None
        with attached:
            await insist(self._interrupt, self.over)

    async def _interrupt(self) -> None:
        await self._handle.interrupt_execution(self._msg_id)


async def insist(interrupt: Callable[[], Awaitable[None]], over: asyncio.Event) -> None:
    """Interrupt what nobody waits for until it is over, a few times: one in its first moments gets lost.

    An IPython kernel that is about to run code, and does not run it yet, passes an interrupt over.
    """
    for _ in range(_INTERRUPTS):
        if over.is_set():
            return
        try:
            await interrupt()
        except (NotFound, Conflict):
            # it has ended, or its kernel has
            return
        except GatewayError as error:
            log.warning("not_interrupted", error=error.message)
        with suppress(TimeoutError):
            async with asyncio.timeout(_HEED_S):
                await over.wait()


def _by(principal: Principal) -> Origin:
    """Return an origin where no door has said one: nothing that is run for somebody goes without."""
    return Origin(principal=principal.name, key_id=principal.key_id, door="gateway")


def _message(
    request: ExecuteRequest, execution_id: str | None, metadata: Mapping[str, object] | None
) -> Message:
    content = {
        "code": request.code,
        "silent": request.silent,
        "store_history": request.store_history and not request.silent,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": request.stop_on_error,
    }
    try:
        return make(
            "shell",
            "execute_request",
            content,
            parent=None,
            session=uuid4().hex,
            metadata=metadata,
            msg_id=execution_id,
        )
    except MalformedMessage as error:
        raise BadRequest("The code is not text that JSON can carry.") from error

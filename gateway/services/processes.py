"""Processes: commands that owners run beside their kernels, and what else runs in the cells."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from typing import TYPE_CHECKING, Any

from gateway.errors import GatewayError
from gateway.models import AuditAction, AuditEvent, AuditOutcome, Scope
from gateway.services.auditing import REFUSALS, recorded
from gateway.services.command import FollowedCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.models import Principal
    from gateway.models.processes import (
        CellProcess,
        Command,
        CommandResult,
        CommandRun,
        Process,
        ProcessOutput,
        ProcessStart,
        Snapshot,
    )
    from gateway.ports import Audit, Clock, KernelHandle
    from gateway.services.kernels import KernelService
    from gateway.services.quotas import Quotas
    from gateway.settings import Settings

MAX_CODE_BYTES = 64 << 10


class ProcessService:
    """The processes beside every owner's kernels, each open to its owner and to admins alone.

    Every method raises Forbidden, NotFound (kernel or process), KernelDead, Conflict (paused, or what the
    method says), SandboxUnavailable (no attendant answers in the cell), and AuditUnavailable.
    """

    def __init__(
        self, kernels: KernelService, quotas: Quotas, clock: Clock, settings: Settings, audit: Audit
    ) -> None:
        self._kernels = kernels
        self._quotas = quotas
        self._clock = clock
        self._settings = settings.processes
        self._keep_code = settings.audit.keep_code
        self._audit = audit
        self._abandoned: set[asyncio.Task[None]] = set()

    async def run(
        self,
        principal: Principal,
        kernel_id: str,
        request: CommandRun,
        *,
        on_output: Callable[[str], None] | None = None,
    ) -> CommandResult:
        """Run a command to its end; `on_output` sees each piece of its output as it comes.

        At its time limit it is ended, with its children, by SIGTERM and a second later by SIGKILL; where the
        caller is cancelled, by SIGKILL. What it has left in the background goes on.

        Raises BadRequest (it cannot be run), LimitReached.
        """
        handle = self._handle(principal, kernel_id)
        self._audit.admit()
        self._quotas.admit(handle.owner, handle.id)
        followed = FollowedCommand(
            handle, request, self._clock, on_output, most_kept=self._settings.output_bytes
        )
        event = self._event(AuditAction.COMMAND_RUN, principal, handle, request)
        begun = self._clock.monotonic()

        def ended(status: str, code: int | None = None) -> None:
            self._audit.record(
                event.model_copy(
                    update={
                        "outcome": AuditOutcome.OK if status == "ok" else AuditOutcome.ERROR,
                        "reason": status,
                        "duration_s": round(self._clock.monotonic() - begun, 6),
                        "output_bytes": followed.output_bytes,
                        "extra": {**event.extra, "exit_code": code},
                    }
                )
            )

        try:
            result = await followed.result()
        except GatewayError as error:
            if error.status not in REFUSALS:
                ended(error.code)
                error.recorded = True
            raise
        except BaseException:
            ended("cancelled")
            raise
        finally:
            self._quotas.release(handle.owner, handle.id, followed.output_bytes)
            if followed.unended:
                self._abandon(followed)
        ended(result.status, result.exit_code)
        await self._audit.written()
        return result

    async def start(self, principal: Principal, kernel_id: str, request: ProcessStart) -> Process:
        """Start a process that goes on by itself. Raises BadRequest (it cannot be run), LimitReached."""
        handle = self._handle(principal, kernel_id)
        self._audit.admit()
        self._quotas.admit(handle.owner, handle.id)
        # it counts where it begins; how long it goes on is the cell's own business
        self._quotas.release(handle.owner, handle.id, 0)
        event = self._event(AuditAction.PROCESS_START, principal, handle, request)
        try:
            process = await handle.processes().start(request, stdin=request.stdin)
        except GatewayError as error:
            if error.status not in REFUSALS:
                failed = {"outcome": AuditOutcome.ERROR, "reason": error.code}
                self._audit.record(event.model_copy(update=failed))
                error.recorded = True
            raise
        self._audit.record(event.model_copy(update={"target": process.id}))
        await self._audit.written()
        return process

    async def listing(self, principal: Principal, kernel_id: str) -> Sequence[Process]:
        """List the processes that were started so, oldest first; ended ones are kept for a while."""
        handle = self._handle(principal, kernel_id, touches=False)
        with self._recorded(AuditAction.PROCESS_LIST, principal, handle, None, how="listing"):
            return await handle.processes().listing()

    async def read(
        self, principal: Principal, kernel_id: str, process_id: str, *, cursor: int = 0, wait_s: float = 0.0
    ) -> ProcessOutput:
        """Return output from a cursor on: when there is some, it has ended, or `wait_s` seconds are over.

        What is read is charged like the output of an execution.
        """
        handle = self._handle(principal, kernel_id)
        output = await handle.processes().read(process_id, cursor=cursor, wait_s=wait_s)
        self._quotas.sent(
            handle.owner, sum(len(chunk.text.encode("utf-8", "replace")) for chunk in output.chunks)
        )
        return output

    async def write(
        self, principal: Principal, kernel_id: str, process_id: str, data: bytes, *, eof: bool = False
    ) -> None:
        """Write to a process's standard input, and close that where asked.

        Raises Conflict (it is closed, or the process has ended), LimitReached (it does not read).
        """
        handle = self._handle(principal, kernel_id)
        with self._recorded(AuditAction.PROCESS_INPUT, principal, handle, process_id, bytes=len(data)):
            await handle.processes().write(process_id, data, eof=eof)

    async def signal(self, principal: Principal, kernel_id: str, process_id: str, number: int) -> None:
        """Signal a process and its children. Raises BadRequest (no such signal), Conflict (it has ended)."""
        handle = self._handle(principal, kernel_id)
        with self._recorded(AuditAction.PROCESS_SIGNAL, principal, handle, process_id, signal=number):
            await handle.processes().signal(process_id, number)

    async def remove(self, principal: Principal, kernel_id: str, process_id: str) -> None:
        """Kill a process and its children, if it runs, and forget it."""
        handle = self._handle(principal, kernel_id)
        with self._recorded(
            AuditAction.PROCESS_SIGNAL, principal, handle, process_id, signal=int(signal.SIGKILL)
        ):
            await handle.processes().remove(process_id)

    async def tree(self, principal: Principal, kernel_id: str) -> Sequence[CellProcess]:
        """List every process of the cell, the kernel's own included."""
        handle = self._handle(principal, kernel_id, touches=False)
        with self._recorded(AuditAction.PROCESS_LIST, principal, handle, None, how="tree"):
            return await handle.processes().tree()

    async def kill(self, principal: Principal, kernel_id: str, pid: int, number: int) -> None:
        """Signal any process of the cell, by its pid in it. Raises BadRequest (no such signal)."""
        handle = self._handle(principal, kernel_id)
        with self._recorded(AuditAction.PROCESS_SIGNAL, principal, handle, f"pid {pid}", signal=number):
            await handle.processes().kill(pid, number)

    async def snapshot(self, principal: Principal, kernel_id: str, *, packages: bool = False) -> Snapshot:
        """Show the system as the cell sees it, with the Python packages of its environment."""
        handle = self._handle(principal, kernel_id, touches=False)
        with self._recorded(AuditAction.PROCESS_LIST, principal, handle, None, how="snapshot"):
            return await handle.processes().snapshot(packages=packages)

    def _handle(self, principal: Principal, kernel_id: str, *, touches: bool = True) -> KernelHandle:
        handle = self._kernels.get(principal, kernel_id, scope=Scope.EXECUTE)
        if touches:
            handle.touch()
        return handle

    def _recorded(
        self,
        action: AuditAction,
        principal: Principal,
        handle: KernelHandle,
        target: str | None,
        **extra: Any,
    ) -> Any:
        self._audit.admit()
        return recorded(self._audit, action, principal, kernel_id=handle.id, target=target, extra=extra)

    def _event(
        self, action: AuditAction, principal: Principal, handle: KernelHandle, command: Command
    ) -> AuditEvent:
        text = command.command if command.command is not None else "\0".join(command.argv or ())
        code = text.encode("utf-8", "replace")
        return AuditEvent(
            action=action,
            who=principal.name,
            key_id=principal.key_id or None,
            kernel_id=handle.id,
            code_sha256=hashlib.sha256(code).hexdigest(),
            code=code[:MAX_CODE_BYTES].decode("utf-8", "ignore") if self._keep_code else None,
            extra={} if handle.owner == principal.name else {"owner": handle.owner},
        )

    def _abandon(self, followed: FollowedCommand) -> None:
        # in a task of its own: the caller is gone, or has heard enough
        task = asyncio.create_task(followed.kill())
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)

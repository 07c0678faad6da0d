"""Commands in sandboxes: processes that go on when nobody listens, until they end or their time is over."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway.errors import GatewayError, NotFound
from gateway.models import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from gateway.models import Principal
    from gateway.models.processes import Process, ProcessOutput, ProcessStart
    from gateway.services.kernels import KernelService
    from gateway.services.processes import ProcessService


class SandboxCommands:
    """Processes by their pid in the cell, as E2B has them. Owns a task for each that has a deadline."""

    def __init__(self, kernels: KernelService, processes: ProcessService) -> None:
        self._kernels = kernels
        self._processes = processes
        self._deadlines: dict[str, asyncio.Task[None]] = {}

    async def start(
        self, principal: Principal, kernel_id: str, wanted: ProcessStart, *, within_s: float | None
    ) -> Process:
        """Start a process, to be killed when its time is over, whoever listens then.

        Raises what `ProcessService.start` raises.
        """
        process = await self._processes.start(principal, kernel_id, wanted)
        if within_s is not None:
            task = asyncio.create_task(self._enforce(principal, kernel_id, process.id, within_s))
            self._deadlines[process.id] = task
            task.add_done_callback(lambda _: self._deadlines.pop(process.id, None))
        return process

    async def running(self, principal: Principal, kernel_id: str) -> Sequence[Process]:
        """Return the processes that were started so and have not ended. Raises NotFound, KernelDead."""
        handle = self._kernels.get(principal, kernel_id, scope=Scope.EXECUTE)
        return [process for process in await handle.processes().listing() if process.state == "running"]

    async def find(self, principal: Principal, kernel_id: str, pid: int) -> Process:
        """Return a running process by its pid. Raises NotFound."""
        for process in await self.running(principal, kernel_id):
            if process.pid == pid:
                return process
        raise NotFound(f"Process with pid {pid} was not found.", reason="process")

    async def follow(
        self, principal: Principal, kernel_id: str, process_id: str, *, beat_s: float
    ) -> AsyncGenerator[ProcessOutput, None]:
        """Yield a process's output as it comes, an empty one every `beat_s`, and the last one at its end.

        Raises what `ProcessService.read` raises.
        """
        cursor = 0
        while True:
            output = await self._processes.read(
                principal, kernel_id, process_id, cursor=cursor, wait_s=beat_s
            )
            ended = output.process.state == "ended" and not output.chunks
            yield output
            if ended:
                if deadline := self._deadlines.get(process_id):
                    deadline.cancel()
                return
            cursor = output.cursor

    async def close(self) -> None:
        """Let go of the deadlines; the cells go on by themselves."""
        tasks = list(self._deadlines.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _enforce(self, principal: Principal, kernel_id: str, process_id: str, within_s: float) -> None:
        await asyncio.sleep(within_s)
        with suppress(GatewayError):
            await self._processes.signal(principal, kernel_id, process_id, signal.SIGKILL)

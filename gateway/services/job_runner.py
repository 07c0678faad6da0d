"""Running jobs: a kernel for each, its tasks in order, and what they gave."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from gateway.errors import BadRequest, Conflict, GatewayError, NotFound, PayloadTooLarge
from gateway.models import ExecuteRequest, ExecutionState, Scope
from gateway.models.jobs import JobStatus, TaskResult, TaskUsage
from gateway.protocol.narration import clean
from gateway.services.executions import insist
from gateway.services.files import pieces_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.models import Artifacts, ExecutionResult, Usage
    from gateway.ports import Clock, KernelHandle
    from gateway.services.artifacts import ArtifactService, Look
    from gateway.services.contexts import ContextService
    from gateway.services.executions import ExecutionService
    from gateway.services.files import FileService
    from gateway.services.job import Job, Work
    from gateway.services.kernels import KernelService
    from gateway.services.starting import KernelStarter

MAX_CODE_BYTES = 8 << 20


class JobRunner:
    """Runs one job at a time for each caller; a kernel that it starts for one job ends with that."""

    def __init__(
        self,
        *,
        kernels: KernelService,
        executions: ExecutionService,
        contexts: ContextService,
        starter: KernelStarter,
        files: FileService,
        artifacts: ArtifactService,
        clock: Clock,
    ) -> None:
        self._kernels = kernels
        self._executions = executions
        self._contexts = contexts
        self._starter = starter
        self._files = files
        self._artifacts = artifacts
        self._clock = clock
        self._removals: set[asyncio.Task[None]] = set()

    async def run(self, job: Job) -> None:
        """Run a job's tasks and set its status. Raises GatewayError where it cannot be run."""
        async with AsyncExitStack() as held:
            handle = await held.enter_async_context(self._kernel(job))
            job.kernel_id = handle.id
            if job.desk is not None:
                job.desk.kernel_id = handle.id
            held.enter_context(handle.serve_tools(job.desk) if job.desk else nullcontext())
            job.journal.add("started", kernel_id=handle.id)
            job.placed.set()
            for index, work in enumerate(job.work):
                if not self._goes_on(job, index):
                    work.status = JobStatus.ABORTED
                    continue
                await self._task(job, handle, index, work)
                reason = work.result.reason if work.result else None
                job.journal.add("task_ended", task=index, status=work.status, reason=reason)
        failed = next((work for work in job.work if work.status is not JobStatus.OK), None)
        if job.stopping == "cancelled":
            job.status = JobStatus.CANCELLED
        else:
            job.status = failed.status if failed else JobStatus.OK
        job.reason = job.stopping or (failed and failed.result and failed.result.reason) or None

    async def cancel(self, job: Job) -> None:
        """End what a job runs, by a restart of the kernel if need be; one without a kernel yet is dropped."""
        job.stopping = "cancelled"
        if job.current is None:
            if not job.placed.is_set() and job.runner is not None:
                job.runner.cancel()
            return
        who, kernel_id = job.principal, job.kernel_id or ""
        with suppress(NotFound):
            try:
                await self._executions.cancel(who, kernel_id, job.current)
            except Conflict:
                # it is paused, and what is frozen does not end
                await self._kernels.resume(who, kernel_id)
                await self._executions.cancel(who, kernel_id, job.current)

    async def interrupt(self, job: Job) -> None:
        """Interrupt what a job runs. Raises Conflict when it runs nothing."""
        if job.current is None:
            raise Conflict("The execution does not run anything now.", reason="not_running")
        await self._executions.interrupt(job.principal, job.kernel_id or "", job.current)

    async def abandon(self, job: Job) -> None:
        """Interrupt a job that nobody waits for any more, and begin no further task of it."""
        if job.stopping is not None:
            # it is being ended already
            return
        job.stopping = "disconnected"
        if job.current is not None:
            await insist(lambda: self.interrupt(job), job.done)
        elif not job.placed.is_set() and job.runner is not None:
            job.runner.cancel()

    async def close(self) -> None:
        """Wait until the kernels of ended jobs are gone."""
        await asyncio.gather(*self._removals, return_exceptions=True)

    @asynccontextmanager
    async def _kernel(self, job: Job) -> AsyncIterator[KernelHandle]:
        request, who = job.request, job.principal
        if request.kernel_id is not None:
            handle = self._kernels.get(who, request.kernel_id, scope=Scope.EXECUTE)
            handle.touch()
            yield handle
        elif request.context is not None:
            yield await self._contexts.open(who, request.context, request, ttl_s=request.ttl_s)
        else:
            handle = await self._starter.start(who, request)
            try:
                yield handle
            finally:
                # in a task of its own: nobody need wait for it, and no cancellation prevents it
                removal = asyncio.create_task(self._remove(job, handle))
                self._removals.add(removal)
                removal.add_done_callback(self._removals.discard)

    async def _remove(self, job: Job, handle: KernelHandle) -> None:
        with suppress(GatewayError):
            await self._kernels.delete(job.principal, handle.id)

    @staticmethod
    def _goes_on(job: Job, index: int) -> bool:
        if job.stopping is not None:
            return False
        before = job.work[index - 1].status if index else JobStatus.OK
        return before is JobStatus.OK or (
            job.request.on_error == "continue" and before is not JobStatus.ABORTED
        )

    async def _task(self, job: Job, handle: KernelHandle, index: int, work: Work) -> None:
        request, who = job.request, job.principal
        code = work.task.code
        if code is None:
            code = await self._text(job, handle, work.task.path or "")
        wanted = ExecuteRequest(
            code=code,
            timeout_s=work.task.timeout_s or request.timeout_s,
            # what waits behind it is another job's, whom this one's errors do not concern
            stop_on_error=False,
        )
        before, used = await self._before(job, handle)
        if job.desk is not None:
            job.desk.task = index
        if job.stopping is not None:
            # said while this was being prepared: there was nothing to end yet
            work.status = JobStatus.ABORTED
            return
        # the trail's records of one task's job name the job
        job.current = f"{job.id}-{index}" if index else job.id
        work.status = JobStatus.RUNNING
        job.status, job.started_at = JobStatus.RUNNING, job.started_at or self._clock.now()
        try:
            result = await self._executions.run(
                who,
                handle.id,
                wanted,
                origin=job.origin,
                on_message=lambda message: job.hear(index, message),
                execution_id=job.current,
                metadata={"cellblock": {"dataframes": True}} if request.dataframes else None,
                settled=False,
            )
        finally:
            job.current = None
        made, now = await self._after(job, handle, before)
        # what it gave is nothing without its record, which was written meanwhile
        await self._executions.settle()
        work.result = _result(result, used, now, made)
        work.status = JobStatus(result.status)

    async def _before(self, job: Job, handle: KernelHandle) -> tuple[Look | None, Usage | None]:
        """Look at the files, if the caller wants to know of new ones, and at what is used: both at once."""
        if not job.request.artifacts:
            return None, await _usage(handle)
        return await asyncio.gather(self._artifacts.look(job.principal, handle.id), _usage(handle))

    async def _after(
        self, job: Job, handle: KernelHandle, before: Look | None
    ) -> tuple[Artifacts | None, Usage | None]:
        if before is None:
            return None, await _usage(handle)
        return await asyncio.gather(self._artifacts.since(job.principal, handle.id, before), _usage(handle))

    async def _text(self, job: Job, handle: KernelHandle, path: str) -> str:
        """Return the text of a file of the home. Raises Forbidden, NotFound, BadRequest, PayloadTooLarge."""
        async with self._files.reading(job.principal, handle.id, path) as file:
            if file.facts.size > MAX_CODE_BYTES:
                raise PayloadTooLarge(f"The file {path[:256]} has more than {MAX_CODE_BYTES} bytes.")
            raw = b"".join([piece async for piece in pieces_of(file, 0, file.facts.size)])
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise BadRequest(f"The file {path[:256]} is not UTF-8 text.", reason="path") from None


async def _usage(handle: KernelHandle) -> Usage | None:
    """Return what a cell uses; None where it is gone."""
    if handle.state is ExecutionState.DEAD:
        return None
    try:
        return await handle.usage()
    except GatewayError:
        return None


def _result(
    result: ExecutionResult, used: Usage | None, now: Usage | None, made: Artifacts | None
) -> TaskResult:
    cpu_s = None
    if used and now:
        # a kernel that was restarted meanwhile counts from nothing
        cpu_s = round(now.cpu_s - used.cpu_s if now.cpu_s >= used.cpu_s else now.cpu_s, 6)
    return TaskResult(
        **dict(result) | {"artifacts": made},
        clean=clean(result.error) if result.error else None,
        usage=TaskUsage(
            wall_s=result.duration_s,
            cpu_s=cpu_s,
            memory_peak_bytes=now.memory_peak_bytes if now else None,
        ),
    )

"""Jobs: executions as resources, which run to their end whoever listens, and whose results are kept."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog

from gateway.errors import BadRequest, Conflict, GatewayError, LimitReached, NotFound
from gateway.models import AuditAction, Scope, timestamp
from gateway.models.jobs import JobStatus, JobSummary, TextPage
from gateway.models.notices import Notice, NoticeKind
from gateway.services.auditing import recorded
from gateway.services.callbacks import CallDesk
from gateway.services.job import Job, Work, show
from gateway.services.job_book import JobBook, body_of
from gateway.services.journal import Journal
from gateway.services.kernels import require

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
    from datetime import datetime

    from gateway.models import Origin, Principal
    from gateway.models.jobs import CallAnswer, Event, JobRequest, JobView, TaskResult
    from gateway.ports import Audit, Clock
    from gateway.ports.events import Notifier
    from gateway.services.job_runner import JobRunner
    from gateway.services.kernels import KernelService
    from gateway.settings import Settings

MAX_KEY_CHARS = 256
# How long a cancellation waits for the end that it has asked for.
CANCEL_S = 60.0

log = structlog.get_logger(__name__)


class JobService:
    """Executions as resources of their owners.

    Every method with a `job_id` raises Forbidden (scope), NotFound (no such, another's, or expired),
    StoreUnavailable.
    """

    def __init__(
        self,
        book: JobBook,
        runner: JobRunner,
        kernels: KernelService,
        *,
        clock: Clock,
        settings: Settings,
        audit: Audit,
        notifier: Notifier,
    ) -> None:
        self._book = book
        self._notifier = notifier
        self._runner = runner
        self._kernels = kernels
        self._clock = clock
        self._settings = settings.executions
        self._tools = settings.tools
        self._audit = audit
        self._keys: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def submit(
        self, principal: Principal, request: JobRequest, *, origin: Origin, idempotency_key: str | None = None
    ) -> str:
        """Begin an execution and return its id; with a key that was used before, the id of that one.

        Raises Forbidden, NotFound (kernel), BadRequest, Conflict (the key was used for something else),
        LimitReached, AuditUnavailable.
        """
        self._check_scopes(principal, request)
        digest = hashlib.sha256(request.model_dump_json().encode("utf-8", "surrogatepass")).hexdigest()
        if idempotency_key is None:
            return await self._begin(principal, request, origin, digest, None)
        if not 0 < len(idempotency_key) <= MAX_KEY_CHARS:
            raise BadRequest(
                f"An idempotency key has up to {MAX_KEY_CHARS} characters.", reason="idempotency_key"
            )
        place = principal.name, idempotency_key
        while place in self._keys:
            # the same is being begun at this moment
            await asyncio.wait({self._keys[place]})
        self._keys[place] = begun = asyncio.get_running_loop().create_future()
        try:
            before = await self._book.by_key(*place)
            if before is None:
                return await self._begin(principal, request, origin, digest, idempotency_key)
            if before.request_sha256 != digest:
                raise Conflict("The idempotency key was used for another request.", reason="idempotency_key")
            return before.id
        finally:
            del self._keys[place]
            begun.cancel()

    async def placed(self, principal: Principal, job_id: str) -> None:
        """Wait until an execution has its kernel. Raises what stands against it."""
        job = await self._book.find(principal, job_id)
        if isinstance(job, Job):
            await job.placed.wait()
            if job.error is not None:
                raise job.error

    async def view(
        self,
        principal: Principal,
        job_id: str,
        *,
        cursor: int | None = None,
        wait_s: float = 0.0,
        text_chars: int | None = None,
    ) -> JobView:
        """Return an execution; with a cursor the events after it, waiting for some where there are none."""
        job = await self._book.find(principal, job_id)
        if isinstance(job, Job):
            if wait_s and cursor is not None:
                await job.journal.news(cursor, wait_s)
            elif wait_s:
                await _ended(job, wait_s)
            return job.view(cursor=cursor, text_chars=text_chars)
        body = await body_of(job)
        journal = body.journal()
        events = journal.after(cursor) if cursor is not None else None
        return show(job, body, events=events, last=journal.last, text_chars=text_chars)

    async def wait(self, principal: Principal, job_id: str, *, text_chars: int | None = None) -> JobView:
        """Return an execution once it has ended; a caller that is cancelled has it interrupted.

        Raises what kept it from being run.
        """
        job = await self._book.find(principal, job_id)
        if isinstance(job, Job):
            try:
                await job.done.wait()
            except asyncio.CancelledError:
                self._spawn(self._runner.abandon(job))
                raise
            if job.error is not None:
                raise job.error
            return job.view(cursor=None, text_chars=text_chars)
        return await self.view(principal, job_id, text_chars=text_chars)

    def leave(self, job_id: str) -> None:
        """Interrupt an execution, if it goes on, whose caller is gone: for the door that has submitted it."""
        for job in self._book.all():
            if job.id == job_id:
                self._spawn(self._runner.abandon(job))

    async def follow(
        self,
        principal: Principal,
        job_id: str,
        *,
        cursor: int = 0,
        beat_s: float | None = None,
    ) -> AsyncGenerator[Event | None, None]:
        """Yield events from a cursor on until the end; a reader that leaves does not concern it.

        With `beat_s`, None is yielded whenever nothing has happened for so many seconds.
        """
        job = await self._book.find(principal, job_id)
        if not isinstance(job, Job):
            for event in (await body_of(job)).journal().after(cursor):
                yield event
            return
        journal = job.journal
        while not journal.closed or journal.last > cursor:
            events = journal.after(cursor)
            for event in events:
                cursor = event.seq
                yield event
            if not events:
                await journal.news(cursor, beat_s or 3600.0)
                if beat_s is not None and not journal.closed and journal.last <= cursor:
                    yield None

    async def list(self, principal: Principal) -> list[JobSummary]:
        """Return the principal's executions that are kept, newest first. Raises Forbidden."""
        return [
            JobSummary(
                id=record.id,
                status=record.status,
                kernel_id=record.kernel_id,
                context=record.context,
                created_at=timestamp(record.created_at),
                ended_at=record.ended_at and timestamp(record.ended_at),
            )
            for record in await self._book.listing(principal)
        ]

    async def cancel(self, principal: Principal, job_id: str) -> None:
        """End an execution for real, by a restart of its kernel if need be; an ended one is forgotten.

        Raises AuditUnavailable.
        """
        job = await self._book.find(principal, job_id)
        self._audit.admit()
        kernel_id = job.kernel_id
        with recorded(self._audit, AuditAction.JOB_CANCEL, principal, kernel_id=kernel_id, target=job_id):
            if isinstance(job, Job) and job.ended_at is None:
                await self._runner.cancel(job)
                await _ended(job, CANCEL_S)
            else:
                await self._book.forget(job)

    async def interrupt(self, principal: Principal, job_id: str) -> None:
        """Interrupt the task that runs; what follows goes on as `on_error` says. Raises Conflict (ended)."""
        await self._runner.interrupt(await self._book.going(principal, job_id))

    async def pause(self, principal: Principal, job_id: str) -> None:
        """Freeze an execution with its kernel. Raises Conflict (ended), KernelDead."""
        job = await self._book.going(principal, job_id)
        await self._kernels.pause(principal, job.kernel_id or "")
        job.journal.add("paused")

    async def resume(self, principal: Principal, job_id: str) -> None:
        """Let a paused execution go on. Raises Conflict (ended), KernelDead."""
        job = await self._book.going(principal, job_id)
        await self._kernels.resume(principal, job.kernel_id or "")
        job.journal.add("resumed")

    async def text(
        self,
        principal: Principal,
        job_id: str,
        what: str,
        *,
        task: int = 0,
        offset: int = 0,
        limit: int = 65_536,
    ) -> TextPage:
        """Return a part of a result's text: `stdout`, `stderr`, `error` or `result` (its text/plain).

        Raises NotFound (no such task or text), BadRequest.
        """
        job = await self._book.find(principal, job_id)
        body = await body_of(job)
        if not 0 <= task < len(body.tasks):
            raise NotFound(f"The execution has no task {task}.")
        whole = _text_of(body.tasks[task].result, what)
        end = min(len(whole), offset + limit)
        return TextPage(
            text=whole[offset:end],
            offset=offset,
            next_offset=end if end < len(whole) else None,
            total=len(whole),
        )

    async def answer(self, principal: Principal, job_id: str, call_id: str, answer: CallAnswer) -> None:
        """Answer a tool call. Raises NotFound (no such call waits), PayloadTooLarge."""
        job = await self._book.find(principal, job_id)
        if not isinstance(job, Job) or job.desk is None:
            raise NotFound(f"No such tool call waits for an answer: {call_id[:64]}")
        extra, action = {"call": call_id}, AuditAction.TOOL_ANSWER
        with recorded(self._audit, action, principal, kernel_id=job.kernel_id, target=job_id, extra=extra):
            job.desk.answer(call_id, answer)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Work while the body runs; what an earlier gateway left running counts as lost, as this one's will.

        Raises StoreUnavailable.
        """
        async with self._book.open():
            try:
                yield
            finally:
                self._closing = True
                for job in self._book.all():
                    if job.runner is not None:
                        job.runner.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                await self._runner.close()

    def _check_scopes(self, principal: Principal, request: JobRequest) -> None:
        require(principal, Scope.EXECUTE)
        if request.kernel_id is None:
            require(principal, Scope.KERNELS)
        else:
            self._kernels.get(principal, request.kernel_id, scope=Scope.EXECUTE)
        if request.artifacts or any(task.path is not None for task in request.work()):
            require(principal, Scope.FILES)

    async def _begin(
        self, principal: Principal, request: JobRequest, origin: Origin, digest: str, key: str | None
    ) -> str:
        depth = self._depth(principal, request)
        self._audit.admit()
        now, kept_s = self._clock.now(), min(request.ttl_result_s or 1e9, self._settings.kept_s)
        journal = Journal(self._settings.journal_bytes)
        job = Job(
            id=uuid4().hex,
            principal=principal,
            request=request,
            origin=origin,
            journal=journal,
            created_at=now,
            expires_at=now + timedelta(seconds=kept_s),
            request_sha256=digest,
            idempotency_key=key,
            depth=depth,
            work=[Work(task) for task in request.work()],
        )
        if request.tools:
            job.desk = CallDesk(
                request.tools,
                journal,
                settings=self._tools,
                clock=self._clock,
                audit=self._audit,
                origin=origin,
            )
        extra = {"tasks": str(len(job.work)), "mode": request.mode}
        with recorded(
            self._audit,
            AuditAction.JOB_CREATE,
            principal,
            kernel_id=request.kernel_id,
            target=job.id,
            extra=extra,
        ):
            await self._book.add(job)
        job.runner = self._spawn(self._run(job, kept_s))
        return job.id

    async def _run(self, job: Job, kept_s: float) -> None:
        try:
            await self._runner.run(job)
        except asyncio.CancelledError:
            stopped = job.stopping == "cancelled"
            job.status = JobStatus.CANCELLED if stopped else JobStatus.INTERRUPTED
            job.reason = job.stopping
        except GatewayError as error:
            job.status, job.reason, job.error = JobStatus.FAILED, error.code, error
        except Exception:
            log.exception("job_crashed", job=job.id)
            job.error = GatewayError("The gateway failed in an unexpected way; its log says more.")
            job.status, job.reason = JobStatus.FAILED, job.error.code
        for work in job.work:
            if not work.status.ended:
                work.status = JobStatus.ABORTED if work.status is JobStatus.QUEUED else job.status
        job.ended_at = self._clock.now()
        job.expires_at = job.ended_at + timedelta(seconds=kept_s)
        if not self._closing:
            # first, so that what anybody is told of survives this gateway
            await self._book.keep(job)
        job.journal.add("ended", status=job.status, reason=job.reason)
        job.journal.close()
        job.placed.set()
        job.done.set()
        if self._notifier.listens:
            self._notifier.tell(_notice(job, job.ended_at))

    def _depth(self, principal: Principal, request: JobRequest) -> int:
        """Return how many jobs deep this one is. Raises NotFound (no such call), LimitReached."""
        if request.parent_call is None:
            return 1
        job = self._book.waiting_for(principal, request.parent_call)
        if job.depth >= self._tools.max_depth:
            raise LimitReached(
                f"Tool calls are {job.depth} executions deep, as deep as they may (tools.max_depth).",
                reason="depth",
            )
        return job.depth + 1

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _notice(job: Job, ended_at: datetime) -> Notice:
    return Notice(
        kind=NoticeKind.JOB_FINISHED,
        at=ended_at,
        owner=job.principal.name,
        door=job.origin.door,
        kernel_id=job.kernel_id,
        job_id=job.id,
        request_id=job.origin.request_id,
        status=job.status.value,
        reason=job.reason,
        duration_s=round((ended_at - job.created_at).total_seconds(), 6),
    )


async def _ended(job: Job, within_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await job.done.wait()


def _text_of(result: TaskResult | None, what: str) -> str:
    if result is None:
        return ""
    match what:
        case "stdout" | "stderr":
            return result.stdout if what == "stdout" else result.stderr
        case "error":
            return "\n".join(result.error.traceback) if result.error else ""
        case "result":
            shown = [output for output in result.outputs if output["output_type"] == "execute_result"]
            text = shown[-1]["data"].get("text/plain", "") if shown else ""
            return text if isinstance(text, str) else "".join(text)
    raise NotFound(f"An execution has no text {what[:64]!r}.")

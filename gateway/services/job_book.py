"""The book of jobs: those on their way in memory, those that have ended in the store, until they expire."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import structlog

from gateway.errors import Conflict, GatewayError, LimitReached, NotFound, StoreUnavailable
from gateway.models import Scope
from gateway.services.job import Job, JobBody
from gateway.services.kernels import owns, require

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.models import Principal
    from gateway.models.jobs import JobRecord
    from gateway.ports import Clock, Store
    from gateway.settings import ExecutionsSettings

SWEEP_S = 60.0
# An owner's ended jobs between two looks at how many there are.
TRIM_EVERY = 20
# A job whose events take less is packed without a thread, which would cost more.
SMALL_BYTES = 32 << 10

log = structlog.get_logger(__name__)


class JobBook:
    """Knows every job; each is shown to its owner and to admins alone."""

    def __init__(self, store: Store, clock: Clock, settings: ExecutionsSettings) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._live: dict[str, Job] = {}
        self._going: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._unkept: set[Job] = set()

    async def add(self, job: Job) -> None:
        """Enter a new job. Raises LimitReached, StoreUnavailable."""
        if self._going[job.owner] >= self._settings.max_jobs:
            raise LimitReached(
                f"You have {self._settings.max_jobs} executions on their way (executions.max_jobs).",
                reason="jobs",
                retry_after_s=1,
            )
        self._going[job.owner] += 1
        adding = asyncio.ensure_future(self._store.add_job(job.record()))
        try:
            await asyncio.shield(adding)
        except BaseException:
            self._left(job)
            # whoever asked may have gone; a removal must not overtake what is being written
            await asyncio.wait({adding})
            with suppress(StoreUnavailable):
                await self._store.delete_job(job.id)
            raise
        self._live[job.id] = job

    async def keep(self, job: Job) -> None:
        """Store what a job gave, and let go of it; where the store fails it stays, to be tried again."""
        small = job.journal.size < SMALL_BYTES
        body = job.body().packed() if small else await asyncio.to_thread(job.body().packed)
        try:
            await self._store.put_job(job.record(body))
        except GatewayError as error:
            log.warning("job_not_kept", job=job.id, error=error.message)
            self._unkept.add(job)
            return
        self._let_go(job)
        self._ended[job.owner] += 1
        if self._ended[job.owner] >= TRIM_EVERY:
            del self._ended[job.owner]
            await self._trim(job.owner)

    async def find(self, principal: Principal, job_id: str) -> Job | JobRecord:
        """Return a job of the principal's: in memory, or the record of one that has ended.

        Raises Forbidden, NotFound, StoreUnavailable.
        """
        require(principal, Scope.EXECUTE)
        found: Job | JobRecord | None = self._live.get(job_id) or await self._store.job(job_id)
        if found is None or not owns(principal, found.owner):
            raise NotFound(f"Execution does not exist: {job_id[:64]}")
        if not isinstance(found, Job) and found.status.ended and found.expires_at <= self._clock.now():
            raise NotFound(f"Execution does not exist: {job_id[:64]}")
        return found

    async def going(self, principal: Principal, job_id: str) -> Job:
        """Return a job of the principal's that is on its way. Raises what `find` does, and Conflict."""
        job = await self.find(principal, job_id)
        if not isinstance(job, Job) or job.ended_at is not None:
            raise Conflict("The execution has ended.", reason="ended")
        return job

    async def by_key(self, owner: str, idempotency_key: str) -> JobRecord | None:
        """Return the job that an owner asked for with a key, if it has not expired."""
        found = await self._store.job_by_key(owner, idempotency_key)
        if found and found.status.ended and found.expires_at <= self._clock.now():
            await self._store.delete_job(found.id)
            return None
        return found

    async def listing(self, principal: Principal) -> list[JobRecord]:
        """Return the principal's jobs, or everybody's for an admin, newest first. Raises Forbidden."""
        require(principal, Scope.EXECUTE)
        # first, since one that is kept meanwhile is in neither as it is now
        live = dict(self._live)
        found = await self._store.jobs(None if principal.has(Scope.ADMIN) else principal.name)
        now = self._clock.now()
        return [
            live[record.id].record() if record.id in live else record
            for record in found
            if not (record.status.ended and record.expires_at <= now)
        ]

    async def forget(self, job: Job | JobRecord) -> None:
        """Forget a job that has ended."""
        if isinstance(job, Job) and job.runner is not None:
            # which keeps it at this moment
            await asyncio.wait({job.runner})
            if job in self._unkept:
                self._let_go(job)
        await self._store.delete_job(job.id)

    def waiting_for(self, principal: Principal, call_id: str) -> Job:
        """Return the principal's job whose tool call waits for an answer. Raises NotFound."""
        for job in self._live.values():
            if job.desk is not None and job.desk.waits(call_id) and owns(principal, job.owner):
                return job
        raise NotFound(f"No such tool call waits for an answer: {call_id[:64]}")

    def all(self) -> list[Job]:
        """Return the jobs in memory."""
        return list(self._live.values())

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Keep the book while the body runs; what an earlier gateway left on its way counts as lost.

        Raises StoreUnavailable.
        """
        if lost := await self._store.lose_jobs(self._clock.now()):
            log.warning("jobs_lost", count=lost)
        sweeper = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweeper.cancel()
            await asyncio.gather(sweeper, return_exceptions=True)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            for job in list(self._unkept):
                await self.keep(job)
            await self._trim(None)

    async def _trim(self, owner: str | None) -> None:
        most, most_bytes = self._settings.kept_jobs, self._settings.kept_bytes
        try:
            await self._store.trim_jobs(self._clock.now(), owner, most=most, most_bytes=most_bytes)
        except GatewayError as error:
            log.warning("jobs_not_trimmed", error=error.message)

    def _let_go(self, job: Job) -> None:
        self._unkept.discard(job)
        self._live.pop(job.id, None)
        self._left(job)

    def _left(self, job: Job) -> None:
        self._going[job.owner] -= 1
        if not self._going[job.owner]:
            del self._going[job.owner]


async def body_of(job: Job | JobRecord) -> JobBody:
    """Return what a job has given."""
    return job.body() if isinstance(job, Job) else await asyncio.to_thread(JobBody.unpacked, job.body)
